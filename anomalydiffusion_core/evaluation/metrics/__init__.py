"""Detection metrics: every score is a threshold, counted in float64, and NaN wherever a metric is undefined.

Pixel metrics take one image after the other in bounded memory; masks are resized in one stated way.
"""

from __future__ import annotations

from .detection import auroc, average_precision, defined, f1_max
from .pixels import EXACT_SAMPLES, PRO_LIMIT, PixelMetrics, StreamingPixelMetrics, fit_ground_truth, pixel_metrics

__all__ = [
    "EXACT_SAMPLES",
    "PRO_LIMIT",
    "PixelMetrics",
    "StreamingPixelMetrics",
    "auroc",
    "average_precision",
    "defined",
    "f1_max",
    "fit_ground_truth",
    "pixel_metrics",
]
