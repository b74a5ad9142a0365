"""Headless sampling with diffusers' DDIM scheduler: blended (paper, Eq. 1) and plain.

Inside ComfyUI its own samplers do this; here is the same algorithm for use without it and for checks. The noise of
sample i comes from the seed ``seed + i`` alone, so a sample does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..errors import InputError
from .attention_gain import AttentionGain
from .blending import check_mask, composite, crop_back, latent_mask, pad_mask_to_multiple, pad_to_multiple
from .reweighting import DECODED, SAME, Reweighter, ReweightingSettings, build_reweighter, decoded_difference

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

OnSample = Callable[[int, int, Tensor], None]
# A U-Net halves its latent up to three times; pictures are padded to what divides evenly.
_CELLS = 8


def ddim_scheduler(alphas_cumprod: Tensor, steps: int) -> DDIMScheduler:
    """diffusers' DDIM (eta 0, eps prediction) on the given noise schedule, set to ``steps`` steps.

    Timesteps are spaced from the very end of the schedule ("trailing"), so that the start is pure noise.
    Raises InputError when ``steps`` is not 1 to the length of the schedule.
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    if not 1 <= steps <= len(alphas_cumprod):
        raise InputError(f"steps: {steps} is not in 1 to {len(alphas_cumprod)}. Choose for example 25.")
    alphas = alphas_cumprod.double().cpu()
    previous = torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])
    scheduler = DDIMScheduler(
        num_train_timesteps=len(alphas),
        trained_betas=(1 - alphas / previous).tolist(),
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type="epsilon",
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    return scheduler


def _step(scheduler: DDIMScheduler, eps: Tensor, t: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """One DDIM step: the next, less noisy latent and the clean estimate."""
    result: Any = scheduler.step(eps, t, x)
    return result.prev_sample, result.pred_original_sample


def sample_noise(count: int, shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    """Starting noise [count, *shape]; entry i is drawn on the CPU from the seed ``seed + i``."""
    draws = [torch.randn(shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(count)]
    return torch.stack(draws).to(device)


class _Guided:
    """Noise prediction with classifier-free guidance; only the positive half is ever re-weighted."""

    def __init__(self, denoiser: Denoiser, context: Tensor, negative: Tensor | None, cfg: float, count: int) -> None:
        if cfg != 1 and negative is None:
            raise InputError(f"cfg: {cfg:g} needs a negative conditioning. Connect one or set cfg to 1.")
        self.denoiser, self.cfg = denoiser, cfg
        self.context = _per_sample(context, count, denoiser, "conditioning")
        self.negative: Tensor | None = None
        if negative is not None and cfg != 1:
            self.negative = _per_sample(negative, count, denoiser, "negative")

    def positive(self, x: Tensor, t: int, gain: AttentionGain | None) -> Tensor:
        """The prediction for the positive conditioning alone."""
        times = torch.full((len(x),), t, dtype=torch.int64, device=x.device)
        return self.denoiser.predict_noise(x, times, self.context, gain)

    def __call__(self, x: Tensor, t: int, gain: AttentionGain | None) -> Tensor:
        eps = self.positive(x, t, gain)
        if self.negative is None:
            return eps
        times = torch.full((len(x),), t, dtype=torch.int64, device=x.device)
        plain = self.denoiser.predict_noise(x, times, self.negative)
        return plain + self.cfg * (eps - plain)


def _per_sample(context: Tensor, count: int, denoiser: Denoiser, name: str) -> Tensor:
    context = context[None] if context.ndim == 2 else context
    if context.shape[-1] != denoiser.context_width:
        raise InputError(
            f"{name}: its width is {context.shape[-1]}, the model's context has {denoiser.context_width}. "
            "Use conditioning made for this model."
        )
    if len(context) not in (1, count):
        raise InputError(f"{name}: has {len(context)} entries for {count} samples. Give one, or one per sample.")
    return context.expand(count, -1, -1).to(denoiser.device)


@torch.no_grad()
def sample_blended(
    denoiser: Denoiser,
    normals: Tensor,
    masks: Tensor,
    context: Tensor,
    negative: Tensor | None = None,
    cfg: float = 1.0,
    steps: int = 25,
    seed: int = 0,
    reweighting: ReweightingSettings | None = None,
    columns: Tensor | None = None,
    feather: int | None = 2,
    on_step: OnSample | None = None,
) -> Tensor:
    """Defects inside ``masks`` on ``normals`` (Eq. 1): pictures [B, 3, H, W] in [0, 1] of the size that went in.

    normals [B, 3, H, W] in [0, 1] and masks [B, 1, H, W] of {0, 1}, not empty; context [B or 1, L, width]; negative is
    used when cfg is not 1. columns: bool [L], the context rows that re-weighting strengthens, all without it.
    feather: width in pixels of the inward transition of the final composite (outside the mask the result equals
    ``normals`` bit for bit); None returns the decoded picture as it is. on_step(step, total, clean estimate) may
    raise. Raises InputError that names the input.
    """
    if normals.ndim != 4 or normals.shape[-2:] != masks.shape[-2:] or len(normals) != len(masks):
        shapes = f"{tuple(normals.shape)} and {tuple(masks.shape)}"
        raise InputError(f"normals and masks: have the shapes {shapes}. Give one mask of the same size per picture.")
    check_mask(masks)
    device, grid = denoiser.device, denoiser.downscale * _CELLS
    normals, masks = normals.to(device), masks.to(device)
    padded, padding = pad_to_multiple(normals, grid)
    cells = latent_mask(pad_mask_to_multiple(masks, grid), denoiser.downscale)
    y0 = denoiser.encode(padded)
    predict = _Guided(denoiser, context, negative, cfg, len(normals))
    scheduler = ddim_scheduler(denoiser.alphas_cumprod, steps)
    columns = torch.ones(predict.context.shape[1], dtype=torch.bool) if columns is None else columns
    reweighter = build_reweighter(reweighting, y0, cells, columns, steps)
    noise = sample_noise(len(normals), tuple(y0.shape[1:]), seed, device)
    times = scheduler.timesteps.tolist()
    x = noise
    for index, t in enumerate(times):
        # The background at this noise level, always from the same noise: a deterministic sampler stays on its path.
        alpha = float(denoiser.alphas_cumprod[t])
        region = cells if reweighter is None else reweighter.region(t)
        x = x * region + (alpha**0.5 * y0 + (1 - alpha) ** 0.5 * noise) * (1 - region)
        gain = None if reweighter is None else _gain(reweighter, predict, x, t, alpha, index / len(times))
        x, clean = _step(scheduler, predict(x, t, gain), t, x)
        if reweighter is not None:
            reweighter.observe(clean)
            if reweighter.settings.source == DECODED and index % reweighter.settings.decode_every == 0:
                reweighter.observe_difference(decoded_difference(denoiser.decode(clean), padded, denoiser.downscale))
        if on_step is not None:
            on_step(index + 1, len(times), clean * cells + y0 * (1 - cells))
    generated = crop_back(denoiser.decode(x * cells + y0 * (1 - cells)), padding)
    return generated if feather is None else composite(generated, normals, masks, feather)


def _gain(
    reweighter: Reweighter, predict: _Guided, x: Tensor, t: int, alpha: float, percent: float
) -> AttentionGain | None:
    """The weights for this step. For the difference of the same step that takes one more call without weights."""
    reweighter.see_noisy(x, t)
    if reweighter.settings.source == SAME and reweighter.settings.in_range(percent):
        eps = predict.positive(x, t, None)
        reweighter.observe((x - (1 - alpha) ** 0.5 * eps) / alpha**0.5)
    return reweighter.gain(percent)


@torch.no_grad()
def sample_plain(
    denoiser: Denoiser,
    context: Tensor,
    count: int,
    size: tuple[int, int],
    negative: Tensor | None = None,
    cfg: float = 1.0,
    steps: int = 25,
    seed: int = 0,
    on_step: OnSample | None = None,
) -> Tensor:
    """``count`` pictures [count, 3, H, W] in [0, 1] of ``size`` (H, W) from noise, for example of masks (Eq. 10).

    Raises InputError for a count below 1 or a size the model's grid does not divide.
    """
    grid = denoiser.downscale
    if count < 1:
        raise InputError(f"count: {count} is not possible. Give at least 1.")
    if any(side < grid or side % grid for side in size):
        raise InputError(f"size: {size[1]} x {size[0]} is no multiple of {grid} on both sides. Choose 256, say.")
    predict = _Guided(denoiser, context, negative, cfg, count)
    scheduler = ddim_scheduler(denoiser.alphas_cumprod, steps)
    times = scheduler.timesteps.tolist()
    shape = (denoiser.latent_channels, size[0] // grid, size[1] // grid)
    x = sample_noise(count, shape, seed, denoiser.device)
    for index, t in enumerate(times):
        x, clean = _step(scheduler, predict(x, t, None), t, x)
        if on_step is not None:
            on_step(index + 1, len(times), clean)
    return denoiser.decode(x)
