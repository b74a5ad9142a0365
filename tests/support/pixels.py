"""Pixel metrics of a few images at once."""

from __future__ import annotations

from collections.abc import Iterable

from numpy.typing import NDArray

from anomalydiffusion_core.evaluation.metrics.pixels import PRO_LIMIT, PixelMetrics, StreamingPixelMetrics


def pixel_metrics(maps: Iterable[NDArray], masks: Iterable[NDArray], pro_limit: float = PRO_LIMIT) -> PixelMetrics:
    metrics = StreamingPixelMetrics()
    for values, mask in zip(maps, masks, strict=True):
        metrics.update(values, mask)
    return metrics.compute(pro_limit)
