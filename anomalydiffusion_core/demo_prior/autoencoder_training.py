"""First stage of pretraining: the autoencoder, on crops of rendered images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..backends.ldm_autoencoder import Autoencoder
from .renders import RenderSource, random_crops
from .settings import PretrainSettings
from .stages import Report, Stage, mixed_precision

LATENT_NOISE = 0.08
PEAK_RATE = 6e-4
MASK_WEIGHT = 2.0
"""How much more a pixel of a defect counts."""
KEPT, FIRST, FRESH = 600, 120, 2
"""Images that crops are taken from, those of the start, and new ones a step."""


def train_autoencoder(
    out: Path, seconds: float, seed: int, report: Report, settings: PretrainSettings, device: torch.device
) -> Autoencoder:
    """Train, or resume from `<out>/autoencoder.pt`, until `seconds` are spent; returns the averaged network.

    Small crops first (edges and colours), larger ones for the last third (context).
    """
    torch.manual_seed(seed)
    model = Autoencoder(settings.autoencoder()).to(device)
    stage = Stage(out / "autoencoder.pt", model, PEAK_RATE, decay=0.997, weight_decay=1e-4, seconds=seconds)
    if stage.budget.share < 1.0:
        rng = np.random.default_rng([seed, stage.step, 1])
        with RenderSource(settings.source, seed, 256, settings.source.mask_share, settings.workers) as source, stage:
            renders = source.take(FIRST)
            stage.budget.restart()
            while (share := stage.budget.share) < 1.0:
                if source.ready():
                    renders = (renders + source.take(FRESH))[-KEPT:]
                crop, batch = (64, settings.crops) if share < 0.65 else (128, settings.crops // 3)
                images, masks = (part.to(device) for part in random_crops(rng, renders, batch, crop))
                with mixed_precision(device):
                    loss = reconstruction_loss(model, images, masks, settings.texture)
                stage.advance(loss)
                if stage.step % 20 == 0:
                    report("autoencoder", share, f"step {stage.step} loss {loss.item():.4f}")
    stage.finish()
    return model


def reconstruction_loss(model: Autoencoder, images: Tensor, masks: Tensor, texture: float = 0.0) -> Tensor:
    """L1 and squared error of colours and of gradients at two scales, and a pull of the latents to unit deviation.

    Defects count more, so that a scratch of one pixel survives. `texture` weights the difference of the strength of
    fine detail, averaged over 8 x 8 pixels: noise that cannot be kept is then replaced by as much other noise instead
    of being smoothed away.

    Args:
        images: [B, 3, H, W] in [0, 1]; masks: [B, 1, H, W], 1 on defects.
    """
    latents = model.encode(images)
    output = model.decode(latents + LATENT_NOISE * torch.randn_like(latents)).float()
    counts = 1 + MASK_WEIGHT * masks
    error = output - images
    loss = (counts * (error.abs() + 2.0 * error.square())).mean()
    coarse = functional.avg_pool2d(error, 2)
    for difference, weight in ((error, counts), (coarse, functional.avg_pool2d(counts, 2))):
        for axis in (2, 3):
            kept = weight.narrow(axis, 1, weight.shape[axis] - 1)
            loss = loss + 0.2 * (kept * difference.diff(dim=axis).abs()).mean()
    if texture:
        loss = loss + texture * functional.l1_loss(_detail(output), _detail(images))
    latents = latents.float()
    mean, variance = latents.mean((0, 2, 3)), latents.var((0, 2, 3))
    return loss + 0.01 * (mean.square() + (variance - 1).square()).mean()


def _detail(images: Tensor) -> Tensor:
    """Root mean square, over 8 x 8 pixels, of what a 3 x 3 average takes away; [B, 3, H/8, W/8]."""
    fine = images - functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    return (functional.avg_pool2d(fine.square(), 8) + 1e-6).sqrt()
