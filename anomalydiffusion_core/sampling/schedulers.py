"""The core's own sampler: diffusers' schedulers on the noise levels of ComfyUI, with its rule for masks.

Same names, same noise levels and same numbers as ComfyUI's samplers, so that a workflow and a command generate the
same image. Latents are x_0 + sigma * noise here (variance exploding); the schedulers are fed with clean estimates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..conditioning.context import ContextConditioning
from ..denoiser import Denoiser, NoiseSchedule, network_input
from ..progress import Progress
from .attention_gain import AttentionGain
from .reweighting import DecodedDifference, Reweighter
from .sampler import VAE_STEPS, BatchedSampler, SamplingSettings, Weighting, starting_noise

EULER, DDIM, DPMPP_2M, UNI_PC, UNI_PC_BH2 = "euler", "ddim", "dpmpp_2m", "uni_pc", "uni_pc_bh2"
VAE_BATCH = 8
"""Images per call of the autoencoder."""
LONGEST_REPEAT = 4
"""Contexts of two lengths are repeated to a common one, unless that is longer than the shorter one by this factor."""


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
        schedule = self.denoiser.schedule
        sigmas = noise_levels(schedule, settings)
        stepper = _Stepper(settings.sampler_name, sigmas)
        y0 = latents.to(device)
        own = torch.ones_like(y0[:, :1]) if cells is None else cells.to(device)
        noise = starting_noise(seeds, latents.shape[1:]).to(device)
        # As in ComfyUI, where its DDIM draws the noise of the background apart.
        ddim = settings.sampler_name == DDIM
        background = starting_noise([seed + 1 for seed in seeds], latents.shape[1:]).to(device) if ddim else noise
        first, largest = sigmas[0], float(schedule.sigmas[-1])
        full = float(first) > largest or math.isclose(float(first), largest, rel_tol=1e-5)
        x = noise * (torch.sqrt(1.0 + first**2.0) if full else first).to(device) + y0
        reweighter = self._reweighter(weighting, y0, own, positive, settings.steps)
        guided = _Guided(self.denoiser, positive, negative, settings, count)
        before, steps = progress.done, len(sigmas) - 1
        for step in range(steps):
            sigma = sigmas[step].to(device).expand(count)
            time = float(schedule.timestep(sigma[:1]))
            region = own if reweighter is None or cells is None else reweighter.region(time)
            noisy_normal = background * sigma.view(-1, 1, 1, 1) + y0
            seen = x if cells is None else x * region + noisy_normal * (1.0 - region)
            gain = None
            if reweighter is not None:
                alone = guided.part(positive, seen, sigma)
                gain = reweighter.before_step(network_input(seen, sigma), time, step / steps, alone)
            clean = guided(seen, sigma, gain)
            if reweighter is not None:
                reweighter.after_step(step, clean)
            if cells is not None:
                clean = clean * region + y0 * (1.0 - region)
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
    """The clean estimate with classifier-free guidance; only the positive half is ever re-weighted.

    Both halves are one call of the model and share a context length, as in ComfyUI: then they round alike.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        positive: ContextConditioning,
        negative: ContextConditioning | None,
        settings: SamplingSettings,
        count: int,
    ) -> None:
        self._denoiser, self._count = denoiser, count
        self._positive, self._negative = positive, negative if settings.guided else None
        self._cfg = settings.cfg

    def __call__(self, x: Tensor, sigma: Tensor, gain: AttentionGain | None) -> Tensor:
        if self._negative is None:
            return self.part(self._positive, x, sigma, gain)()
        positive, negative = self._rows(self._positive), self._rows(self._negative)
        lengths = positive.shape[1], negative.shape[1]
        common = math.lcm(*lengths)
        if common > LONGEST_REPEAT * min(lengths):
            clean = self.part(self._positive, x, sigma, gain)()
            plain = self.part(self._negative, x, sigma)()
        else:
            halves = [rows.repeat(1, common // rows.shape[1], 1) for rows in (negative, positive)]
            both = None if gain is None else _for_second_half(gain, common)
            plain, clean = self._denoiser.denoised(
                torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat(halves), both
            ).chunk(2)
        return plain + (clean - plain) * self._cfg

    def part(
        self, conditioning: ContextConditioning, x: Tensor, sigma: Tensor, gain: AttentionGain | None = None
    ) -> Callable[[], Tensor]:
        """What computes the clean estimate of ``x`` for one conditioning."""
        return lambda: self._denoiser.denoised(x, sigma, self._rows(conditioning), gain)

    def _rows(self, conditioning: ContextConditioning) -> Tensor:
        return conditioning.rows.to(self._denoiser.device).expand(self._count, -1, -1)


def _for_second_half(gain: AttentionGain, length: int) -> AttentionGain:
    """The weights of a call whose first half is left alone, for contexts of a common length."""
    count = len(gain.weights)
    columns = gain.columns.expand(count, -1) if gain.columns.ndim == 1 else gain.columns
    columns = columns.repeat(1, length // columns.shape[1])
    return replace(
        gain,
        weights=torch.cat([torch.ones_like(gain.weights), gain.weights]),
        columns=torch.cat([torch.zeros_like(columns), columns]),
    )


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


def noise_levels(schedule: NoiseSchedule, settings: SamplingSettings) -> Tensor:
    """The noise levels of a run on a model's schedule, falling to 0, float32 [steps + 1].

    As in ComfyUI: with denoise below 1 the last steps of a longer run; UniPC leaves out the last level above 0.
    """
    steps = settings.steps if settings.denoise > 0.9999 else int(settings.steps / settings.denoise)
    skips = settings.sampler_name in (UNI_PC, UNI_PC_BH2)
    sigmas = torch.tensor([*SCHEDULERS[settings.scheduler](schedule, steps + skips), 0.0])
    if skips:
        sigmas = torch.cat([sigmas[:-2], sigmas[-1:]])
    return sigmas if settings.denoise > 0.9999 else sigmas[-(settings.steps + 1) :]


def _at(schedule: NoiseSchedule, times: Tensor) -> list[float]:
    levels: list[float] = schedule.level(times).tolist()
    return levels


def _normal(schedule: NoiseSchedule, steps: int) -> list[float]:
    return _at(schedule, torch.linspace(len(schedule.sigmas) - 1, 0, steps))


def _sgm_uniform(schedule: NoiseSchedule, steps: int) -> list[float]:
    return _at(schedule, torch.linspace(len(schedule.sigmas) - 1, 0, steps + 1)[:-1])


def _simple(schedule: NoiseSchedule, steps: int) -> list[float]:
    stride = len(schedule.sigmas) / steps
    return [float(schedule.sigmas[-(1 + int(step * stride))]) for step in range(steps)]


def _ddim_uniform(schedule: NoiseSchedule, steps: int) -> list[float]:
    return schedule.sigmas[1 :: max(len(schedule.sigmas) // steps, 1)].flip(0).tolist()


def _karras(schedule: NoiseSchedule, steps: int) -> list[float]:
    low, high, rho = float(schedule.sigmas[0]), float(schedule.sigmas[-1]), 7.0
    start, end = high ** (1 / rho), low ** (1 / rho)
    levels: list[float] = ((start + torch.linspace(0, 1, steps) * (end - start)) ** rho).tolist()
    return levels


def _exponential(schedule: NoiseSchedule, steps: int) -> list[float]:
    first, last = math.log(schedule.sigmas[-1]), math.log(schedule.sigmas[0])
    levels: list[float] = torch.linspace(first, last, steps).exp().tolist()
    return levels


def _kl_optimal(schedule: NoiseSchedule, steps: int) -> list[float]:
    share = torch.arange(steps, dtype=torch.float) / (steps - 1)
    low, high = math.atan(float(schedule.sigmas[0])), math.atan(float(schedule.sigmas[-1]))
    levels: list[float] = (share * low + (1 - share) * high).tan().tolist()
    return levels


SCHEDULERS: dict[str, Callable[[NoiseSchedule, int], list[float]]] = {
    "simple": _simple,
    "sgm_uniform": _sgm_uniform,
    "karras": _karras,
    "exponential": _exponential,
    "ddim_uniform": _ddim_uniform,
    "normal": _normal,
    "kl_optimal": _kl_optimal,
}
"""ComfyUI's schedulers: from a model's noise levels and a number of steps to the levels above 0."""
