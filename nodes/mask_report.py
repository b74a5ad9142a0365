"""Mask Diversity Report: are new masks diverse, and are they new?"""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..anomalydiffusion_core.data.mvtec import AnomalyDataset
from ..anomalydiffusion_core.masks.diversity import COPY_IOU, measure_diversity, plot_diversity
from ..anomalydiffusion_core.masks.sources import training_masks
from .host import tensors
from .host.versions import schema
from .inputs import defect_type_input
from .sockets import CATEGORY, Dataset, shown


class MaskDiversityReport(io.ComfyNode):
    """Areas, places, and the nearest training mask."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AnomalyDiffusionMaskDiversityReport",
            search_aliases="IoU, mask statistics, duplicates".split(", "),
            display_name="Mask Diversity Report",
            category=f"{CATEGORY}/evaluation",
            description=(
                "Measures area, thickness, elongation, place and likeness of masks, how far they differ from those of "
                "the training masks, and how near each mask comes to one: masks that repeat one add nothing. As text "
                "and as a plot."
            ),
            inputs=[
                io.Mask.Input("mask", tooltip="The masks to look at, none empty."),
                io.Float.Input(
                    "copy_iou",
                    default=COPY_IOU,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="A mask whose IoU with another one is above this counts as a copy of it.",
                ),
                Dataset.Input(
                    "dataset", optional=True, tooltip="Its training masks are compared with. Without it none are."
                ),
                defect_type_input(optional=True),
            ],
            outputs=[
                io.Image.Output(
                    "plot",
                    display_name="plot",
                    tooltip="Area, thickness, elongation, centres of mass, and IoU with the nearest training mask.",
                ),
                io.String.Output("report", display_name="report", tooltip="The same figures as text."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, mask: Tensor, copy_iou: float, dataset: AnomalyDataset | None = None, defect_type: str = ""
    ) -> io.NodeOutput:
        masks = tensors.to_core_masks(mask)
        title, training = "", None
        if dataset is not None:
            kind = dataset.defect_type(defect_type)
            title, training = kind.key, training_masks([kind], (masks.shape[-2], masks.shape[-1]))
        measured = measure_diversity(masks, training)
        report = "\n".join(filter(None, [title, measured.describe(copy_iou)]))
        plot = tensors.to_host_images(plot_diversity(measured, title))
        return io.NodeOutput(plot, report, ui=shown(report, plot, cls))
