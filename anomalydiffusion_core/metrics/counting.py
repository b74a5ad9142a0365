"""The counting that all metrics share: how many normal samples score at least as high as each defect sample.

Only the different scores of defect samples matter as thresholds. Between two of them recall stays the same, so AP,
F1-max and the corners of the ROC and PRO curves lie at these thresholds, and the far more numerous normal samples
never have to be ranked together: they are counted chunk by chunk (a picture at a time), which bounds the memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ThresholdCounts:
    """Counts at each different score of a defect sample, from the highest down.

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


def count_thresholds(defect_scores: NDArray, normal_chunks: Iterable[NDArray]) -> ThresholdCounts:
    """Count once for any number of metrics.

    Args:
        defect_scores: scores of all defect samples, any shape.
        normal_chunks: scores of the normal samples in pieces of any shape.
    """
    scores = np.ravel(defect_scores)
    thresholds, hits = np.unique(scores, return_counts=True)
    # bin k: normal samples that reach (not_below) or exceed (beyond) exactly the k lowest thresholds
    not_below = np.zeros(len(thresholds) + 1, dtype=np.int64)
    beyond = np.zeros(len(thresholds) + 1, dtype=np.int64)
    normals = 0
    for chunk in normal_chunks:
        ordered = np.sort(chunk, axis=None)
        normals += ordered.size
        for counts, side in ((not_below, "right"), (beyond, "left")):
            places_of_chunk = np.searchsorted(thresholds, ordered, side=side)  # type: ignore[call-overload]
            counts += np.bincount(places_of_chunk, minlength=len(counts))
    at_or_above = np.cumsum(not_below[::-1])[::-1][1:]
    above = np.cumsum(beyond[::-1])[::-1][1:]
    return ThresholdCounts(
        hits[::-1].astype(np.float64), above[::-1].copy(), at_or_above[::-1].copy(), scores.size, normals
    )


def counts_of(scores: NDArray, labels: NDArray) -> ThresholdCounts:
    """Counts for scores and labels (0 normal, 1 defect) of the same shape."""
    values, inside = checked(scores, labels)
    return count_thresholds(values[inside], [values[~inside]])


def counts_of_maps(pairs: Sequence[tuple[NDArray, NDArray[np.bool_]]]) -> tuple[ThresholdCounts, NDArray]:
    """Counts over the pixels of all pictures of `checked_maps`, and the scores of the defect pixels in their order."""
    defect = np.concatenate([values[inside] for values, inside in pairs])
    return count_thresholds(defect, (values[~inside] for values, inside in pairs)), defect


def weighted(counts: ThresholdCounts, defect_scores: NDArray, weights: NDArray) -> ThresholdCounts:
    """The same counts with a weight for each defect sample in place of 1; normal samples are not counted again."""
    thresholds, places = np.unique(np.ravel(defect_scores), return_inverse=True)
    hits = np.bincount(places.ravel(), np.ravel(weights).astype(np.float64), len(thresholds))
    return replace(counts, hits=hits[::-1].astype(np.float64))


def checked(scores: NDArray, labels: NDArray) -> tuple[NDArray, NDArray[np.bool_]]:
    """Scores and labels as arrays that can be counted, labels as bool.

    Raises:
        InputError: shapes differ, scores are not finite, or labels are other than 0 and 1.
    """
    values = np.asarray(scores)
    marks = np.asarray(labels)
    if values.shape != marks.shape:
        raise InputError(f"scores: shape {values.shape}, labels {marks.shape}. Give one label for each score.")
    if not np.issubdtype(values.dtype, np.floating):
        values = values.astype(np.float64)
    elif values.dtype == np.float16:
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError("scores: contain NaN or infinite values. Check the detector; there is no metric of these.")
    inside = marks.astype(bool)
    if not np.array_equal(inside, marks):
        raise InputError("labels: contain values other than 0 and 1. Threshold the masks first.")
    return values, inside


def checked_maps(score_maps: Sequence[NDArray], masks: Sequence[NDArray]) -> list[tuple[NDArray, NDArray[np.bool_]]]:
    """Maps and masks as [H,W] pairs; one channel in front is dropped.

    Raises:
        InputError: as in `checked`, or numbers of maps and masks differ, or there are none.
    """
    if len(score_maps) != len(masks) or not len(masks):
        raise InputError(
            f"score maps: {len(score_maps)}, masks {len(masks)}. Give one mask for each map, one at least."
        )
    pairs = [checked(_flat_map(scores), _flat_map(mask)) for scores, mask in zip(score_maps, masks, strict=True)]
    wide = any(values.dtype == np.float64 for values, _ in pairs)
    return [(values.astype(np.float64), inside) for values, inside in pairs] if wide else pairs


def partial_area(counts: ThresholdCounts, limit: float) -> float:
    """Area under the curve (false positive rate, share of defect found) for rates from 0 to `limit`, over `limit`.

    Ties of normal and defect samples give a sloping piece, as in the trapezoidal rule over all thresholds; the piece
    that crosses the limit is cut there by linear interpolation.

    Returns:
        NaN where there are no defects or no normal samples.
    """
    if not 0 < limit <= 1:
        raise InputError(f"limit: {limit}. Give a false positive rate above 0 and at most 1.")
    if not counts.defects or not counts.normals:
        return float("nan")
    share = counts.found / counts.hits.sum()
    before = np.concatenate([[0.0], share[:-1]])
    # corners of the curve: up to each threshold flat, then up (or sloping where normal samples tie)
    rates = np.stack([counts.above, counts.at_or_above], axis=1).ravel() / counts.normals
    heights = np.stack([before, share], axis=1).ravel()
    rates = np.concatenate([[0.0], rates, [1.0]])
    heights = np.minimum(np.concatenate([[0.0], heights, [1.0]]), 1.0)
    last = int(np.searchsorted(rates, limit, side="right"))
    if last < len(rates):
        left, right = rates[last - 1], rates[last]
        cut = heights[last - 1] + (heights[last] - heights[last - 1]) * (limit - left) / (right - left)
        rates = np.concatenate([rates[:last], [limit]])
        heights = np.concatenate([heights[:last], [cut]])
    area = float(np.sum(np.diff(rates) * (heights[1:] + heights[:-1]) / 2))
    return min(area / limit, 1.0)


def _flat_map(values: NDArray) -> NDArray:
    array = np.asarray(values)
    return array[0] if array.ndim == 3 and array.shape[0] == 1 else array
