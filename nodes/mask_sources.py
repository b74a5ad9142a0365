"""Vary Real Masks and Procedural Masks: masks without a trained embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..anomalydiffusion_core.data.images import read_mask, resize_mask
from ..anomalydiffusion_core.data.mvtec import AnomalyDataset, DefectType
from ..anomalydiffusion_core.errors import InputError
from ..anomalydiffusion_core.masks.procedural import KINDS, AreaDistribution, procedural_masks
from ..anomalydiffusion_core.masks.variation import VariationSettings, vary_masks
from .host import tensors
from .host.progress import LARGEST_SEED, Progress
from .sockets import CATEGORY, Dataset, shown


class VaryRealMasks(io.ComfyNode):
    """Masks of real defects at new places."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionVaryRealMasks",
            display_name="Vary Real Masks",
            category=f"{CATEGORY}/masks",
            description=(
                "Takes the masks of the training pictures in turn and turns, scales, mirrors and moves each. The "
                "shapes are those of real defects; none leaves the picture or becomes empty."
            ),
            inputs=[
                Dataset.Input("dataset", tooltip="From Load Anomaly Dataset; its training masks are taken."),
                _defect_type("The type as object/defect. Empty takes the only type of the data set."),
                *_common_inputs("Side of the masks in pixels. 0 keeps the size of the real ones."),
                io.Float.Input(
                    "max_degrees",
                    default=180.0,
                    min=0.0,
                    max=180.0,
                    step=1.0,
                    tooltip="Largest rotation in both directions.",
                ),
                io.Float.Input(
                    "min_scale", default=0.8, min=0.01, max=100.0, step=0.05, tooltip="Smallest factor of the size."
                ),
                io.Float.Input(
                    "max_scale", default=1.25, min=0.01, max=100.0, step=0.05, tooltip="Largest factor of the size."
                ),
                io.Float.Input(
                    "max_shift",
                    default=0.25,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How far a mask moves at most, as a share of the side. Place Masks puts it on the object.",
                ),
                io.Boolean.Input("flips", default=True, tooltip="Also mirror the masks."),
            ],
            outputs=_outputs("The new masks."),
        )

    @classmethod
    def execute(
        cls, dataset: AnomalyDataset, defect_type: str, count: int, size: int, seed: int, **ranges: Any
    ) -> io.NodeOutput:
        kind = chosen_kind(dataset, defect_type)
        real = training_masks([kind], (size, size) if size else None)
        progress = Progress(count)
        masks = vary_masks(real, count, seed, VariationSettings(**ranges), progress.at)
        report = f"{kind.key}: {count} masks out of {len(real)} real ones, {_areas(masks)}"
        return io.NodeOutput(tensors.to_host_masks(masks), report, ui=shown(report))


class ProceduralMasks(io.ComfyNode):
    """Masks from noise and lines."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionProceduralMasks",
            display_name="Procedural Masks",
            category=f"{CATEGORY}/masks",
            description=(
                "Draws masks without any model: Perlin noise as in DRAEM, strokes, cracks and blobs. Their areas "
                "follow those of the training masks when a data set is connected."
            ),
            inputs=[
                io.Combo.Input(
                    "kind",
                    options=list(KINDS),
                    default=KINDS[0],
                    tooltip="What is drawn; mixed takes one of the four for each mask.",
                ),
                *_common_inputs("Side of the masks in pixels.", smallest=8),
                io.Float.Input(
                    "smallest_area",
                    default=0.002,
                    min=0.00001,
                    max=1.0,
                    step=0.0001,
                    round=False,
                    tooltip="Share of the picture that a mask covers at least. Not used with a data set.",
                ),
                io.Float.Input(
                    "largest_area",
                    default=0.1,
                    min=0.00001,
                    max=1.0,
                    step=0.01,
                    round=False,
                    tooltip="Share of the picture that a mask covers at most. Not used with a data set.",
                ),
                Dataset.Input(
                    "dataset",
                    optional=True,
                    tooltip="Areas are drawn like those of its training masks.",
                ),
                _defect_type("The type to take the areas of. Empty takes those of all types.", optional=True),
            ],
            outputs=_outputs("The new masks."),
        )

    @classmethod
    def execute(
        cls,
        kind: str,
        count: int,
        size: int,
        seed: int,
        smallest_area: float,
        largest_area: float,
        dataset: AnomalyDataset | None = None,
        defect_type: str = "",
    ) -> io.NodeOutput:
        areas = AreaDistribution(smallest_area, largest_area)
        source = "areas between the two limits"
        if dataset is not None:
            kinds = [chosen_kind(dataset, defect_type)] if defect_type.strip() else dataset.types
            real = [read_mask(pair.mask_path) for one in kinds for pair in one.train]
            areas = AreaDistribution.learned([float(mask.mean()) for mask in real])
            source = f"areas like those of {len(real)} training masks"
        progress = Progress(count)
        masks = procedural_masks(kind, count, size, seed, areas, progress.at)
        report = f"{kind}: {count} masks, {source}, {_areas(masks)}"
        return io.NodeOutput(tensors.to_host_masks(masks), report, ui=shown(report))


def _defect_type(tooltip: str, optional: bool = False) -> io.Input:
    return io.String.Input("defect_type", default="", optional=optional, tooltip=tooltip)


def _common_inputs(size: str, smallest: int = 0) -> list[io.Input]:
    return [
        io.Int.Input("count", default=8, min=1, max=10000, tooltip="How many masks."),
        io.Int.Input("size", default=256, min=smallest, max=8192, step=8, tooltip=size),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=LARGEST_SEED,
            control_after_generate=True,
            tooltip="Mask i uses the seed + i, and is the same as when it is drawn alone.",
        ),
    ]


def _outputs(masks: str) -> list[io.Output]:
    return [
        io.Mask.Output("mask", display_name="masks", tooltip=masks),
        io.String.Output("report", display_name="report", tooltip="How many, out of what, and their areas."),
    ]


def chosen_kind(dataset: AnomalyDataset, text: str) -> DefectType:
    """The data set's type of this name, or its only one for an empty text. Raises InputError."""
    if text.strip():
        return dataset.defect_type(text.strip())
    if len(dataset.types) != 1:
        known = ", ".join(kind.key for kind in dataset.types) or "none, it has normal pictures only"
        raise InputError(f"defect_type: is empty. Choose one of: {known}.")
    return dataset.types[0]


def training_masks(kinds: Sequence[DefectType], size: tuple[int, int] | None) -> Tensor:
    """The training masks [N, 1, H, W] of some types at ``size`` (height, width), or as stored where all have one size.

    Raises InputError when there are none, or when sizes differ.
    """
    masks = [read_mask(pair.mask_path) for kind in kinds for pair in kind.train]
    if not masks:
        raise InputError("dataset: has no training masks of this type. Choose another split.")
    if size is None and len({mask.shape for mask in masks}) > 1:
        raise InputError("size: is 0, but the training masks have different sizes. Give one in pixels.")
    return torch.cat([mask[None] if size is None else resize_mask(mask[None], size) for mask in masks])


def _areas(masks: Tensor) -> str:
    areas = masks.flatten(1).mean(dim=1)
    return f"{float(areas.min()):.2%} to {float(areas.max()):.2%} of the picture"
