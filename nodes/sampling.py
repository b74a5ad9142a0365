"""Blended AAR KSampler: defects inside masks on good pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..anomalydiffusion_core.errors import InputError
from ..anomalydiffusion_core.sampling.reweighting import ANOMALY_TOKENS, MODES, ReweightingSettings
from ..anomalydiffusion_core.sampling.windows import CropSettings
from . import effects
from .host import conditioning as host_conditioning
from .host import denoiser as host_models
from .host import sampler as host_sampling
from .host import tensors
from .host.progress import Progress
from .masks import sampling_inputs
from .sampling_options import finishing_inputs, reweighting_inputs
from .scene import Drawing, Scene, matched, on_foreground
from .sockets import CATEGORY, Effect, shown

OFF = "off"
PICTURES_SHOWN = 8
FALLBACK_RESOLUTION = 512
"""Sampling resolution of windows where the embedding does not say what it was trained at; Stable Diffusion 1.5's."""


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
                *sampling_inputs(
                    cfg=2.5, seed_use="Sample i uses the seed + i, and is the same as when it is drawn alone."
                ),
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
                        "monotone is safe; paper and authors follow the publication and its code; prompt-to-prompt "
                        "puts the mask in place of the attention map, for comparison; off is plain sampling."
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
                *finishing_inputs(),
                *reweighting_inputs(),
            ],
            outputs=[
                io.Image.Output("images", display_name="images", tooltip="The pictures with defects."),
                io.Mask.Output("masks", display_name="masks", tooltip="Exactly 0 or 1; covers every changed pixel."),
                io.Latent.Output(
                    "latent",
                    display_name="latent",
                    tooltip=(
                        "The sampled latents before the pixel composite; of samples drawn in an enlarged window, the "
                        "finished picture encoded."
                    ),
                ),
                Effect.Output("effects", display_name="effects", tooltip="Scores and settings of each sample."),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="Effect, fill share and control in short, what was cropped or drawn again, and notices.",
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
        foreground: Tensor | None = None,
        foreground_overlap: float = 0.0,
        min_effect: float = 0.0,
        retries: int = 2,
        grey_lock: bool = False,
        crop: str = "auto",
        crop_cells: int = 8,
        crop_margin: int = 32,
        crop_size: int = 0,
        **more: Any,
    ) -> io.NodeOutput:
        settings = host_sampling.SamplingSettings(seed, steps, cfg, sampler_name, scheduler, denoise, batch_size)
        weights = None if reweighting == OFF else _weights(reweighting, strength, more)
        drawing = Drawing(settings, weights, feather, grey_lock)
        denoiser = host_models.ComfyDenoiser(model, vae)
        for name, conditioning in (("positive", positive), ("control", control), ("negative", negative)):
            host_conditioning.check_base(denoiser, conditioning or [], name)
        notices: list[str] = []
        images = tensors.to_core_images(image)
        masks = tensors.fit_masks(tensors.to_core_masks(mask), images.shape[-2:], notices)
        shared = len(images) == 1
        images, masks = matched(images, masks)
        remade = foreground is not None
        if foreground is not None:
            ground = tensors.fit_masks(tensors.to_core_masks(foreground, "foreground"), images.shape[-2:], notices)
            masks = on_foreground(masks, ground, foreground_overlap)
        mode = _crop_mode(crop, [positive, negative, control], notices)
        size = crop_size or host_conditioning.trained_resolution(positive) or FALLBACK_RESOLUTION
        cropping = CropSettings(mode, crop_cells, crop_margin, size)
        if weights is not None and strength and not host_conditioning.has_columns(positive):
            notices.append("notice: positive does not say which of its columns are an anomaly, nothing is re-weighted")

        scene = Scene(denoiser, images, masks, cropping, remade, shared)
        total = len(scene)
        count = min(control_samples, total) if control is not None else 0
        cropped = total - scene.windows.count(None)
        vae_steps = 2 * scene.encodings + total + count + cropped
        progress = Progress(steps * (total + count) + host_models.VAE_STEPS * vae_steps)
        scene.prepare(progress)
        kept = effects.draw_best(scene, positive, negative, drawing, min_effect, retries, progress)
        options = {"reweighting": reweighting, "strength": strength, "feather": feather, "grey_lock": grey_lock}
        if weights is not None:
            options |= _weight_settings(weights)
        values = {key: value for key, value in asdict(settings).items() if key not in ("seed", "batch_size")}
        listed = effects.records(kept, scene.windows, {**values, **options})
        report = [effects.summary(kept, scene.windows, min_effect), *notices]
        if count and control is not None:
            places, seeds = range(count), kept.seeds[:count]
            against = None if negative is None else host_conditioning.select(negative, places, total)
            plain = replace(drawing, reweighting=None)
            host_conditioning.check_conditioning(denoiser, control, "control", count)
            other = scene.draw(control, against, plain, places, seeds, progress).scores
            for entry, score in zip(listed, other.effect.tolist(), strict=False):
                entry["control_score"] = round(score, 3)
            report.insert(1, effects.control_summary(kept.drawn.scores, other))
        latents = scene.latent_of(kept.drawn.latents, kept.drawn.images, progress)
        pictures, text = tensors.to_host_images(kept.drawn.images), "\n".join(report)
        return io.NodeOutput(
            pictures,
            tensors.to_host_masks(scene.masks),
            {"samples": latents},
            listed,
            text,
            ui=shown(text, pictures[:PICTURES_SHOWN], cls),
        )


def _weights(mode: str, strength: float, more: Mapping[str, Any]) -> ReweightingSettings:
    options = dict(more)
    scope, raw = options.pop("token_scope", ANOMALY_TOKENS), options.pop("raw_difference", False)
    return ReweightingSettings(mode=mode, strength=strength, scope=scope, normalise=not raw, **options)


def _weight_settings(weights: ReweightingSettings) -> dict[str, Any]:
    """What else was set about the re-weighting, for the records."""
    chosen = asdict(weights)
    names = ["cap", "start_percent", "end_percent", "scope"] + ["temperature", "normalise"] * (weights.mode == "paper")
    return {"difference": weights.source, **{name: chosen[name] for name in names}}


def _crop_mode(mode: str, conditionings: Sequence[host_models.Conditioning | None], notices: list[str]) -> str:
    """The crop mode that the conditioning allows. Raises InputError where cropping was asked for and is impossible."""
    found = sorted({name for conditioning in conditionings for name in host_conditioning.placed(conditioning)})
    if not found or mode == "off":
        return mode
    text = f"the conditioning holds what belongs to places of the whole picture ({', '.join(found)})"
    if mode == "always":
        raise InputError(f"crop: always is not possible, {text}. Set crop to off.")
    notices.append(f"notice: {text}, so small masks were not enlarged")
    return "off"
