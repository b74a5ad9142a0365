"""Regions of label files drawn as masks, and masks traced as polygons.

Coordinates are continuous, as in COCO: pixel i spans i to i + 1, its centre is i + 0.5. A pixel is inside where its
centre is. Tracing follows the edges of pixels, so a traced mask is drawn again exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ...errors import InputError


class Region(Protocol):
    """A part of a mask."""

    def fill(self, canvas: np.ndarray) -> None:
        """Set its pixels in canvas [H, W] of bool."""
        ...


@dataclass(frozen=True, eq=False)
class Rings:
    """Closed outlines, each [n, 2] of x, y, filled by the even-odd rule: a ring inside another one is a hole.

    One that encloses no centre of a pixel is drawn by its outline, so that a thin defect is not lost.
    """

    rings: tuple[np.ndarray, ...]

    def fill(self, canvas: np.ndarray) -> None:
        """Set its pixels."""
        inside = _even_odd(self.rings, canvas.shape)
        if not inside.any():
            for ring in self.rings:
                Stroke(np.concatenate([ring, ring[:1]]), 1.0).fill(inside)
        canvas |= inside


@dataclass(frozen=True, eq=False)
class Stroke:
    """A line through points [n, 2] of x, y, of a width in pixels; one point is a disc."""

    points: np.ndarray
    width: float

    def fill(self, canvas: np.ndarray) -> None:
        """Set the pixels whose centre is within half the width, and those that its points lie in."""
        height, width = canvas.shape
        radius = self.width / 2
        for start, end in zip(self.points, self.points[1:] if len(self.points) > 1 else self.points, strict=False):
            low = np.floor(np.minimum(start, end) - radius).astype(int)
            high = np.ceil(np.maximum(start, end) + radius).astype(int)
            x0, y0 = np.clip(low, 0, (width, height))
            x1, y1 = np.clip(high, 0, (width, height))
            if x0 >= x1 or y0 >= y1:
                continue
            y, x = np.mgrid[y0:y1, x0:x1] + 0.5
            step = end - start
            length = float(step @ step)
            along = ((x - start[0]) * step[0] + (y - start[1]) * step[1]) / length if length else np.zeros_like(x)
            along = np.clip(along, 0, 1)
            distance = np.hypot(x - start[0] - along * step[0], y - start[1] - along * step[1])
            canvas[y0:y1, x0:x1] |= distance <= max(radius, 0.5)
        for x, y in np.floor(self.points).astype(int):
            if 0 <= y < height and 0 <= x < width:
                canvas[y, x] = True


@dataclass(frozen=True, eq=False)
class Patch:
    """A small mask [h, w] of bool whose upper left pixel is at (left, top)."""

    left: int
    top: int
    inside: np.ndarray

    def fill(self, canvas: np.ndarray) -> None:
        """Set its pixels; what lies outside of the canvas is left out."""
        height, width = canvas.shape
        y0, x0 = max(self.top, 0), max(self.left, 0)
        y1, x1 = min(self.top + self.inside.shape[0], height), min(self.left + self.inside.shape[1], width)
        if y0 < y1 and x0 < x1:
            canvas[y0:y1, x0:x1] |= self.inside[y0 - self.top : y1 - self.top, x0 - self.left : x1 - self.left]


@dataclass(frozen=True, eq=False)
class Runs:
    """COCO's run lengths: zeros, ones, zeros ... column by column over an image of ``size`` (height, width)."""

    counts: tuple[int, ...]
    size: tuple[int, int]

    def fill(self, canvas: np.ndarray) -> None:
        """Set its pixels. Raises InputError for runs that do not make up the image."""
        if tuple(canvas.shape) != tuple(self.size):
            raise InputError(f"RLE: of {self.size[1]}x{self.size[0]} px, its image has another size.")
        canvas |= unrolled(self.counts, self.size[0] * self.size[1]).reshape(self.size[1], self.size[0]).T


def fill(regions: Sequence[Region], size: tuple[int, int]) -> np.ndarray:
    """The union of regions as [H, W] of bool."""
    canvas = np.zeros(size, dtype=bool)
    for region in regions:
        region.fill(canvas)
    return canvas


