"""Load Anomaly Dataset and Pick Normals: images and masks from disk."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..anomalydiffusion_core.data.drawn import DrawnSettings, drawn_dataset
from ..anomalydiffusion_core.data.merging import merge_datasets
from ..anomalydiffusion_core.data.mvtec import AnomalyDataset, category_folder, load_dataset
from ..anomalydiffusion_core.data.selection import NormalSettings, dataset_sheet, pick_normals
from ..anomalydiffusion_core.data.splits import SplitSettings
from ..anomalydiffusion_core.data.training import scale_lines
from ..anomalydiffusion_core.errors import AnomalyDiffusionError, InputError
from ..anomalydiffusion_core.reading import folder_fingerprint
from .host import folders, tensors
from .host.versions import schema
from .inputs import inputs_of
from .sockets import CATEGORY, Dataset, shown

IMAGES_SHOWN = 8


def _dataset_outputs() -> list[io.Output]:
    """What both nodes that make a data set give."""
    return [
        Dataset.Output("dataset", display_name="dataset", tooltip="The checked files with their split."),
        io.String.Output(
            "types",
            display_name="types",
            is_output_list=True,
            tooltip="One text object/defect for each defect type. Nodes that take it run once for each type.",
        ),
        io.Image.Output("sheet", display_name="contact sheet", tooltip="Some training images and masks of each type."),
        io.String.Output("report", display_name="report", tooltip="What was found, and oddities worth checking."),
    ]


def _shown_dataset(dataset: AnomalyDataset, cls: Any) -> io.NodeOutput:
    sheet = tensors.to_host_images(dataset_sheet(dataset))
    report = "\n".join([dataset.describe(), *scale_lines(dataset)])
    types = [kind.key for kind in dataset.types] or [""]
    return io.NodeOutput(dataset, types, sheet, report, ui=shown(report, sheet, cls))


class LoadAnomalyDataset(io.ComfyNode):
    """A checked folder of normal images, defect images and masks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AnomalyDiffusionLoadDataset",
            search_aliases=(
                "MVTec, dataset, data set, defect images, folder, VisA, anomaly detection, segmentation masks"
            ).split(", "),
            display_name="Load Anomaly Dataset",
            category=f"{CATEGORY}/data",
            description=(
                "Reads one category of a data set, whatever form its labels have: MVTec AD and its relatives, "
                "LabelMe, COCO, YOLO, CVAT, VOC, or folders of images with masks. All files are checked before "
                "anything is learned from them."
            ),
            inputs=[
                io.String.Input(
                    "folder",
                    default="",
                    tooltip="Folder that holds the category folders: absolute, or relative to ComfyUI's input folder.",
                ),
                io.String.Input("category", default="", tooltip="Name of the category folder, for example bottle."),
                *inputs_of(
                    SplitSettings,
                    optional=(
                        "defects",
                        "train_rate",
                        "train_list",
                        "mask_values",
                        "mask_rotation",
                        "test_rate",
                        "validation_rate",
                    ),
                    advanced=("mask_values", "mask_rotation", "test_rate", "validation_rate"),
                ),
            ],
            outputs=_dataset_outputs(),
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, category: str | None, **_: object) -> str:
        # A connected input is not known yet, and an error belongs into execute, where the user sees it.
        if not (category or "").strip():
            return ""  # a folder of data sets, or the whole disk
        try:
            return folder_fingerprint(folders.data_folder(folder or "", str(category)) / str(category))
        except InputError:
            return ""

    @classmethod
    def validate_inputs(cls, folder: str | None = None, category: str | None = None) -> bool | str:
        # As soon as Run is pressed, instead of after the model was loaded. Connected inputs are not known yet.
        if folder is None or category is None:
            return True
        try:
            category_folder(folders.data_folder(folder, category), category.strip())
        except AnomalyDiffusionError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, folder: str, category: str, **split: Any) -> io.NodeOutput:
        dataset = load_dataset(folders.data_folder(folder, category), category.strip(), SplitSettings(**split))
        return _shown_dataset(dataset, cls)


