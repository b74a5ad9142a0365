"""Five industrial surfaces, each as albedo and height; light comes from the upper left."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .captions import SURFACE_COLOURS
from .noise import NoiseBank

Array = NDArray[np.float32]


def base_colour(rng: np.random.Generator, name: str, jitter: float = 0.035) -> Array:
    """RGB in 0..1 of a named surface colour, varied a little from part to part."""
    colour = np.asarray(SURFACE_COLOURS[name], np.float32)
    return np.clip(colour + rng.normal(0, jitter, 3) * 0.6 + rng.normal(0, jitter), 0.08, 0.9).astype(np.float32)


def render_surface(
    rng: np.random.Generator, bank: NoiseBank, surface: str, colour: Array, size: int
) -> tuple[Array, Array]:
    """Albedo [size, size, 3] in 0..1 and height [size, size] in pixels of one part."""
    tone, height = _RELIEFS[surface](rng, bank, size)
    sheen = 1.0 + 0.05 * bank.crop(rng, "broad", size)
    albedo = colour[None, None, :] * ((1.0 + tone) * sheen)[:, :, None]
    return albedo.astype(np.float32), height.astype(np.float32)


def shade(albedo: Array, height: Array) -> Array:
    """Lambertian shading of a relief [H, W] over its albedo [H, W, 3], clipped to 0..1."""
    slope_y, slope_x = np.gradient(height)
    light = 1.0 - 0.55 * np.tanh(slope_x * 0.75 + slope_y)
    return np.clip(albedo * light[:, :, None], 0.0, 1.0).astype(np.float32)


def _leather(rng: np.random.Generator, bank: NoiseBank, size: int) -> tuple[Array, Array]:
    cells = bank.crop(rng, "cells", size)
    return 0.04 * cells + 0.04 * bank.crop(rng, "cloud", size), 0.32 * cells


def _fabric(rng: np.random.Generator, bank: NoiseBank, size: int) -> tuple[Array, Array]:
    y, x = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    period = 14.0
    phase_y, phase_x = rng.uniform(0, 2 * np.pi, 2)
    wobble = 0.7 * bank.crop(rng, "cloud", size)
    warp = np.sin(2 * np.pi * (x + wobble) / period + phase_x)
    weft = np.sin(2 * np.pi * (y + wobble) / period + phase_y)
    weave = warp * weft
    return (0.06 * weave + 0.03 * bank.crop(rng, "cloud", size)).astype(np.float32), (0.3 * weave).astype(np.float32)


def _stone(rng: np.random.Generator, bank: NoiseBank, size: int) -> tuple[Array, Array]:
    mottle = bank.crop(rng, "mottle", size)
    chips = bank.crop(rng, "chips", size)
    return 0.10 * np.tanh(mottle) + 0.05 * np.tanh(1.5 * chips), 0.2 * mottle


def _metal(rng: np.random.Generator, bank: NoiseBank, size: int) -> tuple[Array, Array]:
    brush = bank.crop(rng, "brush", size)
    return 0.065 * brush, 0.10 * brush


def _plastic(rng: np.random.Generator, bank: NoiseBank, size: int) -> tuple[Array, Array]:
    grain = bank.crop(rng, "grain", size)
    return 0.015 * grain, 0.16 * grain


_RELIEFS = {"leather": _leather, "fabric": _fabric, "stone": _stone, "metal": _metal, "plastic": _plastic}
