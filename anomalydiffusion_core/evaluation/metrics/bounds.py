"""How far metrics may be from their exact values when neighbouring scores were counted as one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .auroc import auroc_of
from .average_precision import average_precision_of
from .counting import ThresholdCounts, partial_area
from .f1_max import f1_max_of


def largest_error(pixels: ThresholdCounts, regions: ThresholdCounts, pro_limit: float) -> float:
    """The largest error of AUROC, AP, F1-max and PRO, whatever the order inside each step of the table.

    In the best order the defect samples of a step come before its normal samples, in the worst one after them. Each
    metric is computed for both; a metric that is undefined has no error.
    """
    if not pixels.defects or not pixels.normals:
        return 0.0
    best_pixels, best_regions = (replace(counts, at_or_above=counts.above) for counts in (pixels, regions))
    worst_regions = replace(regions, above=regions.at_or_above)
    overlaps = [partial_area(counts, pro_limit) for counts in (worst_regions, regions, best_regions)]
    ranges = [
        (auroc_of(replace(pixels, above=pixels.at_or_above)), auroc_of(pixels), auroc_of(best_pixels)),
        (_worst_average_precision(pixels), average_precision_of(pixels), average_precision_of(best_pixels)),
        (f1_max_of(pixels), f1_max_of(pixels), f1_max_of(best_pixels)),
        tuple(overlaps),
    ]
    return max(max(best - value, value - worst) for worst, value, best in ranges)


def _worst_average_precision(counts: ThresholdCounts) -> float:
    # the first hit of a step after all of its normal samples, and no later hit of it better
    first = counts.found - counts.hits + 1
    return float(np.sum(counts.hits * first / (first + counts.at_or_above)) / counts.defects)
