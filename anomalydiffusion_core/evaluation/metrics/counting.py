"""The counting that all metrics share: how many normal samples score at least as high as each defect sample.

Only the distinct scores of defect samples matter as thresholds. Recall is constant between two of them, so AP, F1-max
and the corners of the ROC and PRO curves all lie at these thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ThresholdCounts:
    """Counts at each distinct score of a defect sample, from the highest down.

    Attributes:
        hits: defect samples with exactly this score, float64 [T]; sums of their weights after `weighted`.
        above: normal samples with a higher score, int64 [T].
        at_or_above: normal samples with this or a higher score, int64 [T].
        defects, normals: how many samples there are of each.
    """

    hits: Array
    above: NDArray[np.int64]
    at_or_above: NDArray[np.int64]
    defects: int
    normals: int

    @property
    def found(self) -> Array:
        """Defect samples (or their weight) at or above each threshold."""
        return np.cumsum(self.hits)


def count_thresholds(
    defect_scores: NDArray, normal_scores: NDArray, weights: NDArray | None = None
) -> tuple[ThresholdCounts, ThresholdCounts]:
    """Count once for any number of metrics.

    Args:
        defect_scores, normal_scores: scores of all samples of each kind, any shape.
        weights: one for each defect sample; 1 when missing.

    Returns:
        Counts of samples, and the same with the sums of the weights as `hits`.
    """
    thresholds, places, hits = np.unique(np.ravel(defect_scores), return_inverse=True, return_counts=True)
    ordered = np.sort(normal_scores, axis=None)
    at_or_above = ordered.size - np.searchsorted(ordered, thresholds, side="left")
    above = ordered.size - np.searchsorted(ordered, thresholds, side="right")
    counts = ThresholdCounts(
        hits[::-1].astype(np.float64), above[::-1], at_or_above[::-1], int(hits.sum()), int(ordered.size)
    )
    if weights is None:
        return counts, counts
    sums: Array = np.zeros(len(thresholds))
    np.add.at(sums, places.ravel(), np.ravel(weights))
    return counts, replace(counts, hits=sums[::-1])


def counts_of(scores: NDArray, labels: NDArray) -> ThresholdCounts:
    """Counts for scores and labels (0 normal, 1 defect) of the same shape."""
    values, inside = checked(scores, labels)
    return count_thresholds(values[inside], values[~inside])[0]


def checked(scores: NDArray, labels: NDArray) -> tuple[NDArray, NDArray[np.bool_]]:
    """Scores and labels as arrays that can be counted, labels as bool.

    Raises:
        InputError: shapes differ, scores are not finite, or labels are other than 0 and 1.
    """
    values, inside, _ = checked_bounds(scores, labels)
    return values, inside


def checked_bounds(scores: NDArray, labels: NDArray) -> tuple[NDArray, NDArray[np.bool_], tuple[float, float] | None]:
    """As `checked`, with the lowest and highest score, None where there are no scores."""
    values = np.asarray(scores)
    marks = np.asarray(labels)
    if values.shape != marks.shape:
        raise InputError(f"scores: shape {values.shape}, labels {marks.shape}. Give one label for each score.")
    if not np.issubdtype(values.dtype, np.floating):
        values = values.astype(np.float64)
    elif values.dtype == np.float16:
        values = values.astype(np.float32)
    bounds = (values.min(), values.max()) if values.size else None
    # NaN passes through both, and infinity is one of them: no array of truth values is needed.
    if bounds and not np.isfinite(bounds).all():
        raise InputError("scores: contain NaN or infinite values. Check the detector.")
    if marks.dtype == np.bool_:
        return values, marks, bounds
    inside = marks.astype(bool)
    if not np.array_equal(inside, marks):
        raise InputError("labels: contain values other than 0 and 1. Binarize the masks first.")
    return values, inside, bounds
