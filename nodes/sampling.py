"""Blended AAR KSampler: defects inside masks on normal images."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..anomalydiffusion_core.figures import comparison_sheet
from ..anomalydiffusion_core.options import build
from ..anomalydiffusion_core.sampling.run import BlendedSampling, BlendingSettings
from .host import tensors
from .host.conditioning import ComfyConditioning, Conditioning
from .host.denoiser import ComfyDenoiser
from .host.progress import Progress
from .host.sampler import ComfySampler
from .host.versions import schema
from .inputs import inputs_of, sampling_inputs
from .sockets import CATEGORY, Effect, shown

DETAILS = (
    "crop crop_cells crop_margin crop_size min_effect retries grey_lock cap start_percent end_percent difference "
    "decode_every token_scope temperature raw_difference"
).split()
RARE = ["foreground_overlap", *(name for name in DETAILS if name != "min_effect")]
"""Of these, what the page shows on demand only."""


class BlendedAARKSampler(io.ComfyNode):
    """Blended sampling (paper, Eq. 1) with adaptive attention re-weighting, effect scores and a control."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AnomalyDiffusionBlendedAARKSampler",
            search_aliases=(
                "inpaint, inpainting, generate defect, synthetic defect, anomaly, scratch, augmentation, few-shot"
            ).split(", "),
            display_name="Blended AAR KSampler",
            category=f"{CATEGORY}/sampling",
            description=(
                "Generates the defect of the conditioning inside the mask on a normal image. Outside the mask the "
                "result is the image, bit for bit, at its own size. One image with N masks, N images with one mask, "
                "or N with N."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model that the embedding was trained on."),
                io.Conditioning.Input(
                    "positive", tooltip="From Spatial Anomaly Embedding: one row, or one for each sample."
                ),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.Image.Input("image", tooltip="Normal images of any size."),
                io.Mask.Input(
                    "mask",
                    tooltip=(
                        "Where the defect goes; values above 0.5 count. Another size of the same aspect is resized."
                    ),
                ),
                *sampling_inputs(2.5, "Sample i uses seed + i, and is the same as when it is sampled alone."),
                *inputs_of(BlendingSettings, ("denoise", "reweighting", "strength", "feather"), advanced=["feather"]),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="The empty caption. Required if cfg is not 1."
                ),
                io.Conditioning.Input(
                    "control",
                    optional=True,
                    tooltip=(
                        "The conditioning of a normal image. Some samples are sampled with it too: what changes then "
                        "is not a learned defect, and the report shows both."
                    ),
                ),
                *inputs_of(BlendingSettings, ("control_samples",), optional=True),
                io.Mask.Input(
                    "foreground",
                    optional=True,
                    tooltip=(
                        "The object. Masks are cut to it; a mask that does not lie on it is an error. One, or one for "
                        "each sample."
                    ),
                ),
                *inputs_of(BlendingSettings, ("foreground_overlap", *DETAILS), optional=True, advanced=RARE),
            ],
            outputs=[
                io.Image.Output("images", display_name="images", tooltip="The images with defects."),
                io.Mask.Output("masks", display_name="masks", tooltip="Exactly 0 or 1; covers every changed pixel."),
                io.Latent.Output(
                    "latent",
                    display_name="latent",
                    tooltip=(
                        "The sampled latents before the pixel composite; for samples in an enlarged window, the "
                        "finished image encoded."
                    ),
                ),
                Effect.Output("effects", display_name="effects", tooltip="Scores and settings of each sample."),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="A summary of effect, fill share and control, what was cropped or retried, and notices.",
                ),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Conditioning,
        vae: Any,
        image: Tensor,
        mask: Tensor,
        negative: Conditioning | None = None,
        control: Conditioning | None = None,
        foreground: Tensor | None = None,
        **values: Any,
    ) -> io.NodeOutput:
        sampler, normals = ComfySampler(ComfyDenoiser(model, vae)), tensors.to_core_images(image)
        made = BlendedSampling(sampler, build(BlendingSettings, values), Progress).run(
            normals,
            tensors.to_core_masks(mask),
            ComfyConditioning(positive),
            ComfyConditioning.of(negative),
            ComfyConditioning.of(control),
            None if foreground is None else tensors.to_core_masks(foreground, "foreground"),
        )
        made.notices.extend(tensors.alpha_notices([image]))
        images, masks = tensors.to_host_images(made.images), tensors.to_host_masks(made.masks)
        sheet = tensors.to_host_images(comparison_sheet(normals, made.images, made.masks))
        ui = shown(made.report, sheet, cls)
        return io.NodeOutput(images, masks, {"samples": made.latents}, made.records, made.report, ui=ui)
