"""Masks at another size: one rule for training, spatial encoder, sampler, detectors and metrics.

A pixel of the result is defect where more than half of its area was. That alone loses thin parts: a line of one pixel
is nowhere half of a cell. So each 8-connected part of a mask also keeps its skeleton (Zhang and Suen, "A fast parallel
algorithm for thinning digital patterns", CACM 1984): every cell that a skeleton pixel's centre lies in is defect. A
part can merge with its neighbours, but it can neither vanish nor break at any scale.

What that costs is area: parts thinner than half a cell come out one cell wide. benchmarks/mask_areas.py measures it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..lazy_imports import imported

Pixels = NDArray[np.bool_]


def target_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a side or of both. Raises InputError for less than one pixel."""
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise InputError(f"size: {size}. Give at least 1 pixel.")
    return height, width


def resize_mask(mask: Tensor, size: int | tuple[int, int]) -> Tensor:
    """[B,1,H,W] in {0,1} -> the same at another size: the majority of each pixel's area, and all skeletons.

    Equal sizes pass unchanged. A mask of the batch does not depend on the others.
    """
    target = target_size(size)
    if tuple(mask.shape[-2:]) == target:
        return mask
    resized = (F.interpolate(mask.float(), size=target, mode="area") > 0.5).to(mask.dtype)
    for number, own in enumerate(mask[:, 0]):
        resized[number, 0][_cells(skeleton(own.cpu().numpy() > 0), target).to(resized.device)] = 1
    return resized


def skeleton(pixels: Pixels) -> Pixels:
    """The pixels [H,W] that keep each 8-connected part alive: its thinning, or one pixel where that leaves none."""
    from scipy import ndimage

    thin = np.zeros_like(pixels)
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    if not rows.size:
        return thin
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))  # large images are mostly empty
    inside = pixels[box]
    thinned: Pixels = imported("skimage.morphology", "skeletonize")(inside)
    parts, count = ndimage.label(inside, structure=np.ones((3, 3)))
    lost = np.setdiff1d(np.arange(1, count + 1), parts[thinned])
    for part in lost.tolist():
        where = np.argwhere(parts == part)
        thinned[tuple(where[np.square(where - where.mean(axis=0)).sum(axis=1).argmin()])] = True
    thin[box] = thinned
    return thin


def _cells(pixels: Pixels, target: tuple[int, int]) -> Tensor:
    """Bool [h,w]: the cells that the centres of pixels [H,W] lie in; along an axis that grows, all that they cover."""
    for axis, length in enumerate(target):
        if length > pixels.shape[axis]:
            source = ((np.arange(length) + 0.5) * pixels.shape[axis] / length).astype(int)
            pixels = pixels.take(source, axis=axis)
    cells = np.zeros(target, dtype=bool)
    places = [
        ((where + 0.5) * length / side).astype(int)
        for where, length, side in zip(pixels.nonzero(), target, pixels.shape, strict=True)
    ]
    cells[tuple(places)] = True
    return torch.from_numpy(cells)
