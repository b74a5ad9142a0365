"""Export Pairs: generated images and masks as a data set on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..anomalydiffusion_core.data.export import (
    ExportSettings,
    export_batches,
    export_key,
    exported_before,
    pair_batches,
)
from .host import folders, tensors
from .host.progress import interrupted
from .inputs import folder_input, inputs_of
from .sockets import CATEGORY, Effect, shown


class ExportPairs(io.ComfyNode):
    """All types of a run in one new folder in the MVTec layout, with a manifest."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionExportPairs",
            display_name="Export Pairs",
            category=f"{CATEGORY}/data",
            description=(
                "Writes images, masks and the normal images they were made from to a new numbered folder of the "
                "output folder, in the MVTec layout, with one line of provenance for each pair in manifest.jsonl. "
                "Nothing is overwritten."
            ),
            inputs=[
                io.Image.Input("images", tooltip="From Blended AAR KSampler."),
                io.Mask.Input("masks", tooltip="The masks output of Blended AAR KSampler."),
                io.Image.Input("normals", tooltip="The normal images that went into the sampler."),
                io.String.Input("defect_type", default="", tooltip="The type as object/defect."),
                folder_input("pairs"),
                *inputs_of(ExportSettings, optional=True),
                Effect.Input(
                    "effects", optional=True, tooltip="Scores and settings of the samples, for the manifest."
                ),
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
        min_effect: Sequence[float] = (0.0,),
        effects: list[list[dict[str, Any]]] | None = None,
    ) -> io.NodeOutput:
        batches = pair_batches(
            defect_type,
            [tensors.to_core_images(image) for image in images],
            [tensors.to_core_masks(mask) for mask in masks],
            [tensors.to_core_images(normal, "normals") for normal in normals],
            effects,
        )
        settings = ExportSettings(min_effect[0])
        key = export_key(batches, settings)
        final = folders.found_output_folder(folder[0], key)
        if final is None:
            with folders.new_output_folder(folder[0], key) as made:
                done = export_batches(made.path, batches, settings, interrupted)
            final = made.final
        else:
            done = exported_before(final)
        where = folders.relative_to_output(final)
        report = done.report(where)
        summary = json.dumps({"pairs": len(done.lines), "types": done.counts, "outside_max_abs_diff": done.outside})
        return io.NodeOutput(final.as_posix(), report, ui=shown(report, pairs_folder=[where], summary=[summary]))