def box(x0: float, y0: float, x1: float, y1: float) -> Rings:
    """A rectangle by two opposite corners."""
    return Rings((np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=np.float64),))


def ellipse(x: float, y: float, radius_x: float, radius_y: float, degrees: float = 0.0) -> Rings:
    """An ellipse by its centre, as a polygon of 180 corners."""
    angle, turn = np.linspace(0, 2 * np.pi, 180, endpoint=False), np.deg2rad(degrees)
    along, across = radius_x * np.cos(angle), radius_y * np.sin(angle)
    points = [x + along * np.cos(turn) - across * np.sin(turn), y + along * np.sin(turn) + across * np.cos(turn)]
    return Rings((np.stack(points, axis=1),))


def unrolled(counts: Sequence[int], total: int) -> np.ndarray:
    """Alternating runs of zeros and ones as [total] of bool. Raises InputError when they do not add up to total."""
    lengths = np.asarray(counts, dtype=np.int64)
    if (lengths < 0).any() or int(lengths.sum()) != total:
        raise InputError(f"RLE: its runs make up {int(lengths.sum())} pixels, the image has {total}.")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)


def runs_of(flat: np.ndarray) -> list[int]:
    """[N] of bool as alternating runs that begin with zeros, the inverse of `unrolled`."""
    changes = np.flatnonzero(np.diff(np.concatenate([[False], flat.astype(bool)]).astype(np.int8)))
    return np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()


def packed(counts: Sequence[int]) -> str:
    """COCO's text of run lengths: differences to the run before the last, in groups of 5 bits (cocoapi maskApi.c)."""
    text = []
    for index, count in enumerate(counts):
        value = int(count) - (int(counts[index - 2]) if index > 2 else 0)
        more = True
        while more:
            group, value = value & 0x1F, value >> 5
            more = value != -1 if group & 0x10 else value != 0
            text.append(chr(48 + (group | 0x20 if more else group)))
    return "".join(text)


def unpacked(text: str) -> list[int]:
    """The run lengths of COCO's text. Raises InputError for a damaged one."""
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise InputError(f"RLE: '{character}' does not occur in COCO's run lengths.")
        value |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            if code & 0x10:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    if shift:
        raise InputError("RLE: the run lengths end in the middle of a number.")
    return counts


def _even_odd(rings: Sequence[np.ndarray], size: tuple[int, ...]) -> np.ndarray:
    """Centres of pixels inside: each edge toggles what lies right of it in the rows that it crosses."""
    inside = np.zeros(size, dtype=bool)
    every = np.concatenate(rings)
    (x0, y0), (x1, y1) = (np.clip(edge, 0, size[::-1]).astype(int) for edge in _bounds(every))
    if x0 >= x1 or y0 >= y1:
        return inside
    toggles = np.zeros((y1 - y0, x1 - x0 + 1), dtype=np.uint8)  # only the parity counts, so they may overflow
    for ring in rings:
        start, end = np.asarray(ring, np.float64), np.roll(np.asarray(ring, np.float64), -1, axis=0)
        low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
        first = np.clip(np.ceil(low - 0.5), y0, y1).astype(int)
        count = np.maximum(np.clip(np.ceil(high - 0.5), y0, y1).astype(int) - first, 0)
        edge = np.repeat(np.arange(len(start)), count)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        share = (row + 0.5 - start[edge, 1]) / (end[edge, 1] - start[edge, 1])
        x = start[edge, 0] + share * (end[edge, 0] - start[edge, 0])
        np.add.at(toggles, (row - y0, np.clip(np.ceil(x - 0.5), x0, x1).astype(int) - x0), 1)
    inside[y0:y1, x0:x1] = np.cumsum(toggles[:, :-1], axis=1, dtype=np.uint8) % 2 == 1
    return inside


def _bounds(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The corners of the smallest box of whole pixels around points [n, 2]."""
    return np.floor(points.min(axis=0)), np.ceil(points.max(axis=0))
