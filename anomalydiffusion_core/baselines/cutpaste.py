"""CutPaste: a patch of the normal image pasted at another place in it.

Li et al., "CutPaste: Self-Supervised Learning for Anomaly Detection and Localization", CVPR 2021, sections 2.2 and A:
a large rectangle (2 to 15 % of the image, aspect 0.3 to 3.3), or a scar (2 to 16 px wide, 10 to 25 px long in a
image of 256 px, rotated by up to 45 degrees), with its colours jittered by a tenth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..options import Settings, option
from .making import Made
from .moving import find_place, overlap_option

VARIANTS = ("both", "patch", "scar")
AREA = (0.02, 0.15)
ASPECT = (0.3, 3.3)
SCAR_WIDTH = (2.0, 16.0)
SCAR_LENGTH = (10.0, 25.0)
SCAR_DEGREES = 45.0
REFERENCE_SIDE = 256
JITTER = 0.1


@dataclass(frozen=True)
class CutPaste(Settings):
    """The method with its two variants."""

    variant: str = option(
        VARIANTS[0],
        "Large rectangles (patch), thin rotated ones (scar), or both in equal parts.",
        choices=VARIANTS,
    )
    foreground_overlap: float = overlap_option()
    name: str = "CutPaste"

    def make(self, normal: Tensor, rng: np.random.Generator, foreground: Tensor | None) -> Made:
        """See `Method.make`."""
        size = (normal.shape[1], normal.shape[2])
        scar = self.variant == "scar" or (self.variant == "both" and bool(rng.integers(2)))
        sides = _scar_sides(size, rng) if scar else _patch_sides(size, rng)
        top, left = (int(rng.integers(whole - side + 1)) for whole, side in zip(size, sides, strict=True))
        piece = normal[:, top : top + sides[0], left : left + sides[1]]
        piece = _jittered(piece, rng)
        shape = torch.ones_like(piece[:1])
        details: dict[str, Any] = {"variant": "scar" if scar else "patch", "from": [top, left, *sides]}
        if scar:
            degrees = float(rng.uniform(-SCAR_DEGREES, SCAR_DEGREES))
            piece, shape = _turned(piece, shape, degrees)
            details["degrees"] = round(degrees, 3)
        height, width = (min(side, whole) for side, whole in zip(shape.shape[1:], size, strict=True))
        piece, shape = piece[:, :height, :width], shape[:, :height, :width]
        down, right = find_place(shape, size, rng, foreground, self.foreground_overlap)
        image, mask = normal.clone(), torch.zeros_like(normal[:1])
        place = (slice(None), slice(down, down + height), slice(right, right + width))
        image[place] = torch.where(shape > 0, piece, image[place])
        mask[place] = shape
        mask = mask if foreground is None else mask * foreground
        return Made(image, mask, {**details, "top": down, "left": right})


def _patch_sides(size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    area = float(rng.uniform(*AREA)) * size[0] * size[1]
    # wide and high ones alike: the logarithm of the aspect is uniform
    aspect = float(np.exp(rng.uniform(np.log(ASPECT[0]), np.log(ASPECT[1]))))
    sides = (round((area / aspect) ** 0.5), round((area * aspect) ** 0.5))
    return tuple(min(max(side, 1), whole) for side, whole in zip(sides, size, strict=True))  # type: ignore[return-value]


def _scar_sides(size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    factor = min(size) / REFERENCE_SIDE
    drawn = (rng.uniform(*SCAR_LENGTH) * factor, rng.uniform(*SCAR_WIDTH) * factor)
    return tuple(min(max(round(side), 1), whole) for side, whole in zip(drawn, size, strict=True))  # type: ignore[return-value]


def _jittered(piece: Tensor, rng: np.random.Generator) -> Tensor:
    from torchvision.transforms import functional as transforms

    brightness, contrast, saturation = (float(rng.uniform(1 - JITTER, 1 + JITTER)) for _ in range(3))
    piece = transforms.adjust_brightness(piece, brightness)
    piece = transforms.adjust_contrast(piece, contrast)
    piece = transforms.adjust_saturation(piece, saturation)
    return transforms.adjust_hue(piece, float(rng.uniform(-JITTER, JITTER)))


def _turned(piece: Tensor, shape: Tensor, degrees: float) -> tuple[Tensor, Tensor]:
    """Both rotated, cut to the bounding box of the shape; nearest, so that no black from outside comes in."""
    from torchvision.transforms import functional as transforms

    turned = transforms.rotate(shape, degrees, expand=True)
    pixels = transforms.rotate(piece, degrees, expand=True)
    rows, columns = (turned[0].amax(dim=axis).nonzero().flatten() for axis in (1, 0))
    if not len(rows):
        return piece, shape
    box = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    return pixels[:, box[0], box[1]], turned[:, box[0], box[1]]
