"""What really changed inside a drawn mask, and which differences are nothing but the autoencoder's noise.

A generated image differs from its normal image in two ways: by the defect, and by what the autoencoder alone does to
every pixel. The second is known: it is the reconstruction D(E(y)) of the normal image y, which has no defect. So a
pixel changed when it differs by more than the reconstruction does around it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..sampling.blending import crop_back, pad_to_multiple
from ..sampling.scene import SMALLEST_CELLS

Pixels = NDArray[np.bool_]
Levels = NDArray[np.float32]
"""[H, W], on the scale 0 to 255."""
Reconstruct = Callable[[Tensor], Tensor]
"""Images [N, 3, H, W] in [0, 1] of any size to what the autoencoder alone makes of them."""

BLUR = 1.0
"""Deviation in pixels of the Gaussian that differences are smoothed with: single pixels are noise."""
NOISE_QUANTILE, NOISE_FACTOR = 0.95, 2.0
"""A change counts above twice the level that all but 5 % of the reconstruction's errors stay below.

Measured on pairs of the demo: that level is 4.4 to 7.2, so 9 to 14 of 255; a fixed threshold of 12 was measured to
give the better detector there.
"""
LEAST = 2.0
"""No threshold is lower: half a level of rounding in each of two images is no change."""
NEAR = 8
"""Pixels around the mask whose reconstruction errors count as well, so that small masks have enough of them."""
MARGIN = 32
"""Pixels around the mask that are reconstructed with it; more than an autoencoder's errors at a border reach."""


@dataclass(frozen=True)
class Box:
    """A part of an image: rows top to bottom and columns left to right, the ends not included."""

    top: int
    bottom: int
    left: int
    right: int

    def of(self, image: Tensor) -> Tensor:
        """This part of [..., H, W]."""
        return image[..., self.top : self.bottom, self.left : self.right]


@dataclass(frozen=True)
class Change:
    """A drawn mask and what changed inside it, both of the part ``box`` of an image.

    mask: [h, w]. levels: [h, w], 0 outside of the mask. noise: the NOISE_QUANTILE of the reconstruction's own errors,
    0 to 255.
    """

    box: Box
    mask: Pixels
    levels: Levels
    noise: float

    @property
    def threshold(self) -> float:
        """Above this a pixel changed, 0 to 255."""
        return max(NOISE_FACTOR * self.noise, LEAST)


class Autoencoder(Protocol):
    """The part of a Denoiser that encodes and decodes images."""

    @property
    def downscale(self) -> int:
        """Pixels per latent cell along one side."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to latents."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images [B, 3, H, W] in [0, 1]."""
        ...


def reconstruction_of(model: Autoencoder, device: torch.device | str = "cpu") -> Reconstruct:
    """What the autoencoder of a model makes of images of any size, on the CPU. device: where the model computes."""
    grid = model.downscale

    def reconstruct(images: Tensor) -> Tensor:
        padded, padding = pad_to_multiple(images, grid, SMALLEST_CELLS * grid)
        with torch.no_grad():
            return crop_back(model.decode(model.encode(padded.to(device))).float().cpu(), padding)

    return reconstruct


def unchanged(images: Tensor) -> Tensor:
    """Stands for an autoencoder where none is involved, as in pairs of methods that copy pixels."""
    return images


def measure_change(image: Tensor, normal: Tensor, mask: Tensor, reconstruct: Reconstruct) -> Change:
    """How much each pixel inside a mask changed.

    image, normal: [3, H, W] in [0, 1]. mask: [1, H, W] of {0, 1}. The change of a pixel is the smaller of its mean
    absolute channel differences to the reconstruction of ``normal`` and to ``normal`` itself, as for the effect score,
    smoothed over the pixels of the mask alone. Only the part around the mask is looked at. Raises InputError for sizes
    that differ and for an empty mask.
    """
    if not image.shape[1:] == normal.shape[1:] == mask.shape[1:]:
        shapes = ", ".join(f"{x.shape[2]}x{x.shape[1]}" for x in (image, normal, mask))
        raise InputError(f"pairs: image, normal image and mask are {shapes} px. They must have one size.")
    box = box_around(mask, MARGIN)
    x, y, inside = box.of(image), box.of(normal), box.of(mask)[0].numpy() > 0
    again = reconstruct(y[None])[0]
    change = np.minimum(difference(x, again), difference(x, y))
    return Change(box, inside, smoothed(change, inside), _noise(difference(again, y), inside))


def box_around(mask: Tensor, margin: int) -> Box:
    """The part of an image with the mask [1, H, W] and so many pixels on each side. Raises InputError if empty."""
    rows, columns = (mask[0].amax(dim=axis).nonzero().flatten() for axis in (1, 0))
    if not len(rows):
        raise InputError("mask: is empty. Leave this pair out.")
    height, width = mask.shape[1:]
    return Box(
        max(int(rows[0]) - margin, 0),
        min(int(rows[-1]) + 1 + margin, height),
        max(int(columns[0]) - margin, 0),
        min(int(columns[-1]) + 1 + margin, width),
    )


def difference(one: Tensor, two: Tensor) -> Levels:
    """Mean absolute channel difference of [3, H, W] in [0, 1], as [H, W] on the scale 0 to 255."""
    levels: Levels = ((one - two).abs().mean(dim=0) * 255).float().cpu().numpy()
    return levels


def smoothed(levels: Levels, inside: Pixels) -> Levels:
    """Levels blurred over the pixels inside alone, 0 elsewhere: what lies outside does not dim the border."""
    from scipy.ndimage import gaussian_filter

    weight = gaussian_filter(inside.astype(np.float32), BLUR)
    blurred = gaussian_filter(np.where(inside, levels, 0).astype(np.float32), BLUR)
    result: Levels = np.where(inside, blurred / np.maximum(weight, 1e-6), 0).astype(np.float32)
    return result


def _noise(errors: Levels, inside: Pixels) -> float:
    from scipy.ndimage import binary_dilation

    near = binary_dilation(inside, np.ones((3, 3)), iterations=NEAR)
    return float(np.quantile(smoothed(errors, near)[near], NOISE_QUANTILE))
