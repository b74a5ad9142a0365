"""Per-region overlap (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5.1.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .counting import ThresholdCounts, checked_maps, counts_of_maps, partial_area, weighted

PRO_LIMIT = 0.3


def pro(score_maps: Sequence[NDArray], masks: Sequence[NDArray], limit: float = PRO_LIMIT) -> float:
    """Area under the curve of mean overlap with the defect regions against the false positive rate, up to `limit`.

    A region is an 8-connected component of one mask; a small region counts as much as a large one. The curve runs
    over every different score, not a selection, and is cut at the limit by linear interpolation, so the value,
    divided by `limit`, never exceeds 1.

    Args:
        score_maps: [H,W] each, higher means more defective; sizes may differ from picture to picture.
        masks: one for each map and of its size, 0 and 1. Pictures without defect belong in here.
        limit: largest false positive rate that counts, 0 < limit <= 1.

    Returns:
        0..1, or NaN where it is undefined: without any region or without normal pixels.
    """
    return pro_of(checked_maps(score_maps, masks), limit)


def pro_of(
    pairs: Sequence[tuple[NDArray, NDArray[np.bool_]]],
    limit: float = PRO_LIMIT,
    counted: tuple[ThresholdCounts, NDArray] | None = None,
) -> float:
    """As `pro`, from checked maps and what `counts_of_maps` returned for them, if it was called already."""
    counts, defect_scores = counted or counts_of_maps(pairs)
    weights = np.concatenate([_region_weights(inside) for _, inside in pairs])
    return partial_area(weighted(counts, defect_scores, weights), limit)


def _region_weights(inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """One over the size of its region for each defect pixel in row order, so that every region sums to 1."""
    from scipy.ndimage import label

    regions, _ = label(inside, structure=np.ones((3, 3), dtype=np.int64))
    numbers = regions[inside]
    return 1.0 / np.bincount(numbers)[numbers] if numbers.size else np.zeros(0)
