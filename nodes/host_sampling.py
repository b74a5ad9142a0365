"""The adapter to ComfyUI, third part: its samplers with per-sample seeds, and re-weighting as model patches."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import comfy.ldm.modules.attention
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import latent_preview
import torch
from torch import Tensor, nn

from ..anomalydiffusion_core.errors import InputError
from ..anomalydiffusion_core.reweighting import AttentionGain, Reweighter, ReweightingSettings, build_reweighter
from ..anomalydiffusion_core.sampling import sample_noise
from .host import Progress
from .host_models import COLUMNS, ComfyDenoiser, Conditioning

SAMPLERS: list[str] = list(comfy.samplers.KSampler.SAMPLERS)
SCHEDULERS: list[str] = list(comfy.samplers.KSampler.SCHEDULERS)
BATCHED_SAMPLERS = frozenset(
    (
        "euler euler_cfg_pp heun heunpp2 dpm_2 lms dpm_fast dpmpp_2m dpmpp_2m_cfg_pp ipndm ipndm_v deis res_multistep "
        "res_multistep_cfg_pp gradient_estimation gradient_estimation_cfg_pp uni_pc uni_pc_bh2"
    ).split()
)
"""Samplers that draw no noise of their own and choose no step size from the batch. All others sample one by one, so
that a sample never depends on its batch mates."""


@dataclass(frozen=True)
class SamplingSettings:
    """What ComfyUI's KSampler asks for. batch_size: samples computed at once; it does not change any of them."""

    seed: int
    steps: int
    cfg: float
    sampler_name: str = "euler"
    scheduler: str = "normal"
    denoise: float = 1.0
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name, value, known in (
            ("sampler_name", self.sampler_name, SAMPLERS),
            ("scheduler", self.scheduler, SCHEDULERS),
        ):
            if value not in known:
                raise InputError(f"{name}: there is no '{value}'. Choose one of: {', '.join(known)}.")
        if self.steps < 1 or self.batch_size < 1:
            raise InputError(f"steps, batch_size: {self.steps} and {self.batch_size}. Give at least 1 of each.")
        if not 0 < self.denoise <= 1:
            raise InputError(f"denoise: {self.denoise} is not above 0 and at most 1. Give 1 for a full sampling.")

    @property
    def chunk(self) -> int:
        """Samples per call of the host's sampler."""
        return self.batch_size if self.sampler_name in BATCHED_SAMPLERS else 1


# Sampling


def sample_latents(
    denoiser: ComfyDenoiser,
    latents: Tensor,
    masks: Tensor | None,
    positive: Conditioning,
    negative: Conditioning | None,
    settings: SamplingSettings,
    progress: Progress,
    reweighting: ReweightingSettings | None = None,
) -> Tensor:
    """Sample over ``latents`` [N, C, h, w] (VAE scale, CPU) inside ``masks`` [N, 1, h, w] of {0, 1}, or everywhere.

    Sample i uses the seed ``settings.seed + i`` alone. Conditioning has one row, or one per sample. ``progress`` goes
    on by ``settings.steps`` per sample. Raises InputError for a cfg other than 1 without a negative and for
    conditioning of another width or number of rows.
    """
    count = len(latents)
    if settings.cfg != 1 and negative is None:
        raise InputError(f"cfg: {settings.cfg:g} needs a negative conditioning. Connect one or set cfg to 1.")
    for name, conditioning in (("positive", positive), ("negative", negative)):
        check_conditioning(denoiser, conditioning, name, count)
    done = []
    for start in range(0, count, settings.chunk):
        stop = min(start + settings.chunk, count)
        done.append(
            _sample_chunk(
                denoiser,
                latents[start:stop],
                None if masks is None else masks[start:stop],
                rows(positive, start, stop, count),
                # At cfg 1 the host skips the negative, but it wants one.
                rows(negative or positive, start, stop, count),
                replace(settings, seed=settings.seed + start),
                progress,
                reweighting,
            )
        )
    return torch.cat(done)


