"""The core's own sampler: diffusers' schedulers on the noise levels of ComfyUI, with its rule for masks.

Same names, same noise levels and same numbers as ComfyUI's samplers, so that a workflow and a command generate the
same image. Latents are x_0 + sigma * noise here (variance exploding); the schedulers are fed with clean estimates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..conditioning.context import ContextConditioning
from ..denoiser import Denoiser, schedule_sigmas, timestep_of
from ..progress import Progress
from .attention_gain import AttentionGain
from .reweighting import DecodedDifference, Reweighter
from .sampler import VAE_STEPS, BatchedSampler, SamplingSettings, Weighting, starting_noise

EULER, DDIM, DPMPP_2M, UNI_PC, UNI_PC_BH2 = "euler", "ddim", "dpmpp_2m", "uni_pc", "uni_pc_bh2"
VAE_BATCH = 8
"""Images per call of the autoencoder."""


class SchedulerSampler(BatchedSampler):
    """A Sampler over any Denoiser; its conditioning is :class:`ContextConditioning`."""

    samplers = (EULER, DDIM, DPMPP_2M, UNI_PC, UNI_PC_BH2)

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.schedulers = tuple(SCHEDULERS)

    @torch.no_grad()
    def encode(self, images: Tensor, progress: Progress) -> Tensor:
        """As of a Sampler."""
        return _in_parts(self.denoiser.encode, images.to(self.denoiser.device), progress)

    @torch.no_grad()
    def decode(self, latents: Tensor, progress: Progress) -> Tensor:
        """As of a Sampler."""
        return _in_parts(self.denoiser.decode, latents.to(self.denoiser.device), progress)

    @torch.no_grad()
    def sample_part(
        self,
        latents: Tensor,
        cells: Tensor | None,
        positive: ContextConditioning,
        negative: ContextConditioning | None,
        settings: SamplingSettings,
        progress: Progress,
        weighting: Weighting | None,
        seeds: Sequence[int],
    ) -> Tensor:
        """Sample all of these at once."""
        device, count = self.denoiser.device, len(latents)
        schedule = schedule_sigmas(self.denoiser.alphas_cumprod)
        sigmas = noise_levels(schedule, settings)
        stepper = _Stepper(settings.sampler_name, sigmas)
        y0 = latents.to(device)
        own = torch.ones_like(y0[:, :1]) if cells is None else cells.to(device)
        noise = starting_noise(seeds, latents.shape[1:]).to(device)
        # As in ComfyUI, where its DDIM draws the noise of the background apart.
        ddim = settings.sampler_name == DDIM
        background = starting_noise([seed + 1 for seed in seeds], latents.shape[1:]).to(device) if ddim else noise
        first, largest = float(sigmas[0]), float(schedule[-1])
        full = first > largest or math.isclose(first, largest, rel_tol=1e-5)
        x = y0 + noise * ((1 + first**2) ** 0.5 if full else first)
        reweighter = self._reweighter(weighting, y0, own, positive, settings.steps)
        guided = _Guided(self.denoiser, schedule, positive, negative, settings, count)
        before, steps = progress.done, len(sigmas) - 1
        for step, sigma in enumerate(sigmas[:-1].tolist()):
            time = round(timestep_of(schedule, sigma))
            region = own if reweighter is None or cells is None else reweighter.region(time)
            seen = x if cells is None else x * region + (y0 + background * sigma) * (1 - region)
            gain = None
            if reweighter is not None:
                noisy = seen / (1 + sigma**2) ** 0.5
                alone = guided.part(positive, seen, sigma)
                gain = reweighter.before_step(noisy, time, step / steps, alone)
            clean = guided(seen, sigma, gain)
            if reweighter is not None:
                reweighter.after_step(step, clean)
            if cells is not None:
                clean = clean * region + y0 * (1 - region)
            x = stepper.step(step, clean, x)
            progress.at(before + round((step + 1) / steps * settings.steps * count))
        return (x * own + y0 * (1 - own)).cpu()

    def _reweighter(
        self, weighting: Weighting | None, y0: Tensor, cells: Tensor, positive: ContextConditioning, steps: int
    ) -> Reweighter | None:
        if weighting is None or not weighting.settings.active or positive.columns is None:
            return None
        decoded = None
        if weighting.images is not None:
            decoded = DecodedDifference(weighting.images, cells, self.denoiser.downscale, self.denoiser.decode)
        return Reweighter(weighting.settings, y0, cells, positive.columns, steps, decoded)


def _in_parts(function: Callable[[Tensor], Tensor], values: Tensor, progress: Progress) -> Tensor:
    done = []
    for part in values.split(VAE_BATCH):
        done.append(function(part).float().cpu())
        progress.step(len(part) * VAE_STEPS)
    return torch.cat(done)


class _Guided:
    """The clean estimate with classifier-free guidance; only the positive half is ever re-weighted."""

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: Tensor,
        positive: ContextConditioning,
        negative: ContextConditioning | None,
        settings: SamplingSettings,
        count: int,
    ) -> None:
        self._denoiser, self._schedule, self._count = denoiser, schedule, count
        self._positive, self._negative = positive, negative if settings.guided else None
        self._cfg = settings.cfg

    def __call__(self, x: Tensor, sigma: float, gain: AttentionGain | None) -> Tensor:
        clean = self.part(self._positive, x, sigma, gain)()
        if self._negative is None:
            return clean
        plain = self.part(self._negative, x, sigma)()
        return plain + (clean - plain) * self._cfg

    def part(
        self, conditioning: ContextConditioning, x: Tensor, sigma: float, gain: AttentionGain | None = None
    ) -> Callable[[], Tensor]:
        """What computes the clean estimate of ``x`` for one conditioning."""

        def clean() -> Tensor:
            device = self._denoiser.device
            t = torch.full((self._count,), timestep_of(self._schedule, sigma), device=device)
            rows = conditioning.rows.to(device).expand(self._count, -1, -1)
            return x - sigma * self._denoiser.predict_noise(x / (1 + sigma**2) ** 0.5, t, rows, gain)

        return clean


class _Stepper:
    """One of diffusers' schedulers on given noise levels, fed with clean estimates."""

    def __init__(self, name: str, sigmas: Tensor) -> None:
        from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler

        steps = len(sigmas) - 1
        self._exploding = name in (EULER, DDIM)
        self._sigmas = sigmas.clone()
        self._scheduler: Any
        if self._exploding:
            # DDIM without noise of its own is Euler's method on these noise levels.
            euler: Any = EulerDiscreteScheduler(prediction_type="sample")
            euler.is_scale_input_called = True
            self._scheduler = euler
        elif name == DPMPP_2M:
            self._scheduler = DPMSolverMultistepScheduler(prediction_type="sample", final_sigmas_type="zero")
        else:
            self._sigmas[-1] = 0.001  # where ComfyUI's method ends
            self._scheduler = UniPCMultistepScheduler(
                prediction_type="sample",
                solver_order=max(min(3, steps - 1), 1),
                solver_type="bh1" if name == UNI_PC else "bh2",
            )
        self._scheduler.num_inference_steps = steps
        self._scheduler.sigmas = self._sigmas
        self._scheduler.timesteps = torch.arange(steps, 0, -1, dtype=torch.float32)
        self._scheduler.set_begin_index(0)

    def step(self, number: int, clean: Tensor, x: Tensor) -> Tensor:
        """The less noisy latent behind step ``number``."""
        t = self._scheduler.timesteps[number]
        if self._exploding:
            return self._scheduler.step(clean, t, x).prev_sample
        spread = (1 + self._sigmas.square()).sqrt().tolist()
        return self._scheduler.step(clean, t, x / spread[number]).prev_sample * spread[number + 1]


