"""Average precision, the step-wise area under the precision-recall curve."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .counting import ThresholdCounts, counts_of


def average_precision(scores: NDArray, labels: NDArray) -> float:
    """Sum over the thresholds of (gain in recall) x precision, without interpolation.

    Args:
        scores: any shape, higher means more defective.
        labels: the same shape, 0 normal and 1 defect.

    Returns:
        0..1 (the share of defects is chance), or NaN where it is undefined: without defect samples.
    """
    return average_precision_of(counts_of(scores, labels))


def average_precision_of(counts: ThresholdCounts) -> float:
    """As `average_precision`, from counts that several metrics share."""
    if not counts.defects:
        return float("nan")
    precision = counts.found / (counts.found + counts.at_or_above)
    return float(np.sum(counts.hits * precision) / counts.defects)