def check_conditioning(denoiser: ComfyDenoiser, conditioning: Conditioning | None, name: str, count: int) -> None:
    """Raise InputError unless each context has the model's width and one row, or one per sample."""
    for context, _ in conditioning or ():
        if context is None or context.ndim != 3:
            raise InputError(f"{name}: holds no context of rows and columns. Connect the conditioning of a caption.")
        denoiser.check_width(context.shape[-1], name)
        if context.shape[0] not in (1, count):
            raise InputError(
                f"{name}: has {context.shape[0]} rows for {count} samples. Give one row, or one for each sample."
            )


def rows(conditioning: Conditioning, start: int, stop: int, count: int) -> Conditioning:
    """The part of a conditioning that belongs to some of the samples."""

    def part(value: Any) -> Any:
        several = isinstance(value, Tensor) and value.ndim > 1 and value.shape[0] == count > 1
        return value[start:stop] if several else value

    return [[part(context), {key: part(value) for key, value in extra.items()}] for context, extra in conditioning]


def _sample_chunk(
    denoiser: ComfyDenoiser,
    latents: Tensor,
    masks: Tensor | None,
    positive: Conditioning,
    negative: Conditioning,
    settings: SamplingSettings,
    progress: Progress,
    reweighting: ReweightingSettings | None,
) -> Tensor:
    model = denoiser.model
    cells = torch.ones_like(latents[:, :1]) if masks is None else masks
    if reweighting is not None and any(COLUMNS in extra for _, extra in positive):
        model = _with_reweighting(model, reweighting, latents, cells)
    noise = sample_noise(len(latents), tuple(latents.shape[1:]), settings.seed, torch.device("cpu"))
    before = progress.done
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def on_step(step: int, clean: Tensor, _: Tensor, total: int) -> None:
        preview = previewer.decode_latent_to_preview_image("JPEG", clean) if previewer else None
        share = min((step + 1) / max(total, 1), 1.0)
        progress.at(before + round(share * settings.steps * len(latents)), preview)

    sampled = comfy.sample.sample(
        model,
        noise,
        settings.steps,
        settings.cfg,
        settings.sampler_name,
        settings.scheduler,
        positive,
        negative,
        latents,
        denoise=settings.denoise,
        noise_mask=masks,
        callback=on_step,
        disable_pbar=True,
        seed=settings.seed,
    )
    progress.at(before + settings.steps * len(latents))
    return sampled.to(latents) * cells + latents * (1 - cells)


# Re-weighting


class GainSource(Protocol):
    """Where a cross-attention patch gets the weights of the running model call from."""

    def gain(self, length: int, options: Mapping[str, Any]) -> AttentionGain | None:
        """Weights for a context of ``length`` rows; None leaves the layer as it is."""
        ...


@dataclass(frozen=True)
class FixedGain:
    """The same weights for every call."""

    weights: AttentionGain

    def gain(self, length: int, options: Mapping[str, Any]) -> AttentionGain:
        return self.weights

    def __deepcopy__(self, _: Any) -> FixedGain:
        return self


