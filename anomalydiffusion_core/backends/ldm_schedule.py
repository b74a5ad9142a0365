"""The noise schedule of latent diffusion: linear in the square root of beta, 1000 steps."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 1000


def alphas_cumprod() -> Tensor:
    """Cumulative product of 1 - beta, float32 [1000]; beta from 0.00085 to 0.012."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()
