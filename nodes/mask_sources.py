"""Vary Real Masks and Procedural Masks: masks without a trained embedding."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..anomalydiffusion_core.data.mvtec import AnomalyDataset
from ..anomalydiffusion_core.masks.framing import put_on
from ..anomalydiffusion_core.masks.procedural import KINDS, AreaDistribution
from ..anomalydiffusion_core.masks.sources import MaskOrder, drawn_masks, varied_masks, varied_shapes
from ..anomalydiffusion_core.masks.variation import VariationSettings
from .host import tensors
from .host.progress import Progress
from .host.versions import schema
from .inputs import defect_type_input, inputs_of
from .sockets import CATEGORY, Dataset, shown, shown_masks

OUTPUTS: list[io.Output] = [
    io.Mask.Output("mask", display_name="masks", tooltip="The new masks."),
    io.String.Output("report", display_name="report", tooltip="Number, source and areas of the masks."),
]


def _image_input() -> io.Input:
    return io.Image.Input(
        "image",
        optional=True,
        tooltip=(
            "The masks get the size of this image, and defects keep theirs in pixels, on images of any aspect. "
            "Without it masks are squares of the given size."
        ),
    )


class VaryRealMasks(io.ComfyNode):
    """Masks of real defects at new places."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AnomalyDiffusionVaryRealMasks",
            search_aliases="augmentation, augment masks, move mask, rotate mask, segmentation".split(", "),
            display_name="Vary Real Masks",
            category=f"{CATEGORY}/masks",
            description=(
                "Rotates, scales, mirrors and moves the masks of the training images in turn. The shapes are those "
                "of real defects; none leaves the image or becomes empty."
            ),
            inputs=[
                Dataset.Input("dataset", tooltip="From Load Anomaly Dataset; its training masks are used."),
                defect_type_input(),
                *inputs_of(MaskOrder, randomize=["seed"]),
                *inputs_of(VariationSettings),
                _image_input(),
            ],
            outputs=OUTPUTS,
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        dataset: AnomalyDataset,
        defect_type: str,
        count: int,
        size: int,
        seed: int,
        image: Tensor | None = None,
        **ranges: Any,
    ) -> io.NodeOutput:
        order, settings = MaskOrder(count, size, seed), VariationSettings(**ranges)
        if image is not None:
            shapes, report = varied_shapes(dataset, defect_type, order, settings, Progress(count).at)
            masks = put_on(shapes, image.shape[1:3])
            return io.NodeOutput(tensors.to_host_masks(masks), report, ui=shown(report, shown_masks(masks), cls))
        masks, report = varied_masks(dataset, defect_type, order, settings, Progress(count).at)
        return io.NodeOutput(tensors.to_host_masks(masks), report, ui=shown(report, shown_masks(masks), cls))


class ProceduralMasks(io.ComfyNode):
    """Masks from noise and lines."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AnomalyDiffusionProceduralMasks",
            search_aliases="perlin, scratch, crack, synthetic masks, random mask, segmentation".split(", "),
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
                    tooltip="Shape of the masks; mixed draws one of the four for each mask.",
                ),
                *inputs_of(
                    MaskOrder,
                    randomize=["seed"],
                    size={
                        "tooltip": "Side of the masks in pixels. 0 takes the size of the image or of the real masks."
                    },
                ),
                *inputs_of(AreaDistribution, smallest_area={"min": 0.00001}, largest_area={"min": 0.00001}),
                Dataset.Input("dataset", optional=True, tooltip="Areas are drawn like those of its training masks."),
                defect_type_input("The type whose areas are used. Empty uses those of all types.", optional=True),
                io.Image.Input("image", optional=True, tooltip="The masks get the size and aspect of this image."),
            ],
            outputs=OUTPUTS,
            has_intermediate_output=True,
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
        image: Tensor | None = None,
    ) -> io.NodeOutput:
        frame = None if image is None else (image.shape[1], image.shape[2])
        order, areas = MaskOrder(count, size, seed), AreaDistribution(smallest_area, largest_area)
        masks, report = drawn_masks(kind, order, areas, dataset, defect_type, Progress(count).at, frame)
        return io.NodeOutput(tensors.to_host_masks(masks), report, ui=shown(report, shown_masks(masks), cls))
