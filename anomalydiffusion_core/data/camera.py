"""Camera noise and sharpness of generated defects, matched to those of normal images.

An autoencoder smooths: inside the mask a generated image has less noise and softer edges than its surroundings, which
a detector can learn instead of the defect. Both are measured on the normal images and made up for inside the mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCKS = (16, 8)
FLATTEST = 0.25
"""Noise is read in the flattest quarter of square blocks: elsewhere texture would count as noise."""
LEAST_BLOCKS = 4
FINE, COARSE = 0.7, 1.4
"""Standard deviations in pixels of the two blurs whose differences are the fine and the coarse band."""
RADIUS = 1.0
"""Standard deviation in pixels of the blur that sharpening goes away from, and softening goes towards."""
GAINS = (-1.0, 3.0)
HALVINGS = 8
MARGIN = 8
TO_SIGMA = 1.4826
"""Median absolute deviation to standard deviation of normal noise."""


@dataclass(frozen=True)
class Camera:
    """noise: standard deviation in 0..1. sharpness: energy of the fine band over that of the coarse one."""

    noise: float
    sharpness: float


def measure(images: Tensor, inside: Tensor | None = None) -> Camera:
    """Noise and sharpness of images [N, 3, H, W] in [0, 1], or of what lies inside masks [N, 1, H, W].

    Noise: the response to the kernel of Immerkaer (1996), which is blind to planes and edges along the axes, by its
    median absolute deviation in the flattest blocks. Sharpness: without the share of noise in the fine band.
    """
    where = torch.ones_like(images[:, :1]) if inside is None else inside
    noise = _noise(images, where)
    fine = images - _blur(images, FINE)
    coarse = _blur(images, FINE) - _blur(images, COARSE)
    weight = where.expand_as(images)
    energies = [float((band.square() * weight).sum() / weight.sum()) for band in (fine, coarse)]
    shares = _noise_shares(images.device)
    clean = [max(energy - share * noise**2, 1e-9) for energy, share in zip(energies, shares, strict=True)]
    return Camera(noise, clean[0] / clean[1])


def match_camera(image: Tensor, mask: Tensor, target: Camera, seed: int) -> tuple[Tensor, dict[str, float]]:
    """One image [3, H, W] with noise and sharpness like ``target`` inside its mask [1, H, W], and what was changed.

    Outside the mask nothing changes. Noise is only added, never removed. The same seed gives the same noise; an image
    whose channels are equal stays so.
    """
    rows, columns = (torch.nonzero(mask[0].amax(dim=axis)).flatten() for axis in (1, 0))
    box = [slice(max(int(n[0]) - MARGIN, 0), int(n[-1]) + 1 + MARGIN) for n in (rows, columns)]
    part, inside = image[:, box[0], box[1]], mask[:, box[0], box[1]]
    detail = part - _blur(part[None], RADIUS)[0]
    gain = _fitting_gain(part, detail, inside, target.sharpness)
    changed = image.clone()
    changed[:, box[0], box[1]] = torch.where(inside > 0, part + gain * detail, part)
    missing = max(target.noise**2 - _noise(changed[None], mask[None]) ** 2, 0.0) ** 0.5
    generator = torch.Generator().manual_seed(seed)
    grey = bool((image == image[:1]).all())
    noise = torch.randn((1 if grey else 3, *image.shape[1:]), generator=generator) * missing
    changed = torch.where(mask > 0, changed + noise, image).clamp(0, 1)
    return changed, {"sharpened": round(gain, 3), "noise_added": round(missing * 255, 3)}


def _fitting_gain(image: Tensor, detail: Tensor, inside: Tensor, sharpness: float) -> float:
    """How much detail to add for this sharpness, by halving the interval."""
    low, high = GAINS
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        tried = torch.where(inside > 0, image + middle * detail, image)
        if measure(tried[None], inside[None]).sharpness < sharpness:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _noise(images: Tensor, where: Tensor) -> float:
    kernel = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]) / 6
    response = F.conv2d(images.flatten(0, 1)[:, None], kernel[None, None]).abs()[:, 0]
    valid = -F.max_pool2d(-where, 3, stride=1)  # the kernel sees pixels inside alone
    valid = (valid > 0).expand(-1, images.shape[1], -1, -1).reshape(response.shape)
    grouped = [part.reshape(len(images), -1, *response.shape[-2:]) for part in (response, valid.float())]
    for side in BLOCKS:
        if min(response.shape[-2:]) >= side:
            values, used = (F.unfold(part, side, stride=side).transpose(1, 2) for part in grouped)
            blocks = values[used.mean(dim=2) == 1]
            if len(blocks) >= LEAST_BLOCKS:
                return TO_SIGMA * float(blocks.median(dim=1).values.quantile(FLATTEST))
    chosen = response[valid]
    return TO_SIGMA * float(chosen.median()) if len(chosen) else 0.0


def _noise_shares(device: torch.device) -> list[float]:
    """How much of the energy of white noise each band holds."""
    dot = torch.zeros(1, 1, 21, 21, device=device)
    dot[..., 10, 10] = 1
    fine, coarse = _blur(dot, FINE), _blur(dot, COARSE)
    return [float((dot - fine).square().sum()), float((fine - coarse).square().sum())]


def _blur(images: Tensor, sigma: float) -> Tensor:
    radius = max(round(3 * sigma), 1)
    places = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (places / sigma) ** 2)
    kernel = (kernel / kernel.sum())[None, None]
    flat = images.flatten(0, 1)[:, None]
    mode = "reflect" if radius < min(images.shape[-2:]) else "replicate"
    flat = F.conv2d(F.pad(flat, (radius, radius, 0, 0), mode=mode), kernel[:, :, None])
    flat = F.conv2d(F.pad(flat, (0, 0, radius, radius), mode=mode), kernel[..., None])
    return flat[:, 0].reshape(images.shape)
