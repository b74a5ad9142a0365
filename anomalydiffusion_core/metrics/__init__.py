"""Detection metrics: exact (every score is a threshold), in float64, and NaN wherever a metric is undefined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from numpy.typing import NDArray

from .auroc import auroc, auroc_of
from .average_precision import average_precision, average_precision_of
from .counting import checked_maps, counts_of_maps
from .f1_max import f1_max, f1_max_of
from .pro import PRO_LIMIT, pro, pro_of

__all__ = ["PRO_LIMIT", "PixelMetrics", "auroc", "average_precision", "f1_max", "pixel_metrics", "pro"]


@dataclass(frozen=True)
class PixelMetrics:
    """The four pixel-level metrics of one detector, each 0..1 or NaN."""

    auroc: float
    ap: float
    f1: float
    pro: float


def pixel_metrics(
    score_maps: Sequence[NDArray], masks: Sequence[NDArray], pro_limit: float = PRO_LIMIT
) -> PixelMetrics:
    """All four metrics over the pixels of all pictures together, counted once where they can share it.

    Args:
        score_maps, masks: [H,W] each (or [1,H,W]), as in `pro`.
    """
    pairs = checked_maps(score_maps, masks)
    counted = counts_of_maps(pairs)
    counts = counted[0]
    return PixelMetrics(
        auroc_of(counts), average_precision_of(counts), f1_max_of(counts), pro_of(pairs, pro_limit, counted)
    )
