"""Adaptive attention re-weighting during a run of ComfyUI's samplers, on a clone of the MODEL.

Nothing survives a run: patches, wrappers and the state behind them live in a clone that one run uses.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import comfy.patcher_extension
import torch
from torch import Tensor

from ...anomalydiffusion_core.errors import InputError
from ...anomalydiffusion_core.sampling.attention_gain import AttentionGain
from ...anomalydiffusion_core.sampling.reweighting import AUTHORS, DECODED, DecodedDifference, Reweighter
from ...anomalydiffusion_core.sampling.sampler import Weighting
from .attention import replace_cross_attention
from .conditioning import COLUMNS
from .denoiser import ComfyDenoiser


def with_reweighting(denoiser: ComfyDenoiser, weighting: Weighting, latents: Tensor, cells: Tensor, steps: int) -> Any:
    """A clone of the denoiser's MODEL that re-weights its cross-attention; MODEL itself when there is nothing to do.

    latents [B, C, h, w] in the VAE's scale; cells [B, 1, h, w] of {0, 1}. Raises InputError for a decoded difference
    without images.
    """
    model, settings = denoiser.model, weighting.settings
    if not settings.active:
        return model
    y0 = model.model.process_latent_in(latents).to(model.load_device)
    decoded = None
    if settings.source == DECODED:
        if weighting.images is None:
            raise InputError("difference: decoded requires the images of the latents. Give them.")

        def decode(clean: Tensor) -> Tensor:
            images = denoiser.vae_decode(model.model.process_latent_out(clean))
            # Where memory is short the host may have put the model away for the VAE.
            comfy.model_management.load_models_gpu([model.model.current_patcher])
            return images

        decoded = DecodedDifference(weighting.images, cells, denoiser.downscale, decode)
    # The columns are those of each conditioning entry, known when the model is called.
    columns = torch.zeros(1, dtype=torch.bool)
    reweighter = Reweighter(settings, y0, cells.to(y0), columns, steps, decoded)
    patched = model.clone()
    source = _SamplingGain(reweighter, model.get_model_object("model_sampling"))
    replace_cross_attention(patched.model_options, model.model.diffusion_model, source)
    patched.set_model_sampler_post_cfg_function(source.after_guidance)
    patched.add_wrapper_with_key(
        comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, "anomalydiffusion", source.around_model_call
    )
    if settings.reweighting == AUTHORS:
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

    def __init__(self, reweighter: Reweighter, schedule: Any) -> None:
        self._reweighter, self._schedule = reweighter, schedule
        self.inner_mask: Callable[..., Tensor] | None = None
        self._entries: dict[tuple[int, uuid.UUID], _Entry] = {}
        self._current: AttentionGain | None = None
        self._made: dict[Any, AttentionGain | None] = {}
        self._step = 0

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
        # The host's latents are x_0 + sigma * noise.
        noisy = x / (1 + sigma.flatten()[0].square()).sqrt()
        self._use(None)
        gain = self._reweighter.before_step(
            noisy, self._time(sigma), percent, lambda: executor(model, [conds[0]], x, sigma, options)[0]
        )
        self._use(gain)
        return executor(model, conds, x, sigma, options)

    def after_guidance(self, arguments: dict[str, Any]) -> Tensor:
        """Sees the clean estimate before the host blends the background in."""
        denoised: Tensor = arguments["denoised"]
        self._reweighter.after_step(self._step, denoised)
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
