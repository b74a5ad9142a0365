"""First stage of pretraining: the autoencoder, on crops of rendered pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .autoencoder import Autoencoder
from .pictures import PictureRing, random_crops
from .stages import Budget, MovingAverage, Report, StageState, cosine_rate

LATENT_NOISE = 0.08
PEAK_RATE = 6e-4
SAVE_EVERY = 60.0


def train_autoencoder(out: Path, seconds: float, seed: int, report: Report) -> Autoencoder:
    """Train, or go on from `<out>/autoencoder.pt`, until `seconds` are spent; returns the averaged network.

    Small crops first (edges and colours), larger ones for the last third (context).
    """
    torch.manual_seed(seed)
    model = Autoencoder()
    average = MovingAverage(model, 0.997)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=1e-4, betas=(0.9, 0.99))
    path = out / "autoencoder.pt"
    state = StageState.load(path)
    step = 0
    if state is not None:
        model.load_state_dict(state.module)
        optimizer.load_state_dict(state.optimizer)
        average.values, average.steps, step = state.average, state.steps, state.steps
    budget = Budget(seconds, state.spent if state else 0.0)
    if budget.share < 1.0:
        ring = PictureRing(seed + step, 256, capacity=600, object_share=0.12)
        rng = np.random.default_rng([seed, step, 1])
        ring.renew(120)
        budget.restart()
    last_save = budget.spent
    while (share := budget.share) < 1.0:
        ring.renew(2)
        crop, batch = (64, 12) if share < 0.65 else (128, 4)
        loss = reconstruction_loss(model, random_crops(rng, ring.pictures, batch, crop))
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(share, PEAK_RATE)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model)
        step += 1
        if step % 20 == 0:
            report("autoencoder", share, f"step {step} loss {loss.item():.4f}")
        if budget.spent - last_save > SAVE_EVERY:
            last_save = budget.spent
            _save(path, model, average, optimizer, step, budget)
    _save(path, model, average, optimizer, step, budget)
    model.load_state_dict(average.values)
    return model.eval().requires_grad_(False)


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


def _save(
    path: Path, model: Autoencoder, average: MovingAverage, optimizer: torch.optim.Optimizer, step: int, budget: Budget
) -> None:
    StageState(model.state_dict(), average.values, optimizer.state_dict(), step, budget.spent).save(path)
