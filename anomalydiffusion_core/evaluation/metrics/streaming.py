"""Pixel metrics of any number of pictures, taken in one after the other with bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from .auroc import auroc_of
from .average_precision import average_precision_of
from .bounds import largest_error
from .counting import ThresholdCounts, check_limit, checked, count_thresholds, partial_area
from .f1_max import f1_max_of
from .ground_truth import fit_ground_truth, region_weights
from .histogram import ScoreHistogram

PRO_LIMIT = 0.3
EXACT_SAMPLES = 2**24


@dataclass(frozen=True)
class PixelMetrics:
    """The four pixel-level metrics of one detector, each 0..1 or NaN.

    `max_error` is the most by which any of them can differ from its exact value because scores were counted in a
    table: 0 up to `EXACT_SAMPLES` pixels.
    """

    auroc: float
    ap: float
    f1: float
    pro: float
    max_error: float = 0.0


class StreamingPixelMetrics:
    """AUROC, AP, F1-max and PRO over the pixels of all pictures given to `update` together.

    Up to `exact_samples` pixels (16 pictures of 1024 x 1024) the scores are kept and every one is a threshold. Beyond
    that they are counted in a table, see `ScoreHistogram`, and memory does not grow any more.
    """

    def __init__(self, exact_samples: int = EXACT_SAMPLES) -> None:
        self._exact_samples = exact_samples
        self._kept: list[tuple[NDArray, NDArray[np.bool_], NDArray[np.float64]]] = []
        self._samples = 0
        self._histogram: ScoreHistogram | None = None

    def update(self, score_map: NDArray, mask: NDArray) -> None:
        """Take in one picture.

        Args:
            score_map: [H,W] or [1,H,W], higher means more defective; float32 or float64, the same for all pictures.
            mask: [h,w] or [1,h,w] in {0,1}. At another size than the map it is resized by `fit_ground_truth`.

        Raises:
            InputError: scores that are not finite, masks with other values than 0 and 1, shapes that are no picture.
        """
        scores, truth = _flat_map(score_map, "score map"), _flat_map(mask, "mask")
        values, inside = checked(scores, fit_ground_truth(truth, scores.shape))
        weights = region_weights(inside)
        self._samples += values.size
        if self._histogram is None and self._samples <= self._exact_samples:
            self._kept.append((values.ravel().copy(), inside.ravel().copy(), weights))
            return
        if self._histogram is None:
            self._histogram = ScoreHistogram()
            for kept in self._kept:
                self._histogram.add(*kept)
            self._kept.clear()
        self._histogram.add(values, inside, weights)

    def counts(self) -> tuple[ThresholdCounts, ThresholdCounts]:
        """Counts of pixels, and the same with regions instead of defect pixels. InputError before any picture."""
        if self._histogram is not None:
            return self._histogram.counts()
        if not self._kept:
            raise InputError("score maps: none. Give at least one with its mask.")
        defects = np.concatenate([values[inside] for values, inside, _ in self._kept])
        normals = np.concatenate([values[~inside] for values, inside, _ in self._kept])
        return count_thresholds(defects, normals, np.concatenate([weights for *_, weights in self._kept]))

    def compute(self, pro_limit: float = PRO_LIMIT) -> PixelMetrics:
        """The metrics of everything so far; pictures can still be added afterwards."""
        pixels, regions = self.counts()
        exact = self._histogram is None or self._histogram.exact
        return PixelMetrics(
            auroc_of(pixels),
            average_precision_of(pixels),
            f1_max_of(pixels),
            partial_area(regions, pro_limit),
            0.0 if exact else largest_error(pixels, regions, pro_limit),
        )


def pixel_metrics(
    score_maps: Iterable[NDArray], masks: Iterable[NDArray], pro_limit: float = PRO_LIMIT
) -> PixelMetrics:
    """All four metrics over the pixels of all pictures together, see `StreamingPixelMetrics`.

    Args:
        score_maps, masks: one mask for each map, as in `update`. Generators are read picture by picture.
        pro_limit: largest false positive rate that counts for PRO, 0 < limit <= 1.
    """
    check_limit(pro_limit)
    if isinstance(score_maps, Sized) and isinstance(masks, Sized) and len(score_maps) != len(masks):
        raise InputError(f"score maps: {len(score_maps)}, masks {len(masks)}. Give one mask for each map.")
    exact = EXACT_SAMPLES
    if isinstance(score_maps, Sequence) and sum(np.asarray(values).size for values in score_maps) > exact:
        exact = 0  # too many in the end: nothing has to be kept first
    metrics = StreamingPixelMetrics(exact)
    for score_map, mask in zip(score_maps, masks, strict=True):
        metrics.update(score_map, mask)
    return metrics.compute(pro_limit)


def _flat_map(values: NDArray, name: str) -> NDArray:
    array = np.asarray(values)
    flat = array[0] if array.ndim == 3 and array.shape[0] == 1 else array
    if flat.ndim != 2:
        raise InputError(f"{name}: shape {array.shape}. Give one picture as [H,W].")
    return flat
