"""Counting any number of scores in a table of fixed size.

A floating point number read as an integer keeps its order. The table holds equal steps of these integers between the
lowest and the highest score so far: next to each other below 2^20 different numbers (a narrow range of float32 scores
is counted exactly), else in steps of a power of two, which are relative steps of the scores, fine near 0 as well. A
range that grows only merges neighbours, so the order in which the scores come in makes no difference.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import InputError
from .counting import ThresholdCounts

BINS = 2**20


class ScoreHistogram:
    """Counts of all samples and of defect samples, and weights of defect samples, by score."""

    def __init__(self, bins: int = BINS) -> None:
        self._bins = bins
        self._shift = 0
        self._first = 0
        self._last = -1
        self._dtype: np.dtype | None = None
        self._all = torch.zeros(bins, dtype=torch.int64)
        self._room = np.zeros(0, np.int32)
        self._defects = torch.zeros(bins, dtype=torch.int64)
        self._weights = torch.zeros(bins, dtype=torch.float64)

    @property
    def exact(self) -> bool:
        """Whether every number has a place of its own."""
        return self._shift == 0

    def add(self, scores: NDArray, inside: NDArray[np.bool_], weights: NDArray) -> None:
        """Count finite float32 or float64 scores of any shape; one kind only.

        Args:
            inside: the same shape, True for a defect sample.
            weights: one for each defect sample.
        """
        if self._dtype not in (None, scores.dtype):
            raise InputError(f"scores: {scores.dtype} after {self._dtype}. Give all maps in one of the two.")
        if not scores.size:
            return
        self._dtype = scores.dtype
        keys, lowest, highest = _ordered_integers(np.ravel(scores))
        self._cover(lowest, highest)
        places = torch.from_numpy(self._places(keys))
        used = self._last - self._first + 1
        # Most of the time goes into this: one table of the places in use, without a one to add for each sample.
        self._all[:used] += torch.bincount(places, minlength=used)
        marked = places[torch.from_numpy(np.flatnonzero(inside))]
        if len(marked):
            self._defects.index_add_(0, marked, torch.ones(len(marked), dtype=torch.int64))
            self._weights.index_add_(0, marked, torch.from_numpy(np.ravel(weights).astype(np.float64)))

    def _places(self, keys: NDArray) -> NDArray[np.int32]:
        if keys.dtype != np.int32:
            return ((keys >> self._shift) - self._first).astype(np.int32)
        # New memory for every image would cost as much as the counting.
        if len(self._room) < len(keys):
            self._room = np.empty(len(keys), np.int32)
        places = self._room[: len(keys)]
        np.right_shift(keys, self._shift, out=places)
        np.subtract(places, self._first, out=places)
        return places

    def counts(self) -> tuple[ThresholdCounts, ThresholdCounts]:
        """As `count_thresholds`, where scores of one step of the table count as equal."""
        defects = self._defects.numpy()
        normals = self._all.numpy() - defects
        used = np.flatnonzero(defects)[::-1]
        at_or_above = np.cumsum(normals[::-1])[::-1]
        total = int(at_or_above[0])
        at_or_above = at_or_above[used]
        above = at_or_above - normals[used]
        hits = defects[used].astype(np.float64)
        found = int(defects.sum())
        return (
            ThresholdCounts(hits, above, at_or_above, found, total),
            ThresholdCounts(self._weights.numpy()[used], above, at_or_above, found, total),
        )

    def _cover(self, lowest: int, highest: int) -> None:
        """Make room for integers from `lowest` to `highest`: widen the steps if need be, and move the start."""
        empty = self._last < self._first
        low, high = lowest >> self._shift, highest >> self._shift
        if not empty:
            low, high = min(low, self._first), max(high, self._last)
        steps = 0
        while (high >> steps) - (low >> steps) >= self._bins:
            steps += 1
        if not empty and (steps or low < self._first):
            self._move(low >> steps, steps)
        self._first, self._last, self._shift = low >> steps, high >> steps, self._shift + steps

    def _move(self, first: int, steps: int) -> None:
        """Merge 2^steps neighbours each, and let the table start at `first`."""
        places = (torch.arange(self._first, self._last + 1) >> steps) - first
        for name in ("_all", "_defects", "_weights"):
            old = getattr(self, name)
            setattr(self, name, torch.zeros_like(old).index_add_(0, places, old[: len(places)]))


def _ordered_integers(scores: NDArray) -> tuple[NDArray, int, int]:
    """Integers in the order of the scores [N], and the lowest and highest; -0 and 0 are one.

    int32, or int64 where float32 has both signs and for float64.
    """
    kind = np.int64 if scores.dtype == np.float64 else np.int32
    bits: NDArray = np.ascontiguousarray(scores).view(kind)
    lowest = int(bits.min())
    if lowest < 0:
        bits = (scores + 0.0).view(kind)
        # of negative numbers the sign bit is set and the larger ones have the smaller rest
        bits = np.where(bits < 0, bits ^ np.iinfo(kind).max, bits).astype(np.int64)
        lowest = int(bits.min())
    return bits, lowest, int(bits.max())
