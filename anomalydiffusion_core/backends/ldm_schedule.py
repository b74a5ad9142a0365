"""The noise schedule of latent diffusion: linear in the square root of beta, 1000 steps."""

from __future__ import annotations

import torch
from torch import Tensor

from ..denoiser import NoiseSchedule

STEPS = 1000


def noise_schedule() -> NoiseSchedule:
    """The levels for beta from 0.00085 to 0.012."""
    return NoiseSchedule.of_betas(torch.linspace(0.00085**0.5, 0.012**0.5, STEPS, dtype=torch.float64) ** 2)


def alphas_cumprod() -> Tensor:
    """Cumulative product of 1 - beta, float32 [1000]."""
    return noise_schedule().alphas_cumprod
