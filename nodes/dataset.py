"""Load Anomaly Dataset and Pick Normals: pictures and masks from disk."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..anomalydiffusion_core.data.mvtec import AnomalyDataset, load_dataset, load_images, load_pairs
from ..anomalydiffusion_core.data.splits import SplitSettings
from ..anomalydiffusion_core.errors import InputError
from ..anomalydiffusion_core.figures import contact_sheet
from .host import folders, tensors
from .host.progress import LARGEST_SEED
from .inputs import inputs_of
from .sockets import CATEGORY, Dataset, shown

SHEET_PAIRS = 4
SHEET_CELL = 160


class LoadAnomalyDataset(io.ComfyNode):
    """A checked folder of good pictures, defect pictures and masks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionLoadDataset",
            display_name="Load Anomaly Dataset",
            category=f"{CATEGORY}/data",
            description=(
                "Reads one category of a data set in the MVTec layout: train/good, test/<defect>, and masks of the "
                "same name in ground_truth/<defect>. All files are checked before anything is learned from them."
            ),
            inputs=[
                io.String.Input(
                    "folder",
                    default="",
                    tooltip="Folder that holds the category folders: absolute, or relative to ComfyUI's input folder.",
                ),
                io.String.Input("category", default="", tooltip="Name of the category folder, for example bottle."),
                *inputs_of(SplitSettings, optional=("defects", "train_rate", "train_list")),
            ],
            outputs=[
                Dataset.Output("dataset", display_name="dataset", tooltip="The checked files with their split."),
                io.String.Output(
                    "types",
                    display_name="types",
                    is_output_list=True,
                    tooltip="One text object/defect for each defect type. Nodes that take it run once for each type.",
                ),
                io.Image.Output(
                    "sheet", display_name="contact sheet", tooltip="Some training pictures and masks of each type."
                ),
                io.String.Output(
                    "report", display_name="report", tooltip="What was found, and oddities worth a look."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, category: str | None, **_: object) -> str:
        # A connected input is not known yet, and an error belongs into execute, where the user sees it.
        try:
            return folders.folder_fingerprint(folders.data_folder(folder or "") / (category or ""))
        except InputError:
            return ""

    @classmethod
    def execute(cls, folder: str, category: str, **split: Any) -> io.NodeOutput:
        dataset = load_dataset(folders.data_folder(folder), category.strip(), SplitSettings(**split))
        sheet = tensors.to_host_images(_dataset_sheet(dataset))
        report = dataset.describe()
        types = [kind.key for kind in dataset.types] or [""]
        return io.NodeOutput(dataset, types, sheet, report, ui=shown(report, sheet, cls))


def _dataset_sheet(dataset: AnomalyDataset) -> Tensor:
    normals = load_images(dataset.normals[: 2 * SHEET_PAIRS], SHEET_CELL, dataset.bits)
    rows: list[list[Tensor | None]] = [list(normals)]
    titles = ["good"]
    for kind in dataset.types:
        images, masks = load_pairs(kind.train[:SHEET_PAIRS], SHEET_CELL)
        rows.append([picture for pair in zip(images, masks, strict=True) for picture in pair])
        titles.append(kind.defect)
    return contact_sheet(rows, row_titles=titles, cell=SHEET_CELL)


class PickNormals(io.ComfyNode):
    """Good pictures to put defects on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionPickNormals",
            display_name="Pick Normals",
            category=f"{CATEGORY}/data",
            description="Draws good training pictures of a data set, without repetition as long as there are enough.",
            inputs=[
                Dataset.Input("dataset", tooltip="From Load Anomaly Dataset."),
                io.Int.Input("count", default=8, min=1, max=10000, tooltip="How many pictures."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=LARGEST_SEED,
                    control_after_generate=True,
                    tooltip="Another seed draws other pictures.",
                ),
                io.Int.Input(
                    "size",
                    default=256,
                    min=0,
                    max=8192,
                    step=8,
                    tooltip="Side in pixels of the square the pictures are resized to. 0 keeps their own size.",
                ),
                io.String.Input(
                    "defect_type",
                    default="",
                    optional=True,
                    tooltip="Connect types to draw other pictures for each defect type.",
                ),
            ],
            outputs=[io.Image.Output("image", display_name="normals", tooltip="The pictures as one batch.")],
        )

    @classmethod
    def execute(
        cls, dataset: AnomalyDataset, count: int, seed: int, size: int, defect_type: str = ""
    ) -> io.NodeOutput:
        chosen = _draw(dataset.normals, count, random.Random(f"{seed}|{defect_type}"))
        return io.NodeOutput(tensors.to_host_images(load_images(chosen, size or None, dataset.bits)))


def _draw(paths: Sequence[Path], count: int, generator: random.Random) -> list[Path]:
    """``count`` of the paths; every one is taken once before any is taken again."""
    drawn: list[Path] = []
    while len(drawn) < count:
        drawn += generator.sample(list(paths), len(paths))
    return drawn[:count]


__all__ = ["LoadAnomalyDataset", "PickNormals"]
