"""Detection metrics: every score is a threshold, counted in float64, and NaN wherever a metric is undefined.

Pixel metrics take in one picture after the other and need bounded memory; masks are resized in one stated way.
"""

from __future__ import annotations

from .auroc import auroc
from .average_precision import average_precision
from .f1_max import f1_max
from .ground_truth import fit_ground_truth
from .pro import pro
from .streaming import EXACT_SAMPLES, PRO_LIMIT, PixelMetrics, StreamingPixelMetrics, pixel_metrics
from .undefined import defined

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
    "pro",
]
