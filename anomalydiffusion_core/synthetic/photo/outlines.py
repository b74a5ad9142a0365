"""Outlines of defects: thin lines, cracks with branches, patches, and gaps in a weave."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .bank import Array, TextureBank
from .light import Surface

# Longest extent in pixels of a 256 px image, by size word; measured on real sets, see tests/core/test_photo.py.
EXTENT = {
    "line": {"small": (24.0, 44.0), "medium": (50.0, 90.0), "large": (104.0, 220.0)},
    "patch": {"small": (11.0, 24.0), "medium": (30.0, 54.0), "large": (64.0, 130.0)},
    "pit": {"small": (7.0, 14.0), "medium": (17.0, 28.0), "large": (34.0, 58.0)},
}
KIND = {"scratch": "line", "crack": "line", "missing-thread": "line", "hole": "pit"}
_RAGGED = {
    "hole": (0.04, 0.06),
    "dent": (0.0, 0.03),
    "chip": (0.12, 0.0),
    "stain": (0.06, 0.22),
    "residue": (0.12, 0.15),
    "rust": (0.16, 0.2),
}
"""How ragged and how dented the border of a patch is, as shares of its radius."""
LINE_MASK = 0.15
"""Share of a pixel that a line must cover to be in the mask."""


@dataclass
class Outline:
    """Where a defect lies.

    Attributes:
        rows, columns: the window of the image that holds it.
        cover: [h, w], 0..1, of the window; 0 outside the mask.
        depth: [h, w], distance in pixels to the border, about, and 0 outside.
    """

    rows: slice
    columns: slice
    cover: Array
    depth: Array

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The pixels of the window that belong to the defect, [h, w]."""
        return self.cover > 0

    def within(self, inside: Array, least: float) -> Outline:
        """What of it lies on a part, at least so many pixels inside, given the distance [H, W] to its border."""
        on_part = inside[self.rows, self.columns] > least
        return Outline(self.rows, self.columns, self.cover * on_part, np.where(on_part, self.depth, 0.0))


def draw_extent(rng: np.random.Generator, defect: str, word: str, size: int) -> float:
    """Longest extent in pixels for a defect and a size word."""
    return float(rng.uniform(*EXTENT[KIND.get(defect, "patch")][word])) * size / 256


def draw_outline(
    rng: np.random.Generator,
    bank: TextureBank,
    defect: str,
    extent: float,
    centre: tuple[float, float],
    surface: Surface,
    size: int,
) -> Outline:
    """An outline of a defect around a pixel, moved as little as needed to lie in the image."""
    if defect == "missing-thread" and surface.threads is not None:
        return _gap(rng, surface.threads, extent, centre, size)
    if defect in ("crack", "missing-thread"):
        return _raster(*_crack(rng, extent), centre, size)
    if defect == "scratch":
        return _raster(*_scratch(rng, extent), centre, size)
    return _patch(rng, bank, defect, extent, centre, size)


def _scratch(rng: np.random.Generator, length: float) -> tuple[Array, Array]:
    """Points [n, 2] and widths [n] of a line that bends gently, thins out at its ends, and may be interrupted."""
    count = max(int(2 * length), 8)
    where = np.linspace(0, 1, count)
    turn, bend = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.35)
    heading = turn + bend * (where - 0.5) + 0.02 * np.cumsum(rng.standard_normal(count)) / np.sqrt(count / 40)
    points = np.cumsum(np.stack([np.sin(heading), np.cos(heading)], 1), 0) * (length / count)
    pressure = 1 + 0.35 * np.interp(where * length / 9, np.arange(24), rng.standard_normal(24))
    taper = np.minimum(np.minimum(where, 1 - where) * rng.uniform(4, 14) + 0.25, 1.0)
    widths = rng.uniform(0.9, 2.6) * np.clip(pressure, 0.4, 1.6) * taper
    if rng.random() < 0.4:
        touch = np.interp(where * length / rng.uniform(5, 16), np.arange(60), rng.standard_normal(60))
        widths = np.where(touch > rng.uniform(-0.9, -0.2), widths, 0.0)
    if rng.random() < 0.2:  # a second line beside it
        side = np.asarray((np.cos(turn), -np.sin(turn))) * rng.uniform(2.5, 6)
        start = int(count * rng.uniform(0, 0.5))
        points = np.concatenate([points, points[start:] + side])
        widths = np.concatenate([widths, widths[start:] * rng.uniform(0.5, 0.9)])
    kept = widths > 0
    return (points[kept], widths[kept]) if kept.sum() >= 8 else (points, np.maximum(widths, 0.8))


