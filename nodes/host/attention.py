"""The adapter to ComfyUI, fifth part: adaptive attention re-weighting as patches of a cloned MODEL.

Nothing survives a run: patches, wrappers and the state behind them live in a clone that one run uses. Other patches
stay in force, whatever node set them: a replacement of the same block is called and only what the weights change is
added to its result; patches of the context, and of the output, are called by the host around ours as always.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import torch
from torch import Tensor, nn

from ...anomalydiffusion_core.errors import InputError
from ...anomalydiffusion_core.sampling.attention_gain import AttentionGain
from ...anomalydiffusion_core.sampling.reweighting import (
    DECODED,
    SAME,
    Reweighter,
    ReweightingSettings,
    build_reweighter,
    decoded_difference,
)
from ...anomalydiffusion_core.sampling.windows import common_windows
from .denoiser import COLUMNS, ComfyDenoiser

DECODED_CONTEXT = 4
"""Latent cells around the mask that are decoded with it, so that the decoder sees what borders on it."""


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


def with_reweighting(
    denoiser: ComfyDenoiser,
    settings: ReweightingSettings,
    latents: Tensor,
    cells: Tensor,
    pictures: Tensor | None,
    steps: int,
) -> Any:
    """A clone of the denoiser's MODEL that re-weights its cross-attention; MODEL itself when there is nothing to do.

    latents [B, C, h, w] in the VAE's scale; cells [B, 1, h, w] of {0, 1}; pictures [B, 3, H, W] in [0, 1], of which
    ``latents`` are the latents. Raises InputError for a decoded difference without pictures.
    """
    model = denoiser.model
    # The columns are those of each conditioning entry, known when the model is called.
    columns = torch.zeros(1, dtype=torch.bool)
    y0 = model.model.process_latent_in(latents).to(model.load_device)
    reweighter = build_reweighter(settings, y0, cells.to(y0), columns, steps)
    if reweighter is None:
        return model
    decoded = None
    if settings.source == DECODED:
        if pictures is None:
            raise InputError("difference: a decoded one needs the pictures of the latents. Give them.")
        decoded = _DecodedDifference(denoiser, pictures, cells)
    patched = model.clone()
    source = _SamplingGain(reweighter, model.get_model_object("model_sampling"), decoded)
    replace_cross_attention(patched.model_options, model.model.diffusion_model, source)
    patched.set_model_sampler_post_cfg_function(source.after_guidance)
    patched.add_wrapper_with_key(
        comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, "anomalydiffusion", source.around_model_call
    )
    if settings.mode == "authors":
        source.inner_mask = patched.model_options.get("denoise_mask_function")
        patched.set_model_denoise_mask_function(source.blend_mask)
    return patched


@dataclass(frozen=True)
class _Entry:
    """One entry of a conditioning as the sampler uses it: context length, anomaly columns, area (h, w, y, x)."""

    length: int
    columns: Tensor | None
    area: tuple[int, ...] | None

    def weights(self, weights: Tensor) -> Tensor:
        if self.area is None:
            return weights
        height, width, top, left = self.area
        return weights[:, top : top + height, left : left + width]


class _SamplingGain:
    """The weights of one sampling run: learns from each step's clean estimate, speaks for the positive half only."""

    def __init__(self, reweighter: Reweighter, schedule: Any, decoded: _DecodedDifference | None = None) -> None:
        self._reweighter, self._schedule, self._decoded = reweighter, schedule, decoded
        self.inner_mask: Callable[..., Tensor] | None = None
        self._entries: dict[tuple[int, uuid.UUID], _Entry] = {}
        self._current: AttentionGain | None = None
        self._made: dict[Any, AttentionGain | None] = {}
        self._step = self._decoded_at = -1

    def __deepcopy__(self, _: Any) -> _SamplingGain:
        # Cloning a model copies its patches; a copy of this would never hear of the next step.
        return self

    def around_model_call(
        self, executor: Callable[..., Any], model: Any, conds: Any, x: Tensor, sigma: Tensor, options: dict[str, Any]
    ) -> Any:
        """Wraps each evaluation of the model: which entries carry the anomaly, and how far the run is."""
        self._entries = {
            (half, entry["uuid"]): _entry(entry) for half, part in enumerate(conds) for entry in part or ()
        }
        sigmas = options["transformer_options"]["sample_sigmas"]
        self._step = int((sigmas > sigma.flatten()[0] * (1 + 1e-5)).sum())
        percent = self._step / max(len(sigmas) - 1, 1)
        settings = self._reweighter.settings
        # The host's latents are x_0 + sigma * noise.
        noisy = x / (1 + sigma.flatten()[0].square()).sqrt()
        self._reweighter.see_noisy(noisy, self._time(sigma))
        if settings.source == SAME and settings.in_range(percent):
            self._use(None)
            self._reweighter.observe(executor(model, [conds[0]], x, sigma, options)[0])
        self._use(self._reweighter.gain(percent))
        return executor(model, conds, x, sigma, options)

    def after_guidance(self, arguments: dict[str, Any]) -> Tensor:
        """Sees the clean estimate before the host blends the background in."""
        denoised: Tensor = arguments["denoised"]
        settings = self._reweighter.settings
        if settings.source != SAME:
            self._reweighter.observe(denoised)
        due = self._decoded_at < 0 or self._step >= self._decoded_at + settings.decode_every
        if self._decoded is not None and due:
            self._decoded_at = self._step
            self._reweighter.observe_difference(self._decoded.of(denoised, arguments["model"]))
        return denoised

    def blend_mask(self, sigma: Tensor, mask: Tensor, extra_options: dict[str, Any]) -> Tensor:
        """The grown mask of the ``authors`` mode, in place of the host's denoise mask [B, C, h, w]."""
        mask = self._reweighter.region(self._time(sigma)).to(mask).expand_as(mask)
        return mask if self.inner_mask is None else self.inner_mask(sigma, mask, extra_options=extra_options)

    def _time(self, sigma: Tensor) -> float:
        return float(self._schedule.timestep(sigma.flatten()[:1]).flatten()[0])

    def _use(self, current: AttentionGain | None) -> None:
        self._current = current
        self._made = {}

    def gain(self, length: int, options: Mapping[str, Any]) -> AttentionGain | None:
        if self._current is None:
            return None
        halves, ids = options["cond_or_uncond"], options["uuids"]
        key = (tuple(halves), tuple(ids), length)
        if key not in self._made:
            self._made[key] = self._make(self._current, length, list(zip(halves, ids, strict=True)))
        return self._made[key]

    def _make(self, current: AttentionGain, length: int, chunks: list[tuple[int, uuid.UUID]]) -> AttentionGain | None:
        entries = [self._entries.get(chunk) for chunk in chunks]
        # The host repeats contexts to their common length; a patch may have appended rows after that.
        common = math.lcm(*(entry.length for entry in entries if entry is not None))
        weights, columns = [], []
        for (half, _), entry in zip(chunks, entries, strict=True):
            # The host gives the negative half copies of some positive entries under the same id.
            own = entry.columns if entry is not None and half == 0 and common <= length else None
            maps = current.weights if entry is None else entry.weights(current.weights)
            chosen = torch.zeros(length, dtype=torch.bool)
            if own is not None and entry is not None:
                padded = torch.cat([own, torch.zeros(entry.length - len(own), dtype=torch.bool)])
                chosen[:common] = self._reweighter.settings.chosen_columns(padded).repeat(common // entry.length)
            weights.append(torch.ones_like(maps) if own is None else maps)
            columns.append(chosen.to(maps.device).expand(len(maps), -1))
        return replace(current, weights=torch.cat(weights), columns=torch.cat(columns))


def _entry(entry: Mapping[str, Any]) -> _Entry:
    context = entry.get("model_conds", {}).get("c_crossattn")
    context = entry.get("cross_attn") if context is None else context.cond
    length = 1 if context is None else int(context.shape[1])
    columns = entry.get(COLUMNS)
    area = entry.get("area")
    # What another node cut from the context cannot be told apart: no weights then.
    fits = columns is not None and len(columns) <= length
    return _Entry(length, columns if fits else None, None if area is None else tuple(area))


class _DecodedDifference:
    """Difference of decoded clean estimates to the normal pictures, in a window around the masks."""

    def __init__(self, denoiser: ComfyDenoiser, pictures: Tensor, cells: Tensor) -> None:
        self._denoiser, self._shape = denoiser, cells.shape
        self._corners, self._size = common_windows(cells, DECODED_CONTEXT)
        grid = denoiser.downscale
        height, width = (side * grid for side in self._size)
        self._normals = torch.stack(
            [
                picture[:, top * grid : top * grid + height, left * grid : left * grid + width]
                for picture, (top, left) in zip(pictures, self._corners, strict=True)
            ]
        )

    def of(self, clean: Tensor, model: Any) -> Tensor:
        """Difference maps [B, h, w] of clean estimates [B, C, h, w] in the model's scale, 0 outside the windows."""
        height, width = self._size
        parts = [
            sample[:, top : top + height, left : left + width]
            for sample, (top, left) in zip(clean, self._corners, strict=True)
        ]
        decoded = self._denoiser.vae_decode(model.process_latent_out(torch.stack(parts)))
        # Where memory is short the host may have put the model away for the VAE.
        comfy.model_management.load_models_gpu([model.current_patcher])
        values = decoded_difference(decoded, self._normals, self._denoiser.downscale).to(clean.device)
        maps = torch.zeros(self._shape[0], *self._shape[-2:], device=clean.device)
        for place, (top, left) in enumerate(self._corners):
            maps[place, top : top + height, left : left + width] = values[place]
        return maps


class _CrossAttentionPatch:
    """Replaces the attention of one block by the re-weighted one, around a patch that was there before."""

    def __init__(self, source: GainSource, inner: Callable[..., Tensor] | None) -> None:
        self._source, self._inner = source, inner
        self._added: list[tuple[Callable[..., Tensor], dict[str, Any]]] = []

    def __deepcopy__(self, _: Any) -> _CrossAttentionPatch:
        return self

    def __getattr__(self, name: str) -> Any:
        # The host asks patches for what they need (models to load, a clean-up); the one inside answers.
        if name.startswith("_") or self._inner is None:
            raise AttributeError(name)
        return getattr(self._inner, name)

    def to(self, *arguments: Any) -> _CrossAttentionPatch:
        """ComfyUI moves patches with the model; only one inside may hold tensors."""
        move = getattr(self._inner, "to", None)
        if move is not None:
            self._inner = move(*arguments)
        return self

    def add(self, callback: Callable[..., Tensor], **options: Any) -> None:
        """Some image prompt adapters chain themselves to whatever patch a block has by calling this."""
        self._added.append((callback, options))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        heads = extra_options["n_heads"]

        def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
            return comfy.ldm.modules.attention.optimized_attention(
                q, k, v, heads, attn_precision=extra_options["attn_precision"], transformer_options=extra_options
            )

        result = attention(q, k, v, heads) if self._inner is None else self._inner(q, k, v, extra_options)
        gain = self._source.gain(k.shape[1], extra_options)
        if gain is not None:
            height, width = extra_options["activations_shape"][-2:]
            result = gain.reweight(result, q, k, v, heads, height, width, attention)
        for callback, options in self._added:
            result = result + callback(result, q, k, v, extra_options, **options)
        return result


def replace_cross_attention(model_options: dict[str, Any], unet: nn.Module, source: GainSource) -> None:
    """Put the re-weighting into ``model_options`` for every cross-attention block of ``unet``."""
    present = model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    for name in ("input", "middle", "output"):
        part = getattr(unet, f"{name}_block" if name == "middle" else f"{name}_blocks")
        for number, block in enumerate([part] if name == "middle" else part or ()):
            for module in () if block is None else block.modules():
                for index in range(len(getattr(module, "transformer_blocks", ()))):
                    inner = present.get((name, number, index), present.get((name, number)))
                    patch = _CrossAttentionPatch(source, inner)
                    comfy.model_patcher.set_model_options_patch_replace(
                        model_options, patch, "attn2", name, number, index
                    )
