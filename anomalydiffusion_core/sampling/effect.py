"""How much a generated image differs from a normal one, counted only where it should.

A diffusion model's autoencoder alone changes every pixel a little. A defect counts only beyond that: the difference
inside the mask is measured against the reconstruction D(E(y)) of the normal image as well as against the normal
image y itself, and the smaller one counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

RING = 8
"""Pixels around the mask whose brightness is compared."""
LEAST_SHIFT = 1.0
"""Grey levels of 255 below which a shift around the mask is rounding and grain."""
FILL_THRESHOLD = 10.0
"""A mask pixel counts as filled when it changed by more than this, on the scale 0 to 255."""


@dataclass(frozen=True)
class Effect:
    """Per sample, each float32 [B] on the CPU.

    effect: mean change of the mask pixels beyond reconstruction, 0 to 255.
    fill_share: share of the mask pixels that changed by more than the threshold, 0 to 1.
    outside_max_abs_diff: largest difference to the normal image outside the mask after rounding both to 8 bits,
    whole numbers 0 to 255 (0 where there is no outside).
    """

    effect: Tensor
    fill_share: Tensor
    outside_max_abs_diff: Tensor


def effect_score(
    image: Tensor,
    reconstruction: Tensor,
    normal: Tensor,
    mask: Tensor,
    threshold: float = FILL_THRESHOLD,
) -> Effect:
    """Measure generated images ``image`` [B, 3, H, W] made from ``normal`` inside ``mask`` [B, 1, H, W].

    ``reconstruction`` is D(E(normal)). The change of a pixel is the smaller of its mean absolute channel differences
    to ``reconstruction`` and to ``normal``, times 255: a image left as it was and a image that only went through
    the autoencoder both score 0. What the whole image is brighter or darker by, as a ring around the mask shows, is
    no defect and does not count either. Raises InputError when shapes disagree or a mask is empty.
    """
    if not image.shape == reconstruction.shape == normal.shape or image.shape[-2:] != mask.shape[-2:]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (image, reconstruction, normal, mask))
        raise InputError(f"effect: image, reconstruction, normal and mask have the shapes {shapes}. They must agree.")
    inside = (mask > 0).expand(len(image), -1, -1, -1)
    area = inside.flatten(1).sum(dim=1)
    if bool((area == 0).any()):
        raise InputError(
            "mask: an entry is empty, so there is no inside to measure. Give a mask with a marked region."
        )
    to_reconstruction = (image - reconstruction).abs().mean(dim=1, keepdim=True)
    to_normal = (image - normal).abs().mean(dim=1, keepdim=True)
    difference = to_reconstruction.minimum(to_normal)
    shift = ring_shift(image, normal, mask)
    if bool(shift.any()):
        for known in (reconstruction, normal):
            difference = difference.minimum((image - shift - known).abs().mean(dim=1, keepdim=True))
    change = difference * 255 * inside
    filled = (change > threshold).flatten(1).sum(dim=1)
    eight_bit = ((image * 255).round() - (normal * 255).round()).abs().amax(dim=1, keepdim=True)
    return Effect(
        effect=(change.flatten(1).sum(dim=1) / area).float().cpu(),
        fill_share=(filled / area).float().cpu(),
        outside_max_abs_diff=(eight_bit * ~inside).flatten(1).amax(dim=1).float().cpu(),
    )


def ring_shift(image: Tensor, normal: Tensor, mask: Tensor) -> Tensor:
    """How much brighter each channel of ``image`` [B, 3, H, W] is in a ring around the mask, [B, 3, 1, 1].

    0 below LEAST_SHIFT, and where the mask leaves no ring.
    """
    inside = (mask > 0).float()
    ring = F.max_pool2d(inside, 2 * RING + 1, stride=1, padding=RING) - inside
    area = ring.flatten(1).sum(dim=1).clamp_min(1)[:, None, None, None]
    shift = ((image - normal) * ring).sum(dim=(2, 3), keepdim=True) / area
    return torch.where(shift.abs() * 255 >= LEAST_SHIFT, shift, torch.zeros_like(shift))
