"""Masks as polygons along the edges of their pixels: outlines, holes, and single outlines that hold their holes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""Right, down, left, up: inside lies on the right hand of each step."""


@dataclass(frozen=True, eq=False)
class Part:
    """A connected part of a mask. outlines and holes: rings [n, 2] of x, y. inside: the part alone, [H, W] of bool."""

    outlines: tuple[np.ndarray, ...]
    holes: tuple[np.ndarray, ...]
    inside: np.ndarray

    @property
    def area(self) -> int:
        """Pixels."""
        return int(self.inside.sum())

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """x, y, width, height of the smallest box around it."""
        rows, columns = np.flatnonzero(self.inside.any(axis=1)), np.flatnonzero(self.inside.any(axis=0))
        x, y = int(columns[0]), int(rows[0])
        return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1


def parts_of(mask: np.ndarray, diagonal: bool = True) -> list[Part]:
    """The connected parts of a mask [H, W]. diagonal: pixels that touch at a corner are one part.

    Without diagonals every part has exactly one outline.
    """
    from scipy import ndimage

    labels, count = ndimage.label(mask, np.ones((3, 3)) if diagonal else None)
    found = []
    for number in range(1, count + 1):
        inside = labels == number
        rings = trace(inside)
        outlines = tuple(ring for ring in rings if _signed_area(ring) > 0)
        found.append(Part(outlines, tuple(ring for ring in rings if _signed_area(ring) < 0), inside))
    return found


def trace(mask: np.ndarray) -> list[np.ndarray]:
    """All rings of a mask [H, W], with a point at each corner: outlines clockwise (y down), holes the other way.

    Where two pixels touch at a corner only, the rings keep apart.
    """
    padded = np.pad(np.asarray(mask, dtype=bool), 1)
    inner = padded[1:-1, 1:-1]
    neighbours = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    # The upper edge of a pixel is walked to the right, the right one down, the lower one left, the left one up.
    corners = ((0, 0), (1, 0), (1, 1), (0, 1))
    open_steps: dict[tuple[int, int], list[int]] = {}
    for direction, (neighbour, (dx, dy)) in enumerate(zip(neighbours, corners, strict=True)):
        rows, columns = np.nonzero(inner & ~neighbour)
        for x, y in zip((columns + dx).tolist(), (rows + dy).tolist(), strict=True):
            open_steps.setdefault((x, y), []).append(direction)
    rings = []
    for start in sorted(open_steps):
        while open_steps[start]:
            rings.append(_walk(start, open_steps))
    return rings


def keyholed(part: Part) -> np.ndarray:
    """One ring [n, 2] for a part of one outline: holes hang on it by cuts of no width, walked both ways.

    The even-odd rule and the non-zero rule both leave the holes open.
    """
    ring = part.outlines[0]
    for hole in part.holes:
        distance = ((ring[:, None] - hole[None]) ** 2).sum(axis=2)
        here, there = np.unravel_index(int(distance.argmin()), distance.shape)
        around = np.concatenate([np.roll(hole, -int(there), axis=0), hole[there : there + 1]])
        ring = np.concatenate([ring[: here + 1], around, ring[here:]])
    return ring


def _walk(start: tuple[int, int], open_steps: dict[tuple[int, int], list[int]]) -> np.ndarray:
    direction = open_steps[start].pop(0)
    first, place, points = direction, start, [start]
    while True:
        place = (place[0] + STEPS[direction][0], place[1] + STEPS[direction][1])
        choices = open_steps[place]
        if place == start and (not choices or (direction + 1) % 4 not in choices):
            if direction == first:
                points.pop(0)  # the walk began in the middle of a straight edge
            break
        # turning right first keeps pixels that touch at a corner apart
        turned = next(turn % 4 for turn in (direction + 1, direction, direction - 1) if turn % 4 in choices)
        choices.remove(turned)
        if turned != direction:
            points.append(place)
        direction = turned
    return np.array(points, dtype=np.float64)


def _signed_area(ring: np.ndarray) -> float:
    x, y = ring[:, 0], ring[:, 1]
    return float(x @ np.roll(y, -1) - np.roll(x, -1) @ y) / 2
