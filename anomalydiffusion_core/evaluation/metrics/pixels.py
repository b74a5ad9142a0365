"""Pixel metrics of any number of images, taken one after the other with bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...data.mask_resizing import resize_mask
from ...errors import InputError
from .counting import ThresholdCounts, checked_bounds, count_thresholds
from .detection import auroc, average_precision, f1_max, largest_error, partial_area
from .histogram import ScoreHistogram

PRO_LIMIT = 0.3
EXACT_SAMPLES = 2**24


@dataclass(frozen=True)
class PixelMetrics:
    """The four pixel-level metrics of one detector, each 0..1 or NaN where it is undefined.

    `pro` is the area under the curve of mean overlap with the defect regions over the false positive rate, up to a
    limit and divided by it (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5.1.2). A
    region is an 8-connected component of one mask; a small region counts as much as a large one. The curve runs over
    every distinct score and is cut at the limit by linear interpolation.

    `max_error` is the most by which any of them can differ from its exact value because scores were counted in a
    table: 0 up to `EXACT_SAMPLES` pixels.
    """

    auroc: float
    ap: float
    f1: float
    pro: float
    max_error: float = 0.0


class StreamingPixelMetrics:
    """AUROC, AP, F1-max and PRO over the pixels of all images given to `update` together.

    Up to `exact_samples` pixels (16 images of 1024 x 1024) the scores are kept and every one is a threshold. Beyond
    that they are counted in a table, see `ScoreHistogram`, and memory does not grow any more.
    """

    def __init__(self, exact_samples: int = EXACT_SAMPLES) -> None:
        self._exact_samples = exact_samples
        self._kept: list[tuple[NDArray, NDArray[np.bool_], NDArray[np.float64]]] = []
        self._samples = 0
        self._histogram: ScoreHistogram | None = None

    def update(self, score_map: NDArray, mask: NDArray) -> None:
        """Take in one image.

        Args:
            score_map: [H,W], higher means more defective; float32 or float64, the same for all images.
            mask: [h,w] in {0,1}. At another size than the map it is resized by `fit_ground_truth`.

        Raises:
            InputError: scores that are not finite, masks with other values than 0 and 1.
        """
        values, inside, bounds = checked_bounds(score_map, fit_ground_truth(mask, score_map.shape))
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
        self._histogram.add(values, inside, weights, bounds)

    def counts(self) -> tuple[ThresholdCounts, ThresholdCounts]:
        """Counts of pixels, and the same with regions instead of defect pixels. InputError before any image."""
        if self._histogram is not None:
            return self._histogram.counts()
        if not self._kept:
            raise InputError("score maps: none. Give at least one with its mask.")
        defects = np.concatenate([values[inside] for values, inside, _ in self._kept])
        normals = np.concatenate([values[~inside] for values, inside, _ in self._kept])
        return count_thresholds(defects, normals, np.concatenate([weights for *_, weights in self._kept]))

    def compute(self, pro_limit: float = PRO_LIMIT) -> PixelMetrics:
        """The metrics of everything so far; images can still be added afterwards."""
        pixels, regions = self.counts()
        exact = self._histogram is None or self._histogram.exact
        return PixelMetrics(
            auroc(pixels),
            average_precision(pixels),
            f1_max(pixels),
            partial_area(regions, pro_limit),
            0.0 if exact else largest_error(pixels, regions, pro_limit),
        )


def fit_ground_truth(mask: NDArray, shape: Sequence[int]) -> NDArray:
    """A mask [H,W] in {0,1} at the size of its score map, the same for AUROC, AP, F1-max, PRO and the image's label.

    The rule is `resize_mask`'s: no region vanishes. Equal sizes pass unchanged.

    Raises:
        InputError: values other than 0 and 1.
    """
    if mask.shape == tuple(shape):
        return mask
    if not np.isin(mask, (0, 1)).all():
        raise InputError("masks: contain values other than 0 and 1. Binarize the masks first.")
    plain = torch.from_numpy(np.ascontiguousarray(mask, dtype=np.float32))[None, None]
    return resize_mask(plain, (shape[0], shape[1]))[0, 0].numpy()


def region_weights(inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """One over the size of its region for each defect pixel in row order, so that every region sums to 1.

    A region is an 8-connected component of the mask [H,W].
    """
    from scipy.ndimage import label

    rows = np.flatnonzero(inside.any(axis=1))
    if not rows.size:
        return np.zeros(0)
    part = inside[rows[0] : rows[-1] + 1]
    columns = np.flatnonzero(part.any(axis=0))
    part = part[:, columns[0] : columns[-1] + 1]
    regions, _ = label(part, structure=np.ones((3, 3), dtype=np.int64))
    numbers = regions[part]
    return 1.0 / np.bincount(numbers)[numbers]
