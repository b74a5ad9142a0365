"""Refine Masks, Score Pairs and Review Pairs: labels that fit, a gate, and a person's decisions."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..anomalydiffusion_core.data.mvtec import AnomalyDataset
from ..anomalydiffusion_core.data.sheets import outlined
from ..anomalydiffusion_core.masks.label_choice import refine_like_real
from ..anomalydiffusion_core.masks.refine import AUTO, RefineSettings
from .host import tensors
from .host.vae import reconstruction
from .host.versions import schema
from .inputs import defect_type_input, inputs_of
from .sockets import CATEGORY, Dataset, shown

IMAGES_SHOWN = 8


class RefineMasks(io.ComfyNode):
    """Labels that cover what really changed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AnomalyDiffusionRefineMasks",
            search_aliases="load pairs, dataset, augmentation, synthetic, segmentation".split(", "),
            display_name="Refine Masks",
            category=f"{CATEGORY}/masks",
            description=(
                "Makes labels out of drawn masks and what really changed inside them: what differs from the normal "
                "image by more than the VAE's own errors. A label never leaves its drawn mask. Export Pairs has the "
                "same as an option and writes both masks."
            ),
            inputs=[
                io.Image.Input("images", tooltip="From Blended AAR KSampler."),
                io.Mask.Input("masks", tooltip="The masks output of Blended AAR KSampler."),
                io.Image.Input("normals", tooltip="The normal images that went into the sampler."),
                *inputs_of(RefineSettings, refine={"default": AUTO}),
                io.Vae.Input(
                    "vae", optional=True, tooltip="The VAE of the sampler. Required unless a threshold is set."
                ),
                Dataset.Input(
                    "dataset", optional=True, tooltip="For refine auto, which compares with its training pairs."
                ),
                defect_type_input("For refine auto: the type of these pairs as object/defect.", optional=True),
            ],
            outputs=[
                io.Mask.Output("labels", display_name="masks", tooltip="The labels, inside the drawn masks."),
                io.String.Output(
                    "report", display_name="report", tooltip="What was chosen, and how much of the masks is kept."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: Tensor,
        masks: Tensor,
        normals: Tensor,
        vae: Any = None,
        dataset: AnomalyDataset | None = None,
        defect_type: str = "",
        **values: Any,
    ) -> io.NodeOutput:
        pictures = tensors.to_core_images(images, "images")
        labels, report = refine_like_real(
            pictures,
            tensors.to_core_images(normals, "normals"),
            tensors.to_core_masks(masks, "masks"),
            reconstruction(vae),
            RefineSettings(**values),
            dataset,
            defect_type,
        )
        preview = [outlined(*pair)[None] for pair in zip(pictures[:IMAGES_SHOWN], labels, strict=False)]
        ui = shown(report, tensors.to_host_images(torch.cat(preview)), cls)
        return io.NodeOutput(tensors.to_host_masks(labels), report, ui=ui)
