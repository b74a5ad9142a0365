"""Blended AAR KSampler: defects inside masks on good pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..anomalydiffusion_core.blending import (
    composite,
    crop_back,
    latent_mask,
    pad_mask_to_multiple,
    pad_to_multiple,
)
from ..anomalydiffusion_core.effect import Effect as EffectScores
from ..anomalydiffusion_core.effect import effect_score
from ..anomalydiffusion_core.errors import InputError
from ..anomalydiffusion_core.reweighting import MODES, ReweightingSettings
from . import host, host_models, host_sampling
from .masks import sampling_inputs
from .sockets import CATEGORY, Effect, shown

OFF = "off"
PICTURES_SHOWN = 8
ALIKE = 2.0
"""A control whose effect is more than 1 / ALIKE of the defect's earns a warning."""


class BlendedAARKSampler(io.ComfyNode):
    """Blended sampling (paper, Eq. 1) with adaptive attention re-weighting, effect scores and a control."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionBlendedAARKSampler",
            display_name="Blended AAR KSampler",
            category=f"{CATEGORY}/sampling",
            description=(
                "Draws the defect of the conditioning inside the mask on a good picture. Outside the mask the result "
                "is the picture, bit for bit, at its own size. One picture with N masks, N pictures with one mask, or "
                "N with N."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model that the embedding was trained on."),
                io.Conditioning.Input(
                    "positive", tooltip="From Spatial Anomaly Embedding: one row, or one for each sample."
                ),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.Image.Input("image", tooltip="Good pictures of any size."),
                io.Mask.Input(
                    "mask",
                    tooltip="Where the defect goes; above 0.5 counts. Another size of the same aspect is resized.",
                ),
                *sampling_inputs(cfg=2.5),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="1 draws the masked region anew, less keeps some of what is there.",
                ),
                io.Combo.Input(
                    "reweighting",
                    options=[OFF, *MODES],
                    default=MODES[0],
                    tooltip=(
                        "Adaptive attention re-weighting: more attention to the anomaly where little has changed yet. "
                        "monotone is safe; paper and authors follow the publication and its code; off is plain "
                        "sampling."
                    ),
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Strength of the re-weighting. 0 is exactly plain sampling.",
                ),
                io.Int.Input(
                    "feather",
                    default=2,
                    min=0,
                    max=64,
                    tooltip="Width in pixels of the transition, which lies inside the mask.",
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="The empty caption, needed when cfg is not 1."
                ),
                io.Conditioning.Input(
                    "control",
                    optional=True,
                    tooltip=(
                        "The conditioning of a good part. Some samples are drawn with it too: what changes then is "
                        "not a learned defect, and the report shows both."
                    ),
                ),
                io.Int.Input(
                    "control_samples",
                    default=4,
                    min=0,
                    max=1000,
                    optional=True,
                    tooltip="How many of the samples are drawn again with the control.",
                ),
            ],
            outputs=[
                io.Image.Output("images", display_name="images", tooltip="The pictures with defects."),
                io.Mask.Output("masks", display_name="masks", tooltip="Exactly 0 or 1; covers every changed pixel."),
                io.Latent.Output(
                    "latent", display_name="latent", tooltip="The sampled latents before the pixel composite."
                ),
                Effect.Output("effects", display_name="effects", tooltip="Scores and settings of each sample."),
                io.String.Output(
                    "report", display_name="report", tooltip="Effect, fill share and control in short, and notices."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: host_models.Conditioning,
        vae: Any,
        image: Tensor,
        mask: Tensor,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        batch_size: int,
        denoise: float,
        reweighting: str,
        strength: float,
        feather: int,
        negative: host_models.Conditioning | None = None,
        control: host_models.Conditioning | None = None,
        control_samples: int = 4,
    ) -> io.NodeOutput:
        settings = host_sampling.SamplingSettings(seed, steps, cfg, sampler_name, scheduler, denoise, batch_size)
        weights = None if reweighting == OFF else ReweightingSettings(mode=reweighting, strength=strength)
        denoiser = host_models.ComfyDenoiser(model, vae)
        notices = denoiser.base_notices(positive[0][1].get(host_models.BASE, "") if positive else "")
        images, masks = host.to_core_images(image), host.to_core_masks(mask)
        total = max(len(images), len(masks))
        count = min(control_samples, total) if control is not None else 0
        vae_steps = 2 * len(images) + total + count
        progress = host.Progress(steps * (total + count) + host_models.VAE_STEPS * vae_steps)
        scene = _prepare(denoiser, images, masks, notices, progress)
        result = scene.sample(positive, negative, settings, weights, feather, progress)
        effects = _effects(
            result.scores, settings, {"reweighting": reweighting, "strength": strength, "feather": feather}
        )
        report = [_summary(result.scores), *notices]
        if count and control is not None:
            against = None if negative is None else host_sampling.rows(negative, 0, count, total)
            other = scene.first(count).sample(control, against, settings, None, feather, progress).scores
            for entry, score in zip(effects, other.effect.tolist(), strict=False):
                entry["control_score"] = round(score, 3)
            report.insert(1, _control_summary(result.scores, other))
        pictures, text = host.to_host_images(result.images), "\n".join(report)
        return io.NodeOutput(
            pictures,
            host.to_host_masks(scene.masks),
            {"samples": result.latents},
            effects,
            text,
            ui=shown(text, pictures[:PICTURES_SHOWN], cls),
        )


@dataclass(frozen=True)
class _Result:
    images: Tensor
    latents: Tensor
    scores: EffectScores


@dataclass(frozen=True)
class _Scene:
    """Good pictures [N, 3, H, W] and masks [N, 1, H, W] with what sampling needs of them."""

    denoiser: host_models.ComfyDenoiser
    normals: Tensor
    masks: Tensor
    latents: Tensor
    reconstruction: Tensor

    def first(self, count: int) -> _Scene:
        parts = (part[:count] for part in (self.normals, self.masks, self.latents, self.reconstruction))
        return _Scene(self.denoiser, *parts)

    def sample(
        self,
        positive: host_models.Conditioning,
        negative: host_models.Conditioning | None,
        settings: host_sampling.SamplingSettings,
        weights: ReweightingSettings | None,
        feather: int,
        progress: host.Progress,
    ) -> _Result:
        """Sample, decode, put back into the pictures, and measure."""
        cells = latent_mask(pad_mask_to_multiple(self.masks, self.denoiser.downscale), self.denoiser.downscale)
        latents = host_sampling.sample_latents(
            self.denoiser, self.latents, cells, positive, negative, settings, progress, weights
        )
        decoded = _decoded(self.denoiser, latents, self.normals, progress)
        images = composite(decoded, self.normals, self.masks, feather)
        scores = effect_score(images, self.reconstruction, self.normals, self.masks)
        return _Result(images, latents, scores)


def _prepare(
    denoiser: host_models.ComfyDenoiser, images: Tensor, masks: Tensor, notices: list[str], progress: host.Progress
) -> _Scene:
    """Bring pictures and masks to one size and count, and encode. Raises InputError that says the rule."""
    masks = host.fit_masks(masks, images.shape[-2:], notices)
    count = max(len(images), len(masks))
    if not {len(images), len(masks)} <= {1, count}:
        raise InputError(
            f"image, mask: {len(images)} pictures and {len(masks)} masks. Connect 1 picture with N masks, N pictures "
            "with 1 mask, or N with N."
        )
    padded, _ = pad_to_multiple(images, denoiser.downscale)
    latents = denoiser.vae_encode(padded, progress)
    reconstruction = _decoded(denoiser, latents, images, progress)
    parts = (images, masks, latents, reconstruction)
    return _Scene(denoiser, *(part.expand(count, -1, -1, -1) for part in parts))


def _decoded(denoiser: host_models.ComfyDenoiser, latents: Tensor, like: Tensor, progress: host.Progress) -> Tensor:
    """Latents as pictures of the size of ``like``."""
    _, padding = pad_to_multiple(like[:1], denoiser.downscale)
    return crop_back(denoiser.vae_decode(latents, progress), padding)


def _effects(
    scores: EffectScores, settings: host_sampling.SamplingSettings, more: Mapping[str, Any]
) -> list[dict[str, Any]]:
    values = {key: value for key, value in asdict(settings).items() if key not in ("seed", "batch_size")}
    columns = (scores.effect, scores.fill_share, scores.outside_max_abs_diff)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [
        {
            "seed": settings.seed + place,
            "effect_score": round(effect, 3),
            "fill_share": round(fill, 4),
            "control_score": None,
            "outside_max_abs_diff": int(outside),
            "settings": {**values, **more},
        }
        for place, (effect, fill, outside) in enumerate(rows)
    ]


def _summary(scores: EffectScores) -> str:
    low, middle, high = (float(torch.quantile(scores.effect, share)) for share in (0.0, 0.5, 1.0))
    return (
        f"{len(scores.effect)} samples: effect {middle:.1f} of 255 in the mask (median; {low:.1f} to {high:.1f}), "
        f"fill share {float(scores.fill_share.median()):.2f}, largest difference outside "
        f"{int(scores.outside_max_abs_diff.max())}"
    )


def _control_summary(scores: EffectScores, control: EffectScores) -> str:
    defect, other = float(scores.effect[: len(control.effect)].mean()), float(control.effect.mean())
    text = (
        f"control, {len(control.effect)} samples: effect {other:.1f}, of the same samples with the defect {defect:.1f}"
    )
    if other * ALIKE > defect:
        text += (
            ". Warning: these are alike, so most of the change is no learned defect; the model may not know the object"
        )
    return text
