"""Area under the receiver operating characteristic."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .counting import ThresholdCounts, counts_of


def auroc(scores: NDArray, labels: NDArray) -> float:
    """The probability that a defect sample scores above a normal one, ties counting half. 0.5 is chance.

    Args:
        scores: any shape, higher means more defective.
        labels: the same shape, 0 normal and 1 defect.

    Returns:
        0..1, or NaN where it is undefined: without defect or without normal samples.
    """
    return auroc_of(counts_of(scores, labels))


def auroc_of(counts: ThresholdCounts) -> float:
    """As `auroc`, from counts that several metrics share."""
    if not counts.defects or not counts.normals:
        return float("nan")
    beaten = 2 * counts.normals - counts.above - counts.at_or_above
    return float(np.sum(counts.hits * beaten) / (2.0 * counts.defects * counts.normals))
