"""The irregular masks that DRAEM thresholds from Perlin noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..masks.procedural import perlin_noise

FINEST = 6
"""The image is divided into 2^0 to 2^(FINEST - 1) cells on each axis, as in DRAEM."""
THRESHOLD = 0.5
SMALLEST_AREA = 0.0005
LARGEST_AREA = 0.5
TRIES = 100


def perlin_mask(size: tuple[int, int], rng: np.random.Generator, foreground: Tensor | None = None) -> Tensor:
    """A mask [1, H, W] in {0, 1}: rotated Perlin noise of random scale above one half, on the foreground.

    Retried until it covers a share of the image between ``SMALLEST_AREA`` and ``LARGEST_AREA``. Raises
    InputError when the foreground lets none through.
    """
    from scipy.ndimage import rotate

    for _ in range(TRIES):
        cells = [2 ** int(rng.integers(FINEST)) for _ in range(2)]
        places = (np.arange(side) * count / side for side, count in zip(size, cells, strict=True))
        noise = perlin_noise(rng, *np.meshgrid(*places, indexing="ij"))
        turned = rotate(noise, float(rng.uniform(-90, 90)), reshape=False, order=1, mode="reflect")
        mask = torch.from_numpy((turned > THRESHOLD).astype(np.float32))[None]
        if foreground is not None:
            mask = mask * foreground
        if SMALLEST_AREA <= float(mask.mean()) <= LARGEST_AREA and bool(mask.any()):
            return mask
    raise InputError(
        f"foreground: {TRIES} Perlin masks left nothing on it. Mark a foreground of more than {SMALLEST_AREA:.2%} of "
        "the image."
    )
