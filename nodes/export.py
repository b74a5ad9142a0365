"""Export Pairs: generated pictures and masks as a data set on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..anomalydiffusion_core.data.export import export_pairs
from ..anomalydiffusion_core.errors import InputError
from .host import folders, tensors
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
                "Writes pictures, masks and the good pictures below them into a new numbered folder of the output "
                "folder, in the MVTec layout, with one line of provenance for each pair in manifest.jsonl. Nothing is "
                "overwritten."
            ),
            inputs=[
                io.Image.Input("images", tooltip="From Blended AAR KSampler."),
                io.Mask.Input("masks", tooltip="The masks that Blended AAR KSampler gave out."),
                io.Image.Input("normals", tooltip="The good pictures that went into the sampler."),
                io.String.Input("defect_type", default="", tooltip="The type as object/defect."),
                io.String.Input(
                    "folder",
                    default="anomalydiffusion/pairs",
                    tooltip="Name of the folder inside ComfyUI's output folder; a number is added.",
                ),
                io.Float.Input(
                    "min_effect",
                    default=0.0,
                    min=0.0,
                    max=255.0,
                    step=0.5,
                    optional=True,
                    tooltip="Leave out pairs whose effect score is lower than this. Needs effects.",
                ),
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
        groups = _groups(images, masks, normals, defect_type, effects)
        with folders.new_output_folder(folder[0]) as (draft, final):
            lines = [line for group in groups for line in _export(draft, *group, min_effect[0])]
            if not lines:
                raise InputError(f"min_effect: no pair reaches {min_effect[0]:g}. Lower it, nothing was written.")
            counts = {
                key: sum(f"{x['object']}/{x['defect']}" == key for x in lines) for key in dict.fromkeys(defect_type)
            }
            outside = max(line["outside_max_abs_diff"] for line in lines)
        listed = ", ".join(f"{count} {key}" for key, count in counts.items())
        where = folders.relative_to_output(final)
        report = f"{len(lines)} pairs in {where} ({listed}); largest difference outside the masks {outside} of 255"
        summary = json.dumps({"pairs": len(lines), "types": counts, "outside_max_abs_diff": outside})
        return io.NodeOutput(final.as_posix(), report, ui=shown(report, pairs_folder=[where], summary=[summary]))


_Group = tuple[Any, Any, Any, str, list[dict[str, Any]] | None]


def _groups(
    images: list[Any], masks: list[Any], normals: list[Any], types: list[str], effects: list[Any] | None
) -> list[_Group]:
    """What belongs together; lists of one entry serve all types. Raises InputError for other lengths."""
    lists = {"images": images, "masks": masks, "normals": normals, "defect_type": types, "effects": effects or [None]}
    count = len(images)
    for name, values in lists.items():
        if len(values) not in (1, count):
            raise InputError(
                f"{name}: {len(values)} entries for {count} batches of images. Connect one for each batch."
            )
    if len(types) < count:
        raise InputError(f"defect_type: 1 entry for {count} batches of images. Connect the list types.")
    return [tuple(values[i % len(values)] for values in lists.values()) for i in range(count)]  # type: ignore[misc]


def _export(
    draft: Any, image: Any, mask: Any, normal: Any, key: str, effects: list[dict[str, Any]] | None, min_effect: float
) -> list[dict[str, Any]]:
    """Write one type's pairs that reach ``min_effect``; returns their lines of the manifest."""
    parts = key.strip().split("/")
    if len(parts) != 2 or not all(parts):
        raise InputError(f"defect_type: '{key}' is not of the form object/defect. Connect types of the data set.")
    images, masks, normals = (
        tensors.to_core_images(image),
        tensors.to_core_masks(mask),
        tensors.to_core_images(normal, "normals"),
    )
    count = len(images)
    normals = normals.expand(count, -1, -1, -1) if len(normals) == 1 else normals
    masks = masks.expand(count, -1, -1, -1) if len(masks) == 1 else masks
    records = effects if effects is not None else [{} for _ in range(count)]
    if len(records) != count or len(masks) != count or len(normals) != count:
        raise InputError(
            f"{key}: {count} images, {len(masks)} masks, {len(normals)} normals and {len(records)} effects. Connect "
            "what belongs to the same samples."
        )
    if min_effect > 0 and effects is None:
        raise InputError(f"min_effect: is {min_effect:g}, but effects is not connected. Connect it or set 0.")
    chosen = [i for i, record in enumerate(records) if record.get("effect_score", 0.0) >= min_effect or not min_effect]
    if not chosen:
        return []
    picked = [records[i] for i in chosen]
    return export_pairs(draft, parts[0], parts[1], images[chosen], masks[chosen], normals[chosen], picked)
