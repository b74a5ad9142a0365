"""The adapter to ComfyUI, third part: its samplers, with per-sample seeds and re-weighted attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import comfy.sample
import comfy.samplers
import latent_preview
import torch
from torch import Tensor

from ...anomalydiffusion_core.errors import InputError
from ...anomalydiffusion_core.sampling.ddim import sample_noise
from ...anomalydiffusion_core.sampling.reweighting import ReweightingSettings
from .attention import with_reweighting
from .conditioning import check_conditioning, has_columns, select
from .denoiser import ComfyDenoiser, Conditioning
from .progress import Progress

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


@dataclass(frozen=True)
class Weighting:
    """Re-weighting of one call. pictures [N, 3, H, W] in [0, 1]: what the latents are of, for decoded differences."""

    settings: ReweightingSettings
    pictures: Tensor | None = None

    def part(self, start: int, stop: int) -> Weighting:
        """That of some of the samples."""
        return Weighting(self.settings, None if self.pictures is None else self.pictures[start:stop])


def sample_latents(
    denoiser: ComfyDenoiser,
    latents: Tensor,
    masks: Tensor | None,
    positive: Conditioning,
    negative: Conditioning | None,
    settings: SamplingSettings,
    progress: Progress,
    weighting: Weighting | None = None,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """Sample over ``latents`` [N, C, h, w] (VAE scale, CPU) inside ``masks`` [N, 1, h, w] of {0, 1}, or everywhere.

    Sample i uses ``seeds[i]`` alone, by default ``settings.seed + i``. Conditioning has one row, or one per sample.
    ``progress`` goes on by ``settings.steps`` per sample. Raises InputError for a cfg other than 1 without a negative
    and for conditioning of another width or number of rows.
    """
    count = len(latents)
    if settings.cfg != 1 and negative is None:
        raise InputError(f"cfg: {settings.cfg:g} needs a negative conditioning. Connect one or set cfg to 1.")
    for name, conditioning in (("positive", positive), ("negative", negative)):
        check_conditioning(denoiser, conditioning, name, count)
    seeds = range(settings.seed, settings.seed + count) if seeds is None else seeds
    done = []
    for start in range(0, count, settings.chunk):
        stop = min(start + settings.chunk, count)
        done.append(
            _sample_chunk(
                denoiser,
                latents[start:stop],
                None if masks is None else masks[start:stop],
                select(positive, range(start, stop), count),
                # At cfg 1 the host skips the negative, but it wants one.
                select(negative or positive, range(start, stop), count),
                settings,
                progress,
                None if weighting is None else weighting.part(start, stop),
                seeds[start:stop],
            )
        )
    return torch.cat(done)


def _sample_chunk(
    denoiser: ComfyDenoiser,
    latents: Tensor,
    masks: Tensor | None,
    positive: Conditioning,
    negative: Conditioning,
    settings: SamplingSettings,
    progress: Progress,
    weighting: Weighting | None,
    seeds: Sequence[int],
) -> Tensor:
    model = denoiser.model
    cells = torch.ones_like(latents[:, :1]) if masks is None else masks
    if weighting is not None and has_columns(positive):
        model = with_reweighting(denoiser, weighting.settings, latents, cells, weighting.pictures, settings.steps)
    shape = tuple(latents.shape[1:])
    noise = torch.cat([sample_noise(1, shape, seed, torch.device("cpu")) for seed in seeds])
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
        seed=seeds[0],
    )
    progress.at(before + settings.steps * len(latents))
    return sampled.to(latents) * cells + latents * (1 - cells)
