"""ComfyUI's samplers as the core's Sampler, with per-sample seeds and re-weighted attention."""

from __future__ import annotations

from collections.abc import Sequence

import comfy.sample
import comfy.samplers
import latent_preview
import torch
from torch import Tensor

from ...anomalydiffusion_core.progress import Progress
from ...anomalydiffusion_core.sampling.sampler import BatchedSampler, SamplingSettings, Weighting, starting_noise
from .conditioning import ComfyConditioning
from .denoiser import ComfyDenoiser
from .reweighting import with_reweighting

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


class ComfySampler(BatchedSampler):
    """ComfyUI's samplers on a MODEL and a VAE; latents are in the VAE's scale, which is that of a LATENT."""

    samplers, schedulers = SAMPLERS, SCHEDULERS

    def __init__(self, denoiser: ComfyDenoiser) -> None:
        self.denoiser = denoiser

    def encode(self, images: Tensor, progress: Progress) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to latents in the VAE's scale."""
        return self.denoiser.vae_encode(images, progress)

    def decode(self, latents: Tensor, progress: Progress) -> Tensor:
        """Latents in the VAE's scale to images [B, 3, H, W] in [0, 1]."""
        return self.denoiser.vae_decode(latents, progress)

    def part_size(self, settings: SamplingSettings) -> int:
        """Samples per call; 1 where they would depend on each other."""
        return settings.batch_size if settings.sampler_name in BATCHED_SAMPLERS else 1

    def sample_part(
        self,
        latents: Tensor,
        cells: Tensor | None,
        positive: ComfyConditioning,
        negative: ComfyConditioning | None,
        settings: SamplingSettings,
        progress: Progress,
        weighting: Weighting | None,
        seeds: Sequence[int],
    ) -> Tensor:
        """One call of the host's sampler."""
        model = self.denoiser.model
        own = torch.ones_like(latents[:, :1]) if cells is None else cells
        if weighting is not None and positive.has_columns:
            model = with_reweighting(self.denoiser, weighting, latents, own, settings.steps)
        before = progress.done
        previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

        def on_step(step: int, clean: Tensor, _: Tensor, total: int) -> None:
            preview = previewer.decode_latent_to_preview_image("JPEG", clean) if previewer else None
            share = min((step + 1) / max(total, 1), 1.0)
            progress.at(before + round(share * settings.steps * len(latents)), preview)

        sampled = comfy.sample.sample(
            model,
            starting_noise(seeds, latents.shape[1:]),
            settings.steps,
            settings.cfg,
            settings.sampler_name,
            settings.scheduler,
            positive.entries,
            # At cfg 1 the host skips the negative, but it wants one.
            (negative or positive).entries,
            latents,
            denoise=settings.denoise,
            noise_mask=cells,
            callback=on_step,
            disable_pbar=True,
            seed=seeds[0],
        )
        progress.at(before + settings.steps * len(latents))
        return sampled.to(latents) * own + latents * (1 - own)
