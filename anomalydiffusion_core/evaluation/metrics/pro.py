"""Per-region overlap (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5.1.2)."""

from __future__ import annotations

from collections.abc import Iterable

from numpy.typing import NDArray

from .streaming import PRO_LIMIT, pixel_metrics


def pro(score_maps: Iterable[NDArray], masks: Iterable[NDArray], limit: float = PRO_LIMIT) -> float:
    """Area under the curve of mean overlap with the defect regions against the false positive rate, up to `limit`.

    A region is an 8-connected component of one mask; a small region counts as much as a large one. The curve runs
    over every different score, not a selection, and is cut at the limit by linear interpolation, so the value,
    divided by `limit`, never exceeds 1.

    Args:
        score_maps: [H,W] each, higher means more defective; sizes may differ from picture to picture.
        masks: one for each map, 0 and 1, see `StreamingPixelMetrics`. Pictures without defect belong in here.
        limit: largest false positive rate that counts, 0 < limit <= 1.

    Returns:
        0..1, or NaN where it is undefined: without any region or without normal pixels.
    """
    return pixel_metrics(score_maps, masks, limit).pro
