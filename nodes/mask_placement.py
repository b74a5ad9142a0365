"""Estimate Foreground and Place Masks: where the object is, and masks that lie on it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..anomalydiffusion_core.errors import InputError
from ..anomalydiffusion_core.masks.foreground import (
    KEEP,
    METHODS,
    UNCLEAR,
    ForegroundSettings,
    describe_foreground,
    estimate_foreground,
)
from ..anomalydiffusion_core.masks.placement import PlacedMasks, place_masks, with_others
from .host import tensors
from .host.progress import LARGEST_SEED, Progress
from .sockets import CATEGORY, shown

USE_ANOTHER, LEAVE_OUT, ERROR = "use another", "leave out", "error"
PICTURES_SHOWN = 8


class EstimateForeground(io.ComfyNode):
    """The object on a plain background."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionEstimateForeground",
            display_name="Estimate Foreground",
            category=f"{CATEGORY}/masks",
            description=(
                "Finds the object on pictures with a plain background, from the colour of the picture's border. Look "
                "at the preview, where the background is darkened. Textures that fill the picture need no foreground."
            ),
            inputs=[
                io.Image.Input("image", tooltip="Pictures of objects, for example from Pick Normals."),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default=METHODS[0],
                    tooltip=(
                        "Background is what has the border's colour and touches it, or has that colour anywhere, or "
                        "fits colour models of both sides better (as in GrabCut; slower)."
                    ),
                ),
                io.Float.Input(
                    "tolerance",
                    default=0.0,
                    min=0.0,
                    max=200.0,
                    step=1.0,
                    tooltip="Colour distance (CIE Lab) from the border that is still background. 0 chooses it.",
                ),
                io.Int.Input(
                    "margin",
                    default=0,
                    min=-1000,
                    max=1000,
                    tooltip="Pixels to shrink the object by, so that masks keep off its edge. Below 0 it grows.",
                ),
                io.Boolean.Input("fill_holes", default=True, tooltip="What the object surrounds belongs to it."),
                io.Float.Input(
                    "smallest_part",
                    default=0.01,
                    min=0.0,
                    max=0.99,
                    step=0.001,
                    round=False,
                    tooltip="Parts below this share of the picture are no object.",
                ),
                io.Combo.Input(
                    "unclear",
                    options=list(UNCLEAR),
                    default=KEEP,
                    optional=True,
                    tooltip=(
                        "What is given out where no object stands out from a plain background: the estimate all the "
                        "same, or the whole picture, which is right for textures."
                    ),
                ),
            ],
            outputs=[
                io.Mask.Output("mask", display_name="foreground", tooltip="One mask of the object for each picture."),
                io.String.Output("report", display_name="report", tooltip="How much of the pictures is object."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, image: Tensor, **options: Any) -> io.NodeOutput:
        images = tensors.to_core_images(image)
        progress = Progress(len(images))
        masks = estimate_foreground(images, ForegroundSettings(**options), progress.at)
        report = describe_foreground(images, masks)
        preview = tensors.to_host_images((images * (0.25 + 0.75 * masks))[:PICTURES_SHOWN])
        return io.NodeOutput(tensors.to_host_masks(masks), report, ui=shown(report, preview, cls))


class PlaceMasks(io.ComfyNode):
    """Masks moved to where they may lie."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionPlaceMasks",
            display_name="Place Masks",
            category=f"{CATEGORY}/masks",
            description=(
                "Moves each mask to a random place where the stated share of it lies on the object and in the allowed "
                "region. The shape stays as it is. Masks that fit nowhere are named in the report."
            ),
            inputs=[
                io.Mask.Input("mask", tooltip="Masks from any source, none empty."),
                io.Float.Input(
                    "share_inside",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of a mask that must lie inside. 0 takes any place where it touches.",
                ),
                io.Boolean.Input(
                    "keep_inside",
                    default=False,
                    tooltip="Leave masks where they are when enough of them lies inside already.",
                ),
                io.Combo.Input(
                    "impossible",
                    options=[USE_ANOTHER, LEAVE_OUT, ERROR],
                    default=USE_ANOTHER,
                    tooltip="What stands for a mask that fits nowhere: the next mask that fits, nothing, or an error.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=LARGEST_SEED,
                    control_after_generate=True,
                    tooltip="Mask i uses the seed + i. Another seed finds other places.",
                ),
                io.Mask.Input(
                    "foreground",
                    optional=True,
                    tooltip="The object: one mask, or one for each mask, for example from Estimate Foreground.",
                ),
                io.Mask.Input(
                    "allowed",
                    optional=True,
                    tooltip="Where this defect may occur: one mask, or one for each mask.",
                ),
            ],
            outputs=[
                io.Mask.Output("placed", display_name="masks", tooltip="The masks at their new places."),
                io.String.Output("report", display_name="report", tooltip="How many were placed, and which were not."),
            ],
        )

    @classmethod
    def execute(
        cls,
        mask: Tensor,
        share_inside: float,
        keep_inside: bool,
        impossible: str,
        seed: int,
        foreground: Tensor | None = None,
        allowed: Tensor | None = None,
    ) -> io.NodeOutput:
        masks, notices = tensors.to_core_masks(mask), list[str]()
        region = _region(masks, foreground, allowed, notices)
        progress = Progress(len(masks))
        placed = place_masks(masks, region, share_inside, seed, keep_inside, progress.at)
        if impossible == USE_ANOTHER:
            # The bar is full by now; this looks whether the user interrupted.
            placed = with_others(placed, masks, region, share_inside, seed, lambda _: progress.at(len(masks)))
        kept = _kept(placed, impossible)
        report = "\n".join([placed.describe(), *notices])
        return io.NodeOutput(tensors.to_host_masks(placed.masks[kept]), report, ui=shown(report))


def _region(masks: Tensor, foreground: Tensor | None, allowed: Tensor | None, notices: list[str]) -> Tensor:
    """Where masks may lie, [1 or N, 1, H, W]. Raises InputError for none and for regions that do not meet."""
    region = None
    for name, connected in (("foreground", foreground), ("allowed", allowed)):
        if connected is None:
            continue
        own = tensors.fit_masks(tensors.to_core_masks(connected, name), masks.shape[-2:], notices, name, "mask")
        if len(own) not in (1, len(masks)):
            raise InputError(f"{name}: {len(own)} for {len(masks)} masks. Connect one, or one for each mask.")
        region = own if region is None else region * own
    if region is None:
        raise InputError("foreground, allowed: neither is connected. Connect at least one of them.")
    empty = (region.flatten(1).amax(dim=1) == 0).nonzero().flatten().tolist()
    if empty:
        raise InputError(f"allowed: entry {empty[0]} has nothing in common with the foreground. Change one of them.")
    return region


def _kept(placed: PlacedMasks, impossible: str) -> list[int]:
    """Numbers of the masks that are given out. Raises InputError for none, and for a failed one that may not miss."""
    without = [number for number in placed.failed if number not in placed.used_instead]
    kept = [entry.number for entry in placed.placements if entry.number not in without]
    if not kept or (without and impossible != LEAVE_OUT):
        raise InputError(f"mask: {placed.describe()}. Lower share_inside, use smaller masks, or enlarge the region.")
    return kept
