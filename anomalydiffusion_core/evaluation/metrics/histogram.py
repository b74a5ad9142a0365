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
ROOM = 2**22
"""Places of this many samples wait to be counted together: a table for each image would cost as much as counting."""
CHUNK = 2**15
"""Scores that are turned into places at a time, so that what lies between stays in the cache of a processor."""


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
        self._waiting = 0
        self._defects = torch.zeros(bins, dtype=torch.int64)
        self._weights = torch.zeros(bins, dtype=torch.float64)

    @property
    def exact(self) -> bool:
        """Whether every number has a place of its own."""
        return self._shift == 0

    def add(
        self,
        scores: NDArray,
        inside: NDArray[np.bool_],
        weights: NDArray,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        """Count finite float32 or float64 scores of any shape; one kind only.

        Args:
            inside: the same shape, True for a defect sample.
            weights: one for each defect sample.
            bounds: the lowest and highest of the scores, where they are known.
        """
        if self._dtype not in (None, scores.dtype):
            raise InputError(f"scores: {scores.dtype} after {self._dtype}. Give all maps in one of the two.")
        if not scores.size:
            return
        self._dtype = scores.dtype
        low, high = (scores.min(), scores.max()) if bounds is None else bounds
        self._cover(_ordered_integer(low, scores.dtype), _ordered_integer(high, scores.dtype))
        if not len(self._room):
            self._room = np.empty(ROOM, np.int32)
        values, marks, used = np.ascontiguousarray(scores).ravel(), np.ravel(inside), 0
        shares = torch.from_numpy(np.ravel(weights).astype(np.float64, copy=False))
        for start in range(0, len(values), ROOM):
            part = values[start : start + ROOM]
            if self._waiting + len(part) > ROOM:
                self._flush()
            places = self._room[self._waiting : self._waiting + len(part)]
            for first in range(0, len(part), CHUNK):
                self._place(part[first : first + CHUNK], low > 0, places[first : first + CHUNK])
            self._waiting += len(part)
            marked = torch.from_numpy(places[marks[start : start + ROOM]])
            if len(marked):
                self._defects.index_add_(0, marked, torch.ones(len(marked), dtype=torch.int64))
                self._weights.index_add_(0, marked, shares[used : used + len(marked)])
                used += len(marked)

    def _place(self, scores: NDArray, positive: bool, places: NDArray[np.int32]) -> None:
        """Write the places of some scores."""
        keys = scores.view(_kind(scores.dtype))
        if not positive and keys.min() < 0:
            keys = _ordered_integers(scores)
        if keys.dtype == np.int32:
            np.right_shift(keys, self._shift, out=places)
            np.subtract(places, self._first, out=places)
        else:
            np.subtract(keys >> self._shift, self._first, out=places, casting="unsafe")

    def _flush(self) -> None:
        """Count the places that wait."""
        if self._waiting:
            used = self._last - self._first + 1
            places = torch.from_numpy(self._room[: self._waiting])
            self._all[:used] += torch.bincount(places, minlength=used)
            self._waiting = 0

    def counts(self) -> tuple[ThresholdCounts, ThresholdCounts]:
        """As `count_thresholds`, where scores of one step of the table count as equal."""
        self._flush()
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
            self._flush()
            self._move(low >> steps, steps)
        self._first, self._last, self._shift = low >> steps, high >> steps, self._shift + steps

    def _move(self, first: int, steps: int) -> None:
        """Merge 2^steps neighbours each, and let the table start at `first`."""
        places = (torch.arange(self._first, self._last + 1) >> steps) - first
        for name in ("_all", "_defects", "_weights"):
            old = getattr(self, name)
            setattr(self, name, torch.zeros_like(old).index_add_(0, places, old[: len(places)]))


def _kind(dtype: np.dtype) -> type[np.signedinteger]:
    return np.int64 if dtype == np.float64 else np.int32


def _ordered_integers(scores: NDArray) -> NDArray[np.int64]:
    """Integers in the order of the scores [N]; -0 and 0 are one."""
    kind = _kind(scores.dtype)
    bits = (scores + 0.0).view(kind)
    # of negative numbers the sign bit is set and the larger ones have the smaller rest
    return np.where(bits < 0, bits ^ np.iinfo(kind).max, bits).astype(np.int64)


def _ordered_integer(score: float, dtype: np.dtype) -> int:
    return int(_ordered_integers(np.asarray([score], dtype))[0])
