"""Masks without examples: Perlin noise as in DRAEM, strokes, cracks and blobs, with areas like those of real masks.

Every kind is a score per pixel, and the mask is the pixels of the highest scores, as many as the wanted area has. So
the area is met exactly, whatever the kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..options import Settings, check_order, option
from .variation import OnDone

Field = NDArray[np.float64]
Frame = tuple[int, int]
"""Height and width of an image in pixels."""
PERLIN, STROKE, CRACK, BLOB, MIXED = "perlin", "stroke", "crack", "blob", "mixed"
KINDS = (MIXED, PERLIN, STROKE, CRACK, BLOB)
_PERLIN_LARGEST_POWER = 6
"""DRAEM draws the number of cells per side from 1, 2, 4 ... 32."""


@dataclass(frozen=True)
class AreaDistribution(Settings):
    """Areas of masks as shares of the image, on a logarithmic scale.

    ``examples`` of real masks with a spread around each (kernel density, Silverman's rule), or without any evenly
    between the two bounds; those bound the drawn areas in both cases.
    """

    smallest_area: float = option(
        0.002,
        "Share of the image that a mask covers at least. Not used with a data set.",
        above=0,
        max=1,
        step=0.0001,
        exact=True,
    )
    largest_area: float = option(
        0.1,
        "Share of the image that a mask covers at most. Not used with a data set.",
        above=0,
        max=1,
        step=0.01,
        exact=True,
    )
    examples: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self, "smallest_area", "largest_area")
        if any(not 0 < area <= 1 for area in self.examples):
            raise InputError("mask area: an example is not above 0 and at most 1. Give masks that are not empty.")

    @classmethod
    def learned(cls, areas: Sequence[float]) -> AreaDistribution:
        """Fitted to the areas of real masks; drawn ones stay within a quarter of the smallest and of the largest."""
        if not areas:
            raise InputError("mask area: no masks to learn areas from. Give at least one.")
        return cls(min(areas) * 0.75, min(max(areas) * 1.25, 1.0), tuple(areas))

    def draw(self, rng: np.random.Generator) -> float:
        """One area."""
        low, high = math.log(self.smallest_area), math.log(self.largest_area)
        if not self.examples:
            return math.exp(rng.uniform(low, high))
        logs = np.log(self.examples)
        # Silverman, Density Estimation, 1986, Eq. 3.28, for one dimension.
        width = 1.06 * logs.std() * len(logs) ** -0.2
        return float(math.exp(np.clip(rng.choice(logs) + width * rng.standard_normal(), low, high)))


def procedural_masks(
    kind: str,
    count: int,
    size: int | tuple[int, int],
    seed: int,
    areas: AreaDistribution | None = None,
    on_done: OnDone | None = None,
) -> Tensor:
    """``count`` masks [count, 1, H, W] of {0, 1}, none empty. Mask i depends on ``seed + i`` alone.

    size: (height, width) in pixels, or the side of a square. Shapes have no aspect of their own: on an oblong image
    they are not stretched. kind: one of ``KINDS``; mixed draws one of the four for each mask. Raises InputError for
    another kind.
    """
    if kind not in KINDS:
        raise InputError(f"kind: unknown value '{kind}'. Choose one of: {', '.join(KINDS)}.")
    frame = (size, size) if isinstance(size, int) else size
    if count < 1 or min(frame) < 8:
        shown = size if isinstance(size, int) else f"{frame[1]}x{frame[0]}"
        raise InputError(f"count, size: {count} masks of {shown} px are not possible. Give at least 1 of 8 px.")
    distribution = areas or AreaDistribution()
    masks = []
    for place in range(count):
        masks.append(_draw(kind, frame, np.random.default_rng(seed + place), distribution))
        if on_done is not None:
            on_done(place + 1)
    return torch.from_numpy(np.stack(masks).astype(np.float32))[:, None]


def _draw(kind: str, size: Frame, rng: np.random.Generator, areas: AreaDistribution) -> NDArray[np.bool_]:
    chosen = kind if kind != MIXED else KINDS[1 + int(rng.integers(len(KINDS) - 1))]
    pixels = max(1, round(areas.draw(rng) * size[0] * size[1]))
    score = {PERLIN: _perlin, STROKE: _stroke, CRACK: _crack, BLOB: _blob}[chosen](rng, size, pixels)
    mask = np.zeros(size[0] * size[1], dtype=bool)
    mask[np.argpartition(-score.ravel(), pixels - 1)[:pixels]] = True
    return mask.reshape(size)


def _perlin(rng: np.random.Generator, size: Frame, pixels: int) -> Field:
    """DRAEM (Zavrtanik et al., ICCV 2021): Perlin noise of random cells, rotated by a random angle.

    DRAEM thresholds at 0.5; here the highest values make the wanted area.
    """
    cells = 2 ** rng.integers(0, _PERLIN_LARGEST_POWER, 2)
    angle = rng.uniform(-np.pi / 2, np.pi / 2)
    largest = max(size)  # cells are square on any image
    y, x = np.meshgrid(*((np.arange(side) + 0.5) / largest - 0.5 * side / largest for side in size), indexing="ij")
    return perlin_noise(
        rng,
        (np.cos(angle) * y - np.sin(angle) * x + 0.5) * cells[0],
        (np.sin(angle) * y + np.cos(angle) * x + 0.5) * cells[1],
    )


def perlin_noise(rng: np.random.Generator, y: Field, x: Field) -> Field:
    """Perlin's gradient noise (SIGGRAPH 1985, with the quintic blend of 2002) at positions in units of its cells."""
    row, column = np.floor(y).astype(int), np.floor(x).astype(int)
    first_row, first_column = row.min(), column.min()
    angles = rng.uniform(0, 2 * np.pi, (row.max() - first_row + 2, column.max() - first_column + 2))
    inner_y, inner_x = y - row, x - column

    def corner(down: int, right: int) -> Field:
        turn = angles[row - first_row + down, column - first_column + right]
        value: Field = np.sin(turn) * (inner_y - down) + np.cos(turn) * (inner_x - right)
        return value

    blend_y, blend_x = (t**3 * (t * (6 * t - 15) + 10) for t in (inner_y, inner_x))
    upper = corner(0, 0) * (1 - blend_x) + corner(0, 1) * blend_x
    lower = corner(1, 0) * (1 - blend_x) + corner(1, 1) * blend_x
    noise: Field = np.sqrt(2) * (upper * (1 - blend_y) + lower * blend_y)
    return noise


def _stroke(rng: np.random.Generator, size: Frame, pixels: int) -> Field:
    """A bent line of varying width, 6 to 20 times as long as it is wide where the image is large enough."""
    length = min(math.sqrt(pixels * rng.uniform(6, 20)), 0.9 * max(size))
    along = np.linspace(-0.5, 0.5, 64)
    bend = rng.normal(0, 0.12) * np.cos(np.pi * along) + rng.normal(0, 0.05) * np.sin(2 * np.pi * along)
    width = 1 + 0.3 * np.interp(along, np.linspace(-0.5, 0.5, 6), rng.normal(0, 1, 6)).clip(-2, 2)
    width *= np.clip(1.1 - 8 * np.abs(along) ** 4, 0.3, 1)
    angle = rng.uniform(0, 2 * np.pi)
    line = np.stack([np.sin(angle) * along + np.cos(angle) * bend, np.cos(angle) * along - np.sin(angle) * bend], 1)
    # Dense along the line, so that a thin mask is no row of beads.
    fine = np.linspace(-0.5, 0.5, max(64, math.ceil(3 * length)))
    dense = np.stack([np.interp(fine, along, line[:, axis]) for axis in (0, 1)], axis=1)
    return _line_score(_placed(dense * length, rng, size), np.interp(fine, along, width), size, pixels)


@dataclass(frozen=True)
class _Branch:
    """Part of a crack: where it starts (y, x), its direction in radians, its length, and its width at the start."""

    start: Field
    heading: float
    length: float
    width: float


def _crack(rng: np.random.Generator, size: Frame, pixels: int) -> Field:
    """A thin jagged line with branches, as long as the area allows."""
    side = math.sqrt(size[0] * size[1])
    total = min(pixels / rng.uniform(1.5, 4.0), 2.0 * side)
    step = max(side / 64, 2.0)
    waiting = [_Branch(np.zeros(2), rng.uniform(0, 2 * np.pi), 0.5 * total, 1.0)]
    points, widths, started = [], [], 1
    while waiting:
        branch = waiting.pop()
        place, walked, turn = branch.start, 0.0, 0.0
        while walked < branch.length:
            stride = min(step * rng.uniform(0.6, 1.4), branch.length - walked)
            # Jagged, but on the whole straight on.
            turn = 0.7 * turn + rng.normal(0, 0.4)
            ahead = place + stride * np.array([np.sin(branch.heading + turn), np.cos(branch.heading + turn)])
            for share in np.linspace(0, 1, max(2, math.ceil(2 * stride))):
                points.append(place + share * (ahead - place))
                widths.append(branch.width * (1 - 0.6 * walked / branch.length))
            place, walked = ahead, walked + stride
            if branch.width == 1.0 and started <= 4 and rng.random() < 4 * stride / branch.length:
                aside = branch.heading + rng.choice((-1, 1)) * rng.uniform(0.4, 1.1)
                waiting.append(_Branch(ahead, aside, 0.12 * total, 0.6))
                started += 1
    return _line_score(_placed(np.stack(points), rng, size), np.array(widths), size, pixels)


def _blob(rng: np.random.Generator, size: Frame, pixels: int) -> Field:
    """A rounded patch: an ellipse whose radius varies with the angle."""
    radius = math.sqrt(pixels / np.pi)
    sides = np.array(size, dtype=float)
    margin = np.minimum(1.3 * radius, 0.5 * sides)
    centre = rng.uniform(margin, np.maximum(sides - margin, margin + 1e-6))
    y, x = np.meshgrid(*(np.arange(side) + 0.5 - at for side, at in zip(size, centre, strict=True)), indexing="ij")
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(0.5, 1.0)
    along, across = x * np.cos(turn) + y * np.sin(turn), (y * np.cos(turn) - x * np.sin(turn)) / stretch
    angle = np.arctan2(across, along)
    edge = np.ones_like(angle)
    for order in range(2, 7):
        edge += rng.normal(0, 0.22 / order) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    score: Field = -np.hypot(along, across) / np.maximum(edge, 0.2)
    return score


def _placed(points: Field, rng: np.random.Generator, size: Frame) -> Field:
    """Points (y, x) about any origin, moved to a random place where they lie in the frame, made smaller if need be."""
    low, high = points.min(axis=0), points.max(axis=0)
    sides = np.array(size, dtype=float)
    factor = min(1.0, *(0.94 * sides / np.maximum(high - low, 1e-6)))
    low, high, points = low * factor, high * factor, points * factor
    return points - low + rng.uniform(0.03 * sides, np.maximum(sides * 0.97 - (high - low), 0.03 * sides + 1e-6))


def _line_score(points: Field, widths: Field, size: Frame, pixels: int) -> Field:
    """Minus the distance to the nearest point in units of the line's width there; the line itself comes first."""
    from scipy.spatial import cKDTree

    # Pixels further away cannot be among the wanted ones, unless those fill the box.
    air = 2 + 4 * pixels / len(points)
    low = np.clip(np.floor(points.min(axis=0) - air), 0, size).astype(int)
    high = np.clip(np.ceil(points.max(axis=0) + air), 0, size).astype(int)
    if np.prod(high - low) < 2 * pixels:
        low, high = np.zeros(2, int), np.array(size)
    rows, columns = (np.arange(start, stop) + 0.5 for start, stop in zip(low, high, strict=True))
    centres = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    distance, nearest = cKDTree(points).query(centres)
    # Pixels that the line crosses, at most half a diagonal away, tie at zero but for their distance: no gaps.
    score = np.full(size, -np.inf)
    crossed = np.maximum(distance - 0.71, 0) / widths[nearest] + 1e-6 * distance
    score[low[0] : high[0], low[1] : high[1]] = -crossed.reshape(len(rows), len(columns))
    return score