class _SamplingGain:
    """The weights of one sampling run: learns from each step's clean estimate, speaks for the positive half only."""

    def __init__(self, reweighter: Reweighter, count: int) -> None:
        self._reweighter, self._count = reweighter, count
        self._columns: dict[uuid.UUID, Tensor] = {}
        self._current: AttentionGain | None = None

    def __deepcopy__(self, _: Any) -> _SamplingGain:
        # Cloning a model copies its patches; a copy of this would never hear of the next step.
        return self

    def around_model_call(
        self, executor: Callable[..., Any], model: Any, conds: Any, x: Tensor, sigma: Tensor, options: dict[str, Any]
    ) -> Any:
        """Wraps each evaluation of the model: which entries carry the anomaly, and how far the run is."""
        self._columns = {entry["uuid"]: entry[COLUMNS] for entry in conds[0] or () if COLUMNS in entry}
        sigmas = options["transformer_options"]["sample_sigmas"]
        index = int((sigmas > sigma.flatten()[0] * (1 + 1e-5)).sum())
        self._current = self._reweighter.gain(index / max(len(sigmas) - 1, 1))
        return executor(model, conds, x, sigma, options)

    def after_guidance(self, arguments: dict[str, Any]) -> Tensor:
        """Sees the clean estimate before the host blends the background in."""
        self._reweighter.observe(arguments["denoised"])
        return arguments["denoised"]

    def gain(self, length: int, options: Mapping[str, Any]) -> AttentionGain | None:
        current = self._current
        if current is None:
            return None
        weights, columns = [], []
        for index, entry in zip(options["cond_or_uncond"], options["uuids"], strict=True):
            # The host gives the negative half copies of some positive entries under the same id.
            own = self._columns.get(entry) if index == 0 else None
            fits = own is not None and length % len(own) == 0
            weights.append(current.weights if fits else torch.ones_like(current.weights))
            chosen = (
                own.repeat(length // len(own)) if own is not None and fits else torch.zeros(length, dtype=torch.bool)
            )
            columns.append(chosen.to(current.weights.device).expand(self._count, -1))
        return replace(current, weights=torch.cat(weights), columns=torch.cat(columns))


def _with_reweighting(model: Any, settings: ReweightingSettings, latents: Tensor, cells: Tensor) -> Any:
    """A clone of MODEL that re-weights its cross-attention; MODEL itself when there is nothing to do."""
    # The columns are those of each conditioning entry, known when the model is called.
    columns = torch.zeros(1, dtype=torch.bool)
    y0 = model.model.process_latent_in(latents).to(model.load_device)
    reweighter = build_reweighter(settings, y0, cells.to(y0), columns)
    if reweighter is None:
        return model
    patched = model.clone()
    source = _SamplingGain(reweighter, len(latents))
    replace_cross_attention(patched.model_options, model.model.diffusion_model, source)
    patched.set_model_sampler_post_cfg_function(source.after_guidance)
    patched.add_wrapper_with_key(
        comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, "anomalydiffusion", source.around_model_call
    )
    return patched


class _CrossAttentionPatch:
    """Replaces the attention of one block by the re-weighted one, around a patch that was there before."""

    def __init__(self, source: GainSource, inner: Callable[..., Tensor] | None) -> None:
        self._source, self._inner = source, inner

    def __deepcopy__(self, _: Any) -> _CrossAttentionPatch:
        return self

    def to(self, *_: Any) -> _CrossAttentionPatch:
        """ComfyUI moves patches with the model; this one holds no tensors."""
        return self

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        heads = extra_options["n_heads"]

        def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
            return comfy.ldm.modules.attention.optimized_attention(
                q, k, v, heads, attn_precision=extra_options["attn_precision"], transformer_options=extra_options
            )

        gain = self._source.gain(k.shape[1], extra_options)
        if gain is None:
            return attention(q, k, v, heads) if self._inner is None else self._inner(q, k, v, extra_options)
        height, width = extra_options["activations_shape"][-2:]
        weighted = gain.attend(q, k, v, heads, height, width, attention)
        if self._inner is None:
            return weighted
        # The other patch's result plus what the weights change.
        return self._inner(q, k, v, extra_options) + weighted - attention(q, k, v, heads)


def replace_cross_attention(model_options: dict[str, Any], unet: nn.Module, source: GainSource) -> None:
    """Put the re-weighting into ``model_options`` for every cross-attention block of ``unet``."""
    present = model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    for name in ("input", "middle", "output"):
        part = getattr(unet, f"{name}_block" if name == "middle" else f"{name}_blocks")
        for number, block in enumerate([part] if name == "middle" else part):
            for module in block.modules():
                for index in range(len(getattr(module, "transformer_blocks", ()))):
                    inner = present.get((name, number, index), present.get((name, number)))
                    patch = _CrossAttentionPatch(source, inner)
                    comfy.model_patcher.set_model_options_patch_replace(
                        model_options, patch, "attn2", name, number, index
                    )
