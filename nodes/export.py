"""Export Pairs: generated images and masks as a data set on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comfy_api.latest import io

from ..anomalydiffusion_core.data.export import (
    ExportSettings,
    export_batches,
    export_key,
    exported_before,
    files_beside,
    pair_batches,
    write_recipe,
)
from ..anomalydiffusion_core.data.image_form import form_of
from ..anomalydiffusion_core.data.pairs import load_exported
from ..anomalydiffusion_core.data.sheets import pairs_sheet
from ..anomalydiffusion_core.masks.refine import RefineSettings
from ..anomalydiffusion_core.masks.relabel import finish_labels, label_key, needs_labels
from ..anomalydiffusion_core.options import build
from .host import folders, tensors
from .host.progress import Progress, interrupted
from .host.vae import fingerprint, reconstruction
from .host.versions import schema
from .inputs import folder_input, inputs_of
from .sockets import CATEGORY, Dataset, Effect, shown

FILES = ("jpeg_quality", "match_camera", "also")
"""Options of ExportSettings that came later."""


class ExportPairs(io.ComfyNode):
    """All types of a run in one new folder in the MVTec layout, with a manifest."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AnomalyDiffusionExportPairs",
            search_aliases="save dataset, COCO, YOLO, MVTec, synthetic data, segmentation, augmentation".split(", "),
            display_name="Export Pairs",
            category=f"{CATEGORY}/data",
            description=(
                "Writes images, masks and the normal images they were made from to a new numbered folder of the "
                "output folder, in the MVTec layout, with one line of provenance for each pair in manifest.jsonl. "
                "Nothing is overwritten. The label can be what really changed instead of the drawn mask; then both "
                "are written."
            ),
            inputs=[
                io.Image.Input("images", tooltip="From Blended AAR KSampler."),
                io.Mask.Input("masks", tooltip="The masks output of Blended AAR KSampler."),
                io.Image.Input("normals", tooltip="The normal images that went into the sampler."),
                io.String.Input("defect_type", default="", tooltip="The type as object/defect."),
                folder_input("pairs"),
                *inputs_of(ExportSettings, ("min_effect",), optional=True),
                Effect.Input(
                    "effects", optional=True, tooltip="Scores and settings of the samples, for the manifest."
                ),
                *inputs_of(RefineSettings, optional=True),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="The VAE of the sampler, for labels other than drawn masks, unless a threshold is set.",
                ),
                Dataset.Input(
                    "dataset",
                    optional=True,
                    tooltip="Keeps the bits and the channels of its images, such as 12 bits or grey; and for refine "
                    "auto, which compares with its training pairs.",
                ),
                *inputs_of(ExportSettings, FILES, optional=True, advanced=True),
            ],
            outputs=[
                io.String.Output("pairs_folder", display_name="pairs folder", tooltip="The new folder."),
                io.String.Output("report", display_name="report", tooltip="What was written."),
            ],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        images: list[Any],
        masks: list[Any],
        normals: list[Any],
        defect_type: list[str],
        folder: list[str],
        effects: list[list[dict[str, Any]]] | None = None,
        vae: Sequence[Any] = (None,),
        dataset: Sequence[Any] = (None,),
        **options: Sequence[Any],
    ) -> io.NodeOutput:
        given = _first(options)
        settings, labels = build(ExportSettings, given), build(RefineSettings, given)
        pairs = tensors.to_core_pairs(images, masks, normals)
        batches = pair_batches(defect_type, *pairs, effects, form_of(dataset[0]))
        key = label_key(export_key(batches, settings), labels, dataset[0], fingerprint(vae[0]))
        final, more = folders.found_output_folder(folder[0], key), list[str]()
        if final is None or needs_labels(final, labels):
            with folders.new_output_folder(folder[0], key) as made:
                done = export_batches(made.path, batches, settings, interrupted)
                more = finish_labels(made.path, labels, settings, lambda: reconstruction(vae[0]), dataset[0], Progress)
                write_recipe(made.path, graph=getattr(cls.hidden, "prompt", None))
            final = made.final
        else:
            done = exported_before(final)
        where = folders.relative_to_output(final)
        report = "\n".join([done.report(where), *more, *tensors.alpha_notices([*images, *normals])])
        sheet, beside = tensors.to_host_images(pairs_sheet(load_exported(final))), files_beside(final)
        ui = shown(report, sheet, cls, pairs_folder=[where], pairs_beside=beside, summary=[done.summary()])
        return io.NodeOutput(final.as_posix(), report, ui=ui)


def _first(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of inputs that are given as lists of one."""
    return {name: value[0] if isinstance(value, list) else value for name, value in values.items()}
