"""Masks as all metrics take them: one way of resizing for every metric, and the weight of a pixel in its region."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ...data.images import resize_mask
from ...errors import InputError


def fit_ground_truth(mask: NDArray, shape: tuple[int, int]) -> NDArray:
    """A mask [H,W] in {0,1} at the size of its score map, the same for AUROC, AP, F1-max, PRO and the image's label.

    A pixel is defect where more than half of its area was; a mask that this would empty (a thin line) is resized by
    its maximum, so a defective picture stays one. Equal sizes pass unchanged.

    Raises:
        InputError: values other than 0 and 1.
    """
    if mask.shape == shape:
        return mask
    if not np.isin(mask, (0, 1)).all():
        raise InputError("masks: contain values other than 0 and 1. Threshold the masks first.")
    plain = torch.from_numpy(np.ascontiguousarray(mask, dtype=np.float32))[None, None]
    return resize_mask(plain, shape)[0, 0].numpy()


def region_weights(inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """One over the size of its region for each defect pixel in row order, so that every region sums to 1.

    A region is an 8-connected component of the mask [H,W].
    """
    from scipy.ndimage import label

    rows = np.flatnonzero(inside.any(axis=1))
    if not rows.size:
        return np.zeros(0)
    part = inside[rows[0] : rows[-1] + 1]
    regions, _ = label(part, structure=np.ones((3, 3), dtype=np.int64))
    numbers = regions[part]
    return 1.0 / np.bincount(numbers)[numbers]
