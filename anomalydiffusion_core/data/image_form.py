"""The form in which images of pairs are stored: bits and channels of their normal images, and codec."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..figures import require_finite
from .decoding import decode
from .mvtec import AnomalyDataset

LUMINANCE = (0.299, 0.587, 0.114)
"""ITU-R BT.601: equal channels give exactly their value."""
DEEPEST = 16
ROWS = 512
"""Rows of an image that are converted at once."""


@dataclass(frozen=True)
class ImageForm:
    """bits: samples of 0 to 2**bits - 1, in 16-bit files above 8. grey: one channel. quality: of JPEG, 0 lossless."""

    bits: int = 8
    grey: bool = False
    quality: int = 0

    def samples(self, image: Tensor) -> np.ndarray:
        """[3, H, W] in [0, 1] as the nearest samples, [H, W] or [H, W, 3] of uint8 or uint16."""
        # In parts: in double precision a huge image would take more memory than everything else.
        return np.concatenate([self._part(rows) for rows in image.split(ROWS, dim=1)])

    def samples_beside(self, image: Tensor, other: Tensor, known: np.ndarray) -> np.ndarray:
        """`samples` of an image that is ``other`` but for a part, where ``known`` are the samples of ``other``.

        Only the box of what differs is converted.
        """
        differs = torch.cat(
            [(own != one).any(dim=0) for own, one in zip(image.split(ROWS, 1), other.split(ROWS, 1), strict=True)]
        )
        rows, columns = (differs.any(dim=axis).nonzero().flatten() for axis in (1, 0))
        made = known.copy()
        if len(rows):
            box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
            made[box] = self.samples(image[:, box[0], box[1]])
        return made

    def _part(self, image: Tensor) -> np.ndarray:
        require_finite(image)
        pixels = image.detach().double().cpu().clamp(0, 1)
        if self.grey:
            pixels = (pixels * torch.tensor(LUMINANCE, dtype=torch.float64)[:, None, None]).sum(dim=0)
        else:
            pixels = pixels.movedim(0, -1)
        values = (pixels * (2**self.bits - 1)).round().numpy()
        return np.ascontiguousarray(values.astype(np.uint8 if self.bits == 8 else np.uint16))


def form_of(dataset: AnomalyDataset | None, quality: int = 0) -> ImageForm:
    """Bits and channels of a data set: of its deepest image, and of its first normal image; 8 bits without one.

    Floating point images are stored in 16 bits.
    """
    if dataset is None:
        return ImageForm(quality=quality)
    bits = 8 if dataset.bits is None else dataset.bits or DEEPEST
    first = dataset.normals[0] if dataset.normals else None
    return ImageForm(bits, first is not None and decode(first).ndim == 2, quality)
