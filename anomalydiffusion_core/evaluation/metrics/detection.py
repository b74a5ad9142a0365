"""AUROC, average precision, F1-max and partial areas of counted thresholds, and how far they can be off."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...errors import InputError
from .counting import ThresholdCounts


def auroc(counts: ThresholdCounts) -> float:
    """The probability that a defect sample scores above a normal one, ties counting half. 0.5 is chance.

    Returns:
        0..1, or NaN where it is undefined: without defect or without normal samples.
    """
    if not counts.defects or not counts.normals:
        return float("nan")
    beaten = 2 * counts.normals - counts.above - counts.at_or_above
    return float(np.sum(counts.hits * beaten) / (2.0 * counts.defects * counts.normals))


def average_precision(counts: ThresholdCounts) -> float:
    """Sum over the thresholds of (gain in recall) x precision, without interpolation.

    Returns:
        0..1 (the share of defects is chance), or NaN where it is undefined: without defect samples.
    """
    if not counts.defects:
        return float("nan")
    precision = counts.found / (counts.found + counts.at_or_above)
    return float(np.sum(counts.hits * precision) / counts.defects)


def f1_max(counts: ThresholdCounts) -> float:
    """The largest 2PR/(P+R) that any threshold reaches. Every distinct score is tried, not a grid.

    Returns:
        0..1, or NaN where it is undefined: without defect samples.
    """
    if not counts.defects:
        return float("nan")
    # 2TP / (2TP + FP + FN), and TP + FN is the number of defects
    return float((2 * counts.found / (counts.found + counts.at_or_above + counts.defects)).max())


def partial_area(counts: ThresholdCounts, limit: float) -> float:
    """Area under the curve (false positive rate, share of defect found) for rates from 0 to `limit`, over `limit`.

    Ties of normal and defect samples give a sloping piece, as in the trapezoidal rule over all thresholds; the piece
    that crosses the limit is cut there by linear interpolation.

    Returns:
        NaN where there are no defects or no normal samples.
    """
    if not 0 < limit <= 1:
        raise InputError(f"limit: {limit}. Give a false positive rate above 0 and at most 1.")
    if not counts.defects or not counts.normals:
        return float("nan")
    share = counts.found / counts.hits.sum()
    before = np.concatenate([[0.0], share[:-1]])
    # corners of the curve: up to each threshold flat, then up (or sloping where normal samples tie)
    rates = np.stack([counts.above, counts.at_or_above], axis=1).ravel() / counts.normals
    heights = np.stack([before, share], axis=1).ravel()
    rates = np.concatenate([[0.0], rates, [1.0]])
    heights = np.minimum(np.concatenate([[0.0], heights, [1.0]]), 1.0)
    last = int(np.searchsorted(rates, limit, side="right"))
    if last < len(rates):
        left, right = rates[last - 1], rates[last]
        cut = heights[last - 1] + (heights[last] - heights[last - 1]) * (limit - left) / (right - left)
        rates = np.concatenate([rates[:last], [limit]])
        heights = np.concatenate([heights[:last], [cut]])
    area = float(np.sum(np.diff(rates) * (heights[1:] + heights[:-1]) / 2))
    return min(area / limit, 1.0)


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
        (auroc(replace(pixels, above=pixels.at_or_above)), auroc(pixels), auroc(best_pixels)),
        (_worst_average_precision(pixels), average_precision(pixels), average_precision(best_pixels)),
        (f1_max(pixels), f1_max(pixels), f1_max(best_pixels)),
        tuple(overlaps),
    ]
    return max(max(best - value, value - worst) for worst, value, best in ranges)


def _worst_average_precision(counts: ThresholdCounts) -> float:
    # the first hit of a step after all of its normal samples, and no later hit of it better
    first = counts.found - counts.hits + 1
    return float(np.sum(counts.hits * first / (first + counts.at_or_above)) / counts.defects)


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation; NaN for a single value or where one is undefined."""
    known = len(values) > 1 and not any(map(math.isnan, values))
    return statistics.stdev(values) if known else math.nan


def defined(value: float) -> float | None:
    """The value, or None for NaN: JSON has no NaN, so undefined metrics are null there."""
    return None if math.isnan(value) else value
