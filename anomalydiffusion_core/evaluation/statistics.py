"""Means, spreads and differences of repeated measurements, with nothing counted as independent that is not.

A row of a table is measured ``n x m`` times: n sets (each with its own embedding, generated pairs and detectors) and m
detectors on each. Detectors on one set share its pairs, so the n means of the sets are the independent values; with
one set only the detectors are, and what another set would change is not in their spread.

Two rows are compared set by set (detector by detector where there is one set): the difference has a Student-t
confidence interval, and a row is better only where that excludes zero.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from .metrics.detection import spread

LEVEL = 0.95
BETTER, WORSE, OPEN = "better", "worse", "no difference shown"


def independent(values: Sequence[float], sets: Sequence[Hashable]) -> list[float]:
    """The independent values: the mean of each set in order of appearance, or all values where there is one set.

    Undefined (NaN) values make their mean undefined.
    """
    groups: dict[Hashable, list[float]] = {}
    for value, one in zip(values, sets, strict=True):
        groups.setdefault(one, []).append(value)
    return list(values) if len(groups) < 2 else [statistics.fmean(group) for group in groups.values()]


def mean_and_spread(values: Sequence[float], sets: Sequence[Hashable]) -> tuple[float, float]:
    """Mean and sample standard deviation of the independent values; NaN where undefined."""
    own = independent(values, sets)
    return statistics.fmean(own), spread(own)


def repeated_text(sets: Sequence[Hashable], what: str = "generated set") -> str:
    """What was repeated: ``3 generated sets x 2 detectors``."""
    count = len(dict.fromkeys(sets))
    per = sorted({list(sets).count(one) for one in sets})
    many = "" if count == 1 else "s"
    inside = str(per[0]) if len(per) == 1 else f"{per[0]} to {per[-1]}"
    return f"{count} {what}{many} x {inside} detector{'' if per == [1] else 's'}"


@dataclass(frozen=True)
class Difference:
    """A row minus another one over ``count`` pairs of independent values.

    low, high: confidence interval of the mean difference at LEVEL; NaN for less than two pairs.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def verdict(self) -> str:
        """BETTER or WORSE only where the interval excludes zero."""
        if self.low > 0:
            return BETTER
        return WORSE if self.high < 0 else OPEN

    def text(self, decimals: int = 3) -> str:
        """``+0.034 [+0.010, +0.058] better``."""
        if math.isnan(self.mean):
            return "undefined"
        mean = f"{self.mean:+.{decimals}f}"
        if math.isnan(self.low):
            return f"{mean} (one pair, no interval)"
        return f"{mean} [{self.low:+.{decimals}f}, {self.high:+.{decimals}f}] {self.verdict}"


def paired_difference(ours: Sequence[float], others: Sequence[float]) -> Difference:
    """The mean of ours - others, pair by pair, with its Student-t interval (n - 1 degrees of freedom).

    Raises ValueError for lists of different lengths or none.
    """
    if len(ours) != len(others) or not ours:
        raise ValueError(f"{len(ours)} and {len(others)} values cannot be paired")
    differences = [a - b for a, b in zip(ours, others, strict=True)]
    mean, deviation, count = statistics.fmean(differences), spread(differences), len(differences)
    if count < 2 or math.isnan(deviation):
        return Difference(mean, math.nan, math.nan, count)
    from scipy.stats import t

    half = float(t.ppf(0.5 + LEVEL / 2, count - 1)) * deviation / math.sqrt(count)
    return Difference(mean, mean - half, mean + half, count)


def without_repeats(
    runs: Sequence[Hashable | None], seeds: Sequence[int], metrics: Mapping[str, Sequence[float | None]]
) -> list[int]:
    """Places of measurements that are not the same run twice.

    runs: identity of each, None where it is not known; then equal seeds with equal values in all metrics are one run.
    """
    seen: set[Hashable] = set()
    kept = []
    for place, (run, seed) in enumerate(zip(runs, seeds, strict=True)):
        values = tuple((name, column[place]) for name, column in sorted(metrics.items()))
        own: Hashable = run if run else (seed, values)
        if own not in seen:
            kept.append(place)
        seen.add(own)
    return kept