class DatasetFromImages(io.ComfyNode):
    """A data set of images whose masks were drawn in ComfyUI."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AnomalyDiffusionDatasetFromImages",
            search_aliases="draw mask, mask editor, own images, label, annotate, defect, dataset".split(", "),
            display_name="Dataset From Images",
            category=f"{CATEGORY}/data",
            description=(
                "Makes a data set of images and masks in the graph, such as those of Load Image and its mask editor. "
                "It is kept in the output folder; connect several of these nodes in a row to add images or types."
            ),
            inputs=[
                io.Image.Input("images", tooltip="Images with a defect, all of one type."),
                io.Mask.Input("masks", tooltip="Where the defect is, for each image: drawn in the mask editor."),
                *inputs_of(DrawnSettings),
                *inputs_of(SplitSettings, ("split", "train_count", "split_seed"), split={"default": "first n"}),
                io.Image.Input(
                    "normals", optional=True, tooltip="Images without a defect. The last fifth is kept for testing."
                ),
                Dataset.Input(
                    "add_to", optional=True, tooltip="A data set of the same object to which these pairs are added."
                ),
            ],
            outputs=_dataset_outputs(),
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        images: Any,
        masks: Any,
        object: str,
        defect: str,
        normals: Any = None,
        add_to: AnomalyDataset | None = None,
        **split: Any,
    ) -> io.NodeOutput:
        made = drawn_dataset(
            folders.output_path("anomalydiffusion/datasets"),
            tensors.to_core_images(images, "images"),
            tensors.to_core_masks(masks, "masks"),
            None if normals is None else tensors.to_core_images(normals, "normals"),
            DrawnSettings(object.strip(), defect.strip()),
            SplitSettings(**split),
            add_to,
        )
        return _shown_dataset(made, cls)


class MergeDatasets(io.ComfyNode):
    """Data sets of several objects as one, for one training."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        more = "Another object, in addition."
        return schema(
            node_id="AnomalyDiffusionMergeDatasets",
            search_aliases="several objects, combine datasets, multi class, join categories".split(", "),
            display_name="Merge Datasets",
            category=f"{CATEGORY}/data",
            description=(
                "Puts the data sets of several objects together, so that one training learns all their defects with "
                "one spatial encoder. Types are called object/defect and take turns. Evaluate each object on its own "
                "data set."
            ),
            inputs=[
                Dataset.Input("dataset_1", tooltip="From Load Anomaly Dataset."),
                Dataset.Input("dataset_2", tooltip="Of another object."),
                *(Dataset.Input(f"dataset_{n}", optional=True, tooltip=more) for n in (3, 4)),
            ],
            outputs=_dataset_outputs(),
            is_output_node=True,
        )

    @classmethod
    def execute(cls, **datasets: AnomalyDataset | None) -> io.NodeOutput:
        given = [datasets[name] for name in sorted(datasets)]
        return _shown_dataset(merge_datasets([one for one in given if one is not None]), cls)


class PickNormals(io.ComfyNode):
    """Normal images to put defects on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AnomalyDiffusionPickNormals",
            search_aliases="good images, normal images, defect-free, ok parts".split(", "),
            display_name="Pick Normals",
            category=f"{CATEGORY}/data",
            description="Picks normal training images of a data set, without repetition as long as there are enough.",
            inputs=[
                Dataset.Input("dataset", tooltip="From Load Anomaly Dataset."),
                *inputs_of(NormalSettings, randomize=("seed",)),
                io.String.Input(
                    "defect_type",
                    default="",
                    optional=True,
                    tooltip="Connect types to pick other images for each defect type.",
                ),
            ],
            outputs=[io.Image.Output("image", display_name="normals", tooltip="The images as one batch.")],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, dataset: AnomalyDataset, defect_type: str = "", **settings: Any) -> io.NodeOutput:
        images = tensors.to_host_images(pick_normals(dataset, NormalSettings(**settings), defect_type))
        report = f"{len(images)} normal images of {images.shape[2]} x {images.shape[1]} px"
        return io.NodeOutput(images, ui=shown(report, images[:IMAGES_SHOWN], cls))


__all__ = ["MergeDatasets", "DatasetFromImages", "LoadAnomalyDataset", "PickNormals"]
