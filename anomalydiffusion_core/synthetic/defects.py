"""Four defects with exact masks: what a stain, hole, dent or scratch does to albedo and relief."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .captions import DEFECT_COLOURS
from .noise import NoiseBank

Array = NDArray[np.floating[Any]]

# Longest extent in pixels by size word, for images of any size: the demo prior learns one physical scale.
BLOB_RADIUS = {"small": (10.0, 14.0), "medium": (16.0, 22.0), "large": (24.0, 34.0)}
STROKE_LENGTH = {"small": (40.0, 56.0), "medium": (62.0, 84.0), "large": (92.0, 120.0)}
STROKE_WIDTH = (9.0, 14.0)


@dataclass(frozen=True)
class Shape:
    """An outline: `depth` [H, W] in pixels is positive inside, `rise` [H, W] goes from 0 at its border to 1."""

    depth: Array
    rise: Array

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Where the shape is, [H, W]."""
        return self.depth > 0

    def alpha(self, softness: float) -> Array:
        """Coverage 0..1 that rises over `softness` pixels inside the border and is zero outside the mask."""
        return np.clip(self.depth / softness, 0.0, 1.0).astype(np.float32)


def blob(rng: np.random.Generator, size: int, centre: tuple[float, float], radius: float) -> Shape:
    """An irregular rounded patch: a circle whose radius varies with the angle."""
    y, x = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5, indexing="ij")
    dy, dx = y - centre[0], x - centre[1]
    angle = np.arctan2(dy, dx)
    stretch = rng.uniform(0.75, 1.0)
    turn = rng.uniform(0, np.pi)
    along = dx * np.cos(turn) + dy * np.sin(turn)
    across = (-dx * np.sin(turn) + dy * np.cos(turn)) / stretch
    edge = np.full_like(angle, radius)
    for order in range(2, 6):
        edge += radius * rng.normal(0, 0.20 / order) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    distance = np.hypot(along, across)
    rise = np.clip(1.0 - distance / edge, 0.0, 1.0)
    return Shape((edge - distance).astype(np.float32), rise.astype(np.float32))


def stroke(rng: np.random.Generator, size: int, centre: tuple[float, float], length: float) -> Shape:
    """A gently bent line of varying width, drawn at twice the resolution, measured by distance transform."""
    from scipy.ndimage import distance_transform_edt

    scale = 2
    turn = rng.uniform(0, np.pi)
    along = np.linspace(-0.5, 0.5, 24) * length
    bend = rng.normal(0, 0.10) * length * np.cos(np.pi * along / length) + rng.normal(0, 0.03) * length * np.sin(
        2 * np.pi * along / length
    )
    xs = (centre[1] + along * np.cos(turn) - bend * np.sin(turn)) * scale
    ys = (centre[0] + along * np.sin(turn) + bend * np.cos(turn)) * scale
    knots = along[::6]
    widths = rng.uniform(*STROKE_WIDTH) * (1.0 + 0.15 * np.interp(along, knots, rng.normal(0, 1, len(knots))))
    widths *= np.clip(1.15 - np.abs(along / length) ** 4 * 9.0, 0.45, 1.0)
    canvas = Image.new("L", (size * scale, size * scale))
    draw = ImageDraw.Draw(canvas)
    fine = np.linspace(along[0], along[-1], 160)
    traces = (np.interp(fine, along, values) for values in (xs, ys, widths))
    for cx, cy, width in zip(*traces, strict=True):
        half = width * scale / 2
        draw.ellipse((cx - half, cy - half, cx + half, cy + half), fill=255)
    inside = np.asarray(canvas, np.float32).reshape(size, scale, size, scale).mean((1, 3)) > 127
    depth = np.where(inside, distance_transform_edt(inside), -1.0).astype(np.float32)
    return Shape(depth, np.clip(depth / depth.max(), 0.0, 1.0))


def shape_of(rng: np.random.Generator, defect: str, size_word: str, size: int, centre: tuple[float, float]) -> Shape:
    """The outline that belongs to a defect word and a size word."""
    if defect == "scratch":
        return stroke(rng, size, centre, rng.uniform(*STROKE_LENGTH[size_word]))
    return blob(rng, size, centre, rng.uniform(*BLOB_RADIUS[size_word]))


def apply_defect(
    rng: np.random.Generator,
    bank: NoiseBank,
    defect: str,
    colour: str,
    shape: Shape,
    albedo: Array,
    height: Array,
    opacity: float = 1.0,
) -> tuple[Array, Array]:
    """Albedo and height with the defect in place; both are unchanged wherever the mask is 0.

    Args:
        opacity: 0..1, how much of the surface's colour a stain or scratch hides.
    """
    size = height.shape[0]
    paint = np.asarray(DEFECT_COLOURS.get(colour, (0.0, 0.0, 0.0)), np.float32)
    paint = np.clip(paint + rng.normal(0, 0.02, 3).astype(np.float32), 0.02, 0.95)
    if defect == "stain":
        stained = opacity * shape.alpha(4.0) * (0.88 + 0.06 * np.tanh(bank.crop(rng, "cloud", size)))
        return _mix(albedo, paint, stained), height
    if defect == "hole":
        cover = shape.alpha(3.0)
        floor = 0.05 + 0.02 * bank.crop(rng, "cloud", size)[:, :, None]
        return albedo * (1 - cover[:, :, None]) + floor * cover[:, :, None], height * (1 - cover)
    if defect == "dent":
        bowl = shape.rise * shape.rise * (3 - 2 * shape.rise)
        return albedo, height - 0.5 * float(shape.depth.max()) * bowl
    cover = shape.alpha(2.5) * 0.92
    return _mix(albedo, paint, opacity * cover), height * (1 - cover) - 1.6 * cover


def _mix(albedo: Array, paint: Array, cover: Array) -> Array:
    return albedo * (1 - cover[:, :, None]) + paint[None, None, :] * cover[:, :, None]
