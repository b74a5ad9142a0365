"""Estimate Foreground and Place Masks: where the object is, and masks that lie on it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..anomalydiffusion_core.masks.foreground import ForegroundSettings, describe_foreground, estimate_foreground
from ..anomalydiffusion_core.masks.placement import PlacementSettings, common_region, placed_inside
from ..anomalydiffusion_core.sampling.blending import fit_masks
from .host import tensors
from .host.progress import Progress
from .host.versions import schema
from .inputs import inputs_of
from .sockets import CATEGORY, shown, shown_masks

IMAGES_SHOWN = 8


class EstimateForeground(io.ComfyNode):
    """The object on a plain background."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AnomalyDiffusionEstimateForeground",
            search_aliases="segmentation, background removal, object mask, foreground".split(", "),
            display_name="Estimate Foreground",
            category=f"{CATEGORY}/masks",
            description=(
                "Finds the object on images with a plain background, from the colour of the image border. Check the "
                "preview, where the background is darkened. Textures that fill the image need no foreground."
            ),
            inputs=[
                io.Image.Input("image", tooltip="Images of objects, for example from Pick Normals."),
                *inputs_of(ForegroundSettings, optional=["unclear"]),
            ],
            outputs=[
                io.Mask.Output("mask", display_name="foreground", tooltip="One mask of the object for each image."),
                io.String.Output(
                    "report", display_name="report", tooltip="Share of the images that the object covers."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, image: Tensor, **options: Any) -> io.NodeOutput:
        images = tensors.to_core_images(image)
        progress = Progress(len(images))
        masks = estimate_foreground(images, ForegroundSettings(**options), progress.at)
        report = "\n".join([describe_foreground(images, masks), *tensors.alpha_notices([image])])
        preview = tensors.to_host_images((images * (0.25 + 0.75 * masks))[:IMAGES_SHOWN])
        return io.NodeOutput(tensors.to_host_masks(masks), report, ui=shown(report, preview, cls))


class PlaceMasks(io.ComfyNode):
    """Masks moved to where they may lie."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AnomalyDiffusionPlaceMasks",
            search_aliases="move masks, position, foreground, augmentation".split(", "),
            display_name="Place Masks",
            category=f"{CATEGORY}/masks",
            description=(
                "Moves each mask to a random place where the stated share of it lies on the object and in the allowed "
                "region. The shape stays as it is. Masks that fit nowhere are named in the report."
            ),
            inputs=[
                io.Mask.Input("mask", tooltip="Masks from any source, none empty."),
                *inputs_of(PlacementSettings, randomize=["seed"]),
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
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls, mask: Tensor, foreground: Tensor | None = None, allowed: Tensor | None = None, **options: Any
    ) -> io.NodeOutput:
        masks, notices = tensors.to_core_masks(mask), list[str]()
        regions = {
            name: None
            if region is None
            else fit_masks(tensors.to_core_masks(region, name), masks.shape[-2:], notices, name, "mask")
            for name, region in (("foreground", foreground), ("allowed", allowed))
        }
        progress = Progress(len(masks))
        kept, placed = placed_inside(masks, common_region(regions, len(masks)), PlacementSettings(**options), progress)
        report = "\n".join([placed.describe(), *notices])
        return io.NodeOutput(tensors.to_host_masks(kept), report, ui=shown(report, shown_masks(kept), cls))