def _crack(rng: np.random.Generator, length: float) -> tuple[Array, Array]:
    """Points and widths of a jagged line with up to three branches, each thinner towards its end."""
    width = rng.uniform(1.2, 3.0)
    trunk = _jagged(rng, length, rng.uniform(0, 2 * np.pi))
    points, widths = [trunk], [width * np.linspace(1.0, 0.5, len(trunk))]
    for _ in range(int(rng.choice((0, 0, 0, 1, 1, 2, 3)))):
        start = int(rng.integers(len(trunk) // 6, max(len(trunk) * 5 // 6, len(trunk) // 6 + 1)))
        ahead = trunk[min(start + 6, len(trunk) - 1)] - trunk[max(start - 6, 0)]
        turn = np.arctan2(*ahead) + rng.choice((-1, 1)) * rng.uniform(0.4, 1.2)
        branch = trunk[start] + _jagged(rng, length * rng.uniform(0.12, 0.4), turn)
        points.append(branch)
        widths.append(widths[0][start] * 0.8 * np.linspace(1.0, 0.45, len(branch)))
    jitter = [np.interp(np.arange(len(w)) / 7, np.arange(80), rng.uniform(0.7, 1.3, 80)) for w in widths]
    return np.concatenate(points), np.concatenate([w * j for w, j in zip(widths, jitter, strict=True)])


def _jagged(rng: np.random.Generator, length: float, turn: float) -> Array:
    count = max(int(2 * length), 8)
    kinks = np.interp(np.arange(count) / rng.uniform(6, 16), np.arange(100), np.cumsum(rng.normal(0, 0.14, 100)) * 0.6)
    heading = turn + kinks - kinks.mean() + np.repeat(rng.normal(0, 0.38, count // 4 + 1), 4)[:count]
    return np.cumsum(np.stack([np.sin(heading), np.cos(heading)], 1), 0) * (length / count)


def _raster(points: Array, widths: Array, centre: tuple[float, float], size: int) -> Outline:
    """Cover the pixels near each point by its width; a pixel takes the most that any point gives it."""
    reach = int(np.ceil(widths.max() / 2 + 1))
    middle = (points.min(0) + points.max(0)) / 2
    half = (points.max(0) - points.min(0)) / 2 + reach + 1
    points = points - middle + np.clip(centre, np.minimum(half, size / 2), np.maximum(size - half, size / 2))
    low = np.maximum(np.floor(points.min(0)).astype(int) - reach - 1, 0)
    high = np.minimum(np.ceil(points.max(0)).astype(int) + reach + 1, size)
    rows, columns = slice(low[0], max(high[0], low[0] + 2)), slice(low[1], max(high[1], low[1] + 2))
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    step = np.arange(-reach, reach + 1)
    pixel = np.floor(points).astype(int)
    y = pixel[:, 0, None, None] + step[None, :, None]
    x = pixel[:, 1, None, None] + step[None, None, :]
    far = np.sqrt((y + 0.5 - points[:, 0, None, None]) ** 2 + (x + 0.5 - points[:, 1, None, None]) ** 2)
    cover = np.clip((widths[:, None, None] / 2 - far) / 1.3 + 0.5, 0, 1) * np.minimum(widths, 1)[:, None, None]
    flat = np.zeros(shape, np.float32).reshape(-1)
    y, x = np.broadcast_arrays(y - rows.start, x - columns.start)
    kept = (y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1]) & (cover > LINE_MASK)
    np.maximum.at(flat, (y * shape[1] + x)[kept], cover[kept].astype(np.float32))
    cover = flat.reshape(shape)
    return Outline(rows, columns, cover, cover * (float(widths.mean()) / 2))


def _patch(
    rng: np.random.Generator, bank: TextureBank, defect: str, extent: float, centre: tuple[float, float], size: int
) -> Outline:
    """A rounded or ragged patch, a smear, or a few drops beside each other."""
    stretch = float(np.clip(np.exp(abs(rng.normal(0.2, 0.55))), 1, 5.0))
    ragged, dented = _RAGGED[defect]
    if defect in ("hole", "dent"):
        stretch = min(stretch, 2.0)
    half = extent / 2
    margin = min(half + 2, size / 2)
    at = np.clip(centre, margin, size - margin)
    low = np.maximum(np.floor(at - half * 1.25 - 2).astype(int), 0)
    high = np.minimum(np.ceil(at + half * 1.25 + 2).astype(int), size)
    rows, columns = slice(low[0], high[0]), slice(low[1], high[1])
    y = (np.arange(low[0], high[0], dtype=np.float32) + 0.5 - np.float32(at[0]))[:, None]
    x = (np.arange(low[1], high[1], dtype=np.float32) + 0.5 - np.float32(at[1]))[None]
    turn = rng.uniform(0, np.pi)
    depth = _ellipse(y, x, turn, half, half / stretch, rng, dented)
    for _ in range(int(rng.integers(1, 4)) if defect in ("stain", "residue", "rust") and rng.random() < 0.4 else 0):
        share, away = rng.uniform(0.15, 0.45), rng.uniform(0.5, 1.0) * half
        where = rng.uniform(0, 2 * np.pi)
        other = _ellipse(
            y - away * np.sin(where), x - away * np.cos(where), turn, half * share, half * share / 1.2, rng, dented
        )
        depth = np.maximum(depth, other)
    rough = bank.crop(rng, "cloud", size)[rows, columns] + 0.35 * bank.crop(rng, "grain", size)[rows, columns]
    if ragged:
        depth = depth + ragged * min(half, 26.0) * rough
    limit = 1.25 * half + 1 - np.sqrt(y * y + x * x)
    depth = np.minimum(depth, limit)
    depth = np.maximum(depth, 0.0).astype(np.float32)
    return Outline(rows, columns, np.minimum(depth, 1.0), depth)


def _ellipse(
    y: Array, x: Array, turn: float, long: float, short: float, rng: np.random.Generator, dented: float
) -> Array:
    """Distance in pixels, about, to the border of a dented ellipse, or of a polygon if not dented; positive inside."""
    sine, cosine = np.float32(np.sin(turn)), np.float32(np.cos(turn))
    along, across = (y * sine + x * cosine) / long, (y * cosine - x * sine) / short
    radius = np.sqrt(along * along + across * across)
    angle = np.arctan2(across, along)
    if not dented:
        edge = np.full_like(angle, 1.0)
        for side in np.sort(rng.uniform(0, 2 * np.pi, 6)):
            near = np.cos(angle - np.float32(side))
            edge = np.minimum(edge, np.float32(rng.uniform(0.55, 0.9)) / np.maximum(near, 0.05))
    else:
        edge = np.full_like(angle, 0.92)
        for order in (2, 3, 4, 5):
            swing, shift = np.float32(rng.normal(0, dented / order)), np.float32(rng.uniform(0, 6.28))
            edge += swing * np.cos(order * angle + shift)
    return (edge - radius) * np.float32(np.sqrt(long * short))


def _gap(rng: np.random.Generator, threads: Array, length: float, centre: tuple[float, float], size: int) -> Outline:
    """One thread that is missing over a length."""
    row, column = (int(np.clip(value, 4, size - 5)) for value in centre)
    which = int(rng.integers(2))
    number, along = threads[which], np.arange(size)
    on_thread = number == number[row, column]
    span = slice(max(round((row, column)[1 - which] - length / 2), 1), round((row, column)[1 - which] + length / 2))
    kept = np.zeros(size, bool)
    kept[span] = along[span] < size - 1
    mask = on_thread & (kept[:, None] if which == 0 else kept[None])
    mask[[0, -1]] = mask[:, [0, -1]] = False
    ys, xs = np.nonzero(mask)
    rows = slice(int(ys.min()), int(ys.max()) + 1)
    columns = slice(int(xs.min()), int(xs.max()) + 1)
    side = 0.5 - np.abs(threads[2 + which][rows, columns])
    depth = np.where(mask[rows, columns], np.maximum(side, 0.02), 0.0).astype(np.float32)
    return Outline(rows, columns, np.minimum(depth * 8, 1.0), depth)
