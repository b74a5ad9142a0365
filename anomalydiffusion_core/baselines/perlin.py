"""Perlin noise and the irregular masks that are thresholded from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError

FINEST = 6
"""The picture is divided into 2^0 to 2^(FINEST - 1) cells on each axis, as in DRAEM."""
THRESHOLD = 0.5
SMALLEST_AREA = 0.0005
LARGEST_AREA = 0.5
TRIES = 100


def perlin_noise(size: tuple[int, int], cells: tuple[int, int], rng: np.random.Generator) -> NDArray[np.floating[Any]]:
    """Gradient noise [H, W] (Perlin, SIGGRAPH 1985 and 2002), 0 at the corners of its cells, within -1 and 1.

    size: (H, W). cells: number of cells along both, which need not divide the size.
    """
    angles = rng.uniform(0, 2 * np.pi, (cells[0] + 1, cells[1] + 1))
    gradients = np.stack([np.sin(angles), np.cos(angles)])
    where = np.stack(
        np.meshgrid(*(np.arange(side) * count / side for side, count in zip(size, cells, strict=True)), indexing="ij")
    )
    corner = np.floor(where).astype(int)
    inside = where - corner
    fade = inside**3 * (inside * (inside * 6 - 15) + 10)
    values = []
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        gradient = gradients[:, corner[0] + down, corner[1] + right]
        values.append(gradient[0] * (inside[0] - down) + gradient[1] * (inside[1] - right))
    upper = values[0] + fade[1] * (values[1] - values[0])
    lower = values[2] + fade[1] * (values[3] - values[2])
    return np.asarray(np.sqrt(2) * (upper + fade[0] * (lower - upper)))


def perlin_mask(size: tuple[int, int], rng: np.random.Generator, foreground: Tensor | None = None) -> Tensor:
    """A mask [1, H, W] in {0, 1}: turned Perlin noise of random fineness above one half, on the foreground.

    Drawn again until it covers a share of the picture between ``SMALLEST_AREA`` and ``LARGEST_AREA``. Raises
    InputError when the foreground lets none through.
    """
    from scipy.ndimage import rotate

    for _ in range(TRIES):
        cells = tuple(2 ** int(rng.integers(FINEST)) for _ in range(2))
        noise = perlin_noise(size, cells, rng)  # type: ignore[arg-type]
        turned = rotate(noise, float(rng.uniform(-90, 90)), reshape=False, order=1, mode="reflect")
        mask = torch.from_numpy((turned > THRESHOLD).astype(np.float32))[None]
        if foreground is not None:
            mask = mask * foreground
        if SMALLEST_AREA <= float(mask.mean()) <= LARGEST_AREA and bool(mask.any()):
            return mask
    raise InputError(
        f"foreground: {TRIES} Perlin masks left nothing on it. Mark a foreground of more than {SMALLEST_AREA:.2%} of "
        "the picture."
    )
