"""The best F1 score over all thresholds."""

from __future__ import annotations

from numpy.typing import NDArray

from .counting import ThresholdCounts, counts_of


def f1_max(scores: NDArray, labels: NDArray) -> float:
    """The largest 2PR/(P+R) that any threshold reaches. Every different score is tried, no grid.

    Args:
        scores: any shape, higher means more defective.
        labels: the same shape, 0 normal and 1 defect.

    Returns:
        0..1, or NaN where it is undefined: without defect samples.
    """
    return f1_max_of(counts_of(scores, labels))


def f1_max_of(counts: ThresholdCounts) -> float:
    """As `f1_max`, from counts that several metrics share."""
    if not counts.defects:
        return float("nan")
    # 2TP / (2TP + FP + FN), and TP + FN is the number of defects
    return float((2 * counts.found / (counts.found + counts.at_or_above + counts.defects)).max())
