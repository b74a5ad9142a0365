"""Tiles of periodic noise, computed once and cropped at random: the raw material of every procedural texture."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


class NoiseBank:
    """Periodic noise fields of zero mean and unit deviation.

    Cropping with random offsets and flips gives a practically endless supply at the cost of a copy.

    Args:
        seed: seed of the fields; equal seeds give equal banks.
        size: edge of the tiles in pixels; crops must not be larger.
    """

    def __init__(self, seed: int, size: int = 1024) -> None:
        rng = np.random.default_rng(seed)
        self.size = size
        self.fields: dict[str, Array] = {
            "cloud": _power_noise(rng, size, exponent=1.6, smallest=12.0),
            "mottle": _power_noise(rng, size, exponent=1.0, smallest=10.0),
            "broad": _power_noise(rng, size, exponent=2.4, smallest=60.0),
            "grain": _band_noise(rng, size, wavelength=11.0, width=0.5),
            "brush": _brushed_noise(rng, size),
            "cells": _cell_noise(rng, size, spacing=17.0),
            "chips": _cell_noise(rng, size, spacing=30.0),
        }

    def crop(self, rng: np.random.Generator, name: str, size: int) -> Array:
        """A random crop of the named field, [size, size]; flipped at random except for the brushed field's axis."""
        field = self.fields[name]
        top, left = rng.integers(0, self.size, 2)
        rows = (np.arange(size) + top) % self.size
        columns = (np.arange(size) + left) % self.size
        if rng.random() < 0.5:
            rows = rows[::-1]
        if rng.random() < 0.5:
            columns = columns[::-1]
        return field[np.ix_(rows, columns)]


def _frequencies(size: int) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    axis = np.fft.fftfreq(size)
    return axis[:, None], np.abs(axis[None, : size // 2 + 1])


def _normalised(field: NDArray[np.floating[Any]]) -> Array:
    return ((field - field.mean()) / field.std()).astype(np.float32)


def _filtered(rng: np.random.Generator, size: int, gain: NDArray[np.floating[Any]]) -> Array:
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) * gain
    return _normalised(np.fft.irfft2(spectrum, s=(size, size)))


def _power_noise(rng: np.random.Generator, size: int, exponent: float, smallest: float) -> Array:
    """1/f^exponent noise without wavelengths below `smallest` pixels."""
    fy, fx = _frequencies(size)
    radius = np.sqrt(fy**2 + fx**2)
    gain = np.exp(-((radius * smallest) ** 2)) / np.maximum(radius, 1.0 / 300.0) ** exponent
    gain[0, 0] = 0.0
    return _filtered(rng, size, gain)


def _band_noise(rng: np.random.Generator, size: int, wavelength: float, width: float) -> Array:
    fy, fx = _frequencies(size)
    radius = np.maximum(np.sqrt(fy**2 + fx**2), 1e-9)
    return _filtered(rng, size, np.exp(-0.5 * (np.log(radius * wavelength) / width) ** 2))


def _brushed_noise(rng: np.random.Generator, size: int) -> Array:
    fy, fx = _frequencies(size)
    gain = np.exp(-((fy * 6.0) ** 2) - (fx * 140.0) ** 2) / np.maximum(np.abs(fy), 1.0 / 200.0) ** 0.5
    return _filtered(rng, size, gain)


def _cell_noise(rng: np.random.Generator, size: int, spacing: float) -> Array:
    """Distance to the border of a jittered Voronoi cell: rounded pebbles."""
    from scipy.spatial import cKDTree

    count = round(size / spacing)
    step = size / count
    grid = np.stack(np.meshgrid(np.arange(count), np.arange(count), indexing="ij"), -1).reshape(-1, 2) * step
    points = (grid + rng.uniform(0.05, 0.95, grid.shape) * step) % size
    pixels = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1).reshape(-1, 2) + 0.5
    distance, _ = cKDTree(points, boxsize=size).query(pixels, k=2, workers=-1)
    border = np.minimum((distance[:, 1] - distance[:, 0]) / (0.45 * spacing), 1.0).reshape(size, size)
    fy, fx = _frequencies(size)
    smooth = np.fft.irfft2(np.fft.rfft2(border) * np.exp(-(fy**2 + fx**2) * 9.0**2 / 2), s=(size, size))
    return _normalised(smooth)
