"""First stage of pretraining: the autoencoder, on crops of rendered images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..backends.ldm_autoencoder import Autoencoder
from .renders import RenderRing, random_crops
from .stages import Report, Stage

LATENT_NOISE = 0.08
PEAK_RATE = 6e-4


def train_autoencoder(out: Path, seconds: float, seed: int, report: Report) -> Autoencoder:
    """Train, or resume from `<out>/autoencoder.pt`, until `seconds` are spent; returns the averaged network.

    Small crops first (edges and colours), larger ones for the last third (context).
    """
    torch.manual_seed(seed)
    model = Autoencoder()
    stage = Stage(out / "autoencoder.pt", model, PEAK_RATE, decay=0.997, weight_decay=1e-4, seconds=seconds)
    if stage.budget.share < 1.0:
        ring = RenderRing(seed + stage.step, 256, capacity=600, object_share=0.12)
        rng = np.random.default_rng([seed, stage.step, 1])
        ring.renew(120)
        stage.budget.restart()
    with stage:
        while (share := stage.budget.share) < 1.0:
            ring.renew(2)
            crop, batch = (64, 12) if share < 0.65 else (128, 4)
            loss = reconstruction_loss(model, random_crops(rng, ring.renders, batch, crop))
            stage.advance(loss)
            if stage.step % 20 == 0:
                report("autoencoder", share, f"step {stage.step} loss {loss.item():.4f}")
    stage.finish()
    return model


def reconstruction_loss(model: Autoencoder, images: Tensor) -> Tensor:
    """L1 and squared error of colours and of gradients at two scales, and a pull of the latents to unit deviation."""
    latents = model.encode(images)
    output = model.decode(latents + LATENT_NOISE * torch.randn_like(latents))
    loss = functional.l1_loss(output, images) + 2.0 * functional.mse_loss(output, images)
    coarse_output, coarse_images = functional.avg_pool2d(output, 2), functional.avg_pool2d(images, 2)
    for a, b in ((output, images), (coarse_output, coarse_images)):
        for axis in (2, 3):
            loss = loss + 0.2 * functional.l1_loss(a.diff(dim=axis), b.diff(dim=axis))
    mean, variance = latents.mean((0, 2, 3)), latents.var((0, 2, 3))
    return loss + 0.01 * (mean.square() + (variance - 1).square()).mean()