def noise_levels(schedule: Tensor, settings: SamplingSettings) -> Tensor:
    """The noise levels of a run, falling to 0, float32 [steps + 1], for a model's levels ``schedule`` [T], rising.

    As in ComfyUI: with denoise below 1 the last steps of a longer run; UniPC leaves out the last level above 0.
    """
    steps = settings.steps if settings.denoise > 0.9999 else int(settings.steps / settings.denoise)
    skips = settings.sampler_name in (UNI_PC, UNI_PC_BH2)
    sigmas = torch.tensor([*SCHEDULERS[settings.scheduler](schedule, steps + skips), 0.0])
    if skips:
        sigmas = torch.cat([sigmas[:-2], sigmas[-1:]])
    return sigmas if settings.denoise > 0.9999 else sigmas[-(settings.steps + 1) :]


def _at(schedule: Tensor, times: Tensor) -> list[float]:
    """Noise levels at fractional timesteps, interpolated on a logarithmic scale."""
    logs, low = schedule.log(), times.floor().long()
    part = times.frac()
    levels: list[float] = ((1 - part) * logs[low] + part * logs[times.ceil().long()]).exp().tolist()
    return levels


def _normal(schedule: Tensor, steps: int) -> list[float]:
    return _at(schedule, torch.linspace(len(schedule) - 1, 0, steps))


def _sgm_uniform(schedule: Tensor, steps: int) -> list[float]:
    return _at(schedule, torch.linspace(len(schedule) - 1, 0, steps + 1)[:-1])


def _simple(schedule: Tensor, steps: int) -> list[float]:
    return [float(schedule[-(1 + int(step * (len(schedule) / steps)))]) for step in range(steps)]


def _ddim_uniform(schedule: Tensor, steps: int) -> list[float]:
    return schedule[1 :: max(len(schedule) // steps, 1)].flip(0).tolist()


def _karras(schedule: Tensor, steps: int) -> list[float]:
    low, high, rho = float(schedule[0]), float(schedule[-1]), 7.0
    start, end = high ** (1 / rho), low ** (1 / rho)
    levels: list[float] = ((start + torch.linspace(0, 1, steps) * (end - start)) ** rho).tolist()
    return levels


def _exponential(schedule: Tensor, steps: int) -> list[float]:
    levels: list[float] = torch.linspace(math.log(schedule[-1]), math.log(schedule[0]), steps).exp().tolist()
    return levels


def _kl_optimal(schedule: Tensor, steps: int) -> list[float]:
    share = torch.arange(steps, dtype=torch.float) / (steps - 1)
    low, high = math.atan(float(schedule[0])), math.atan(float(schedule[-1]))
    levels: list[float] = (share * low + (1 - share) * high).tan().tolist()
    return levels


SCHEDULERS: dict[str, Callable[[Tensor, int], list[float]]] = {
    "simple": _simple,
    "sgm_uniform": _sgm_uniform,
    "karras": _karras,
    "exponential": _exponential,
    "ddim_uniform": _ddim_uniform,
    "normal": _normal,
    "kl_optimal": _kl_optimal,
}
"""ComfyUI's schedulers: from a model's noise levels and a number of steps to the levels above 0."""
