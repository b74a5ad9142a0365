"""Large fields of noise, computed once and cropped at random: the raw material of every surface."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
GRAIN_ANGLES = (0.0, 0.12, 0.45, 0.8)
"""Directions in radians of the fields of brushed metal; mirrored and transposed crops give the others."""


class TextureBank:
    """Named fields [size, size]; several fields of one name are variants, of which a crop takes one at random.

    Noise has zero mean and unit deviation unless its maker says otherwise. A crop at a random place, mirrored and
    transposed at random, costs no copy, and is a different texture each time.

    Args:
        seed: equal seeds give equal fields.
        size: side of the fields in pixels; crops must not be larger.
    """

    def __init__(self, seed: int, size: int = 768) -> None:
        rng = np.random.default_rng([seed, 41])
        self.size = size
        self._fields: dict[str, list[Array]] = {
            "white": [rng.standard_normal((size, size)).astype(np.float32) for _ in range(2)],
            "fine": [_band(rng, size, 3.5, 0.35), _band(rng, size, 5.0, 0.4)],
            "grain": [_band(rng, size, wave, 0.45) for wave in (7.0, 10.0)],
            "peel": [_band(rng, size, wave, 0.35) for wave in (14.0, 22.0)],
            "fractal": [_fractal(rng, size, exponent, 2.0) for exponent in (0.9, 1.2)],
            "cloud": [_fractal(rng, size, exponent, 14.0) for exponent in (1.4, 1.7)],
            "broad": [_fractal(rng, size, 2.4, 60.0) for _ in range(2)],
            "brush": [_brushed(rng, size, angle, length) for angle in GRAIN_ANGLES for length in (60.0, 160.0)],
            "fibre": [_band_along(rng, size, 26.0, 2.2), _band_along(rng, size, 45.0, 3.0)],
            "hide": [_hide(rng, size, spacing) for spacing in (6.5, 9.0, 13.0)],
            "crystals": [_crystals(rng, size, spacing) for spacing in (4.0, 8.0)],
            "pores": [_pores(rng, size, count) for count in (250, 700)],
            "rings": [_growth_rings(rng, size, width) for width in (8.0, 13.0, 22.0)],
        }

    def crop(self, rng: np.random.Generator, name: str, size: int, turn: bool = True) -> Array:
        """A random crop [size, size] of one of the named fields, as a view; never write into it.

        turn: transpose at random too, for fields without a direction.
        """
        variants = self._fields[name]
        field = variants[rng.integers(len(variants))]
        top, left = self._corner(rng, size)
        view = field[top : top + size, left : left + size]
        flips = int(rng.integers(8))
        if flips & 1:
            view = view[::-1]
        if flips & 2:
            view = view[:, ::-1]
        return view.T if turn and flips & 4 else view

    def _corner(self, rng: np.random.Generator, size: int) -> tuple[int, int]:
        top, left = rng.integers(0, self.size - size + 1, 2)
        return int(top), int(left)


class ShotBank(TextureBank):
    """A bank for many shots of one design: its crops lie elsewhere in each, while all other choices repeat.

    Args:
        shot: where crops lie is drawn from it, and not from the generator that a crop is asked for with.
    """

    def __init__(self, bank: TextureBank, shot: np.random.Generator) -> None:
        self.size, self._fields, self._shot = bank.size, bank._fields, shot

    def _corner(self, rng: np.random.Generator, size: int) -> tuple[int, int]:
        return super()._corner(self._shot, size)


def unit(field: Array) -> Array:
    """The field with zero mean and unit deviation."""
    return ((field - field.mean()) / max(float(field.std()), 1e-9)).astype(np.float32)


def _frequencies(size: int) -> tuple[Array, Array]:
    return np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]


def _filtered(rng: np.random.Generator, size: int, gain: Array) -> Array:
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) * gain
    spectrum[0, 0] = 0.0
    return unit(np.fft.irfft2(spectrum, s=(size, size)))


def _band(rng: np.random.Generator, size: int, wavelength: float, width: float) -> Array:
    """Noise of one wavelength in pixels, give or take a factor of exp(width)."""
    fy, fx = _frequencies(size)
    radius = np.maximum(np.hypot(fy, fx), 1e-9)
    return _filtered(rng, size, np.exp(-0.5 * (np.log(radius * wavelength) / width) ** 2))


def _fractal(rng: np.random.Generator, size: int, exponent: float, smallest: float) -> Array:
    """1/f^exponent noise, all octaves from `smallest` pixels to 400."""
    fy, fx = _frequencies(size)
    radius = np.hypot(fy, fx)
    gain = np.exp(-((radius * smallest / 2) ** 2)) / np.maximum(radius, 1 / 400) ** exponent
    return _filtered(rng, size, gain)


def _brushed(rng: np.random.Generator, size: int, angle: float, length: float) -> Array:
    """Lines of `length` pixels at `angle` to the rows, of all widths, a few of them deeper than the rest."""
    fy, fx = _frequencies(size)
    along = fx * np.cos(angle) + fy * np.sin(angle)
    across = np.abs(fy * np.cos(angle) - fx * np.sin(angle))
    lines = _filtered(rng, size, np.exp(-((along * length) ** 2)) / np.maximum(across, 1 / 150) ** 0.55)
    deep = _filtered(rng, size, np.exp(-((along * length * 0.5) ** 2) - (across * 1.5) ** 2))
    return unit(lines - 0.25 * np.maximum(deep - 1.2, 0.0) ** 2)


def _band_along(rng: np.random.Generator, size: int, length: float, width: float) -> Array:
    """Short strokes along the columns, `length` by `width` pixels."""
    fy, fx = _frequencies(size)
    return _filtered(rng, size, np.exp(-((fy * length) ** 2) - (fx * width) ** 2))


def _warped(rng: np.random.Generator, size: int, strength: float, smallest: float) -> tuple[Array, Array]:
    """Row and column of every pixel, each bent by noise of deviation `strength` pixels."""
    axis = np.arange(size, dtype=np.float32) + 0.5
    bend = [strength * _fractal(rng, size, 1.6, smallest) for _ in range(2)]
    return axis[:, None] + bend[0], axis[None] + bend[1]


def _nearest(
    rng: np.random.Generator, size: int, spacing: float, where: tuple[Array, Array], count: int
) -> tuple[Array, NDArray[np.integer[Any]]]:
    """Distances and numbers of the nearest of random points, [size, size, count]; the field's borders wrap."""
    from scipy.spatial import cKDTree

    steps = round(size / spacing)
    grid = np.stack(np.meshgrid(np.arange(steps), np.arange(steps), indexing="ij"), -1).reshape(-1, 2)
    points = (grid + rng.uniform(-0.25, 1.25, grid.shape)) * (size / steps) % size
    pixels = np.stack(where, -1).reshape(-1, 2) % size
    distance, index = cKDTree(points, boxsize=size).query(pixels, k=count, workers=-1)
    shape = (size, size, count)
    return distance.reshape(shape), index.reshape(shape)


def _hide(rng: np.random.Generator, size: int, spacing: float) -> Array:
    """Relief of grained leather, -1 in the creases to about 1: domes of uneven size, creases of uneven depth."""
    where = _warped(rng, size, 0.35 * spacing, 2.5 * spacing)
    distance = _nearest(rng, size, spacing, where, 2)[0] / spacing
    border = distance[..., 1] - distance[..., 0]
    uneven = 0.28 + 0.10 * np.tanh(_fractal(rng, size, 1.2, 2 * spacing))
    dome = 1 - np.exp(-((border / uneven) ** 1.5))
    wrinkles = np.minimum(np.abs(_band(rng, size, 3.2 * spacing, 0.5)) / 0.5, 1.0)
    relief = dome * (0.55 + 0.45 * wrinkles) + 0.10 * _band(rng, size, 4.0, 0.5) * dome
    return (2 * relief - 1).astype(np.float32)


def _crystals(rng: np.random.Generator, size: int, spacing: float) -> Array:
    """A random tone, -1..1, for each grain of a rock."""
    index = _nearest(rng, size, spacing, _warped(rng, size, 0.4 * spacing, spacing), 1)[1][..., 0]
    return rng.uniform(-1, 1, int(index.max()) + 1).astype(np.float32)[index]


def _pores(rng: np.random.Generator, size: int, count: int) -> Array:
    """Depth 0..1 of round and oblong air holes, `count` per 1000 x 1000 pixels, most of them tiny."""
    field = np.zeros((size, size), np.float32)
    for _ in range(max(1, round(count * size * size / 1e6))):
        radius = float(np.clip(0.6 / rng.random() ** 0.55, 0.6, 3.2))
        centre = rng.uniform(8, size - 8, 2)
        top, left = (int(value) - 8 for value in centre)
        y, x = np.mgrid[top : top + 16, left : left + 16] + 0.5
        distance = np.hypot(y - centre[0], (x - centre[1]) * rng.uniform(0.7, 1.3))
        patch = field[top : top + 16, left : left + 16]
        np.maximum(patch, np.clip(radius - distance + 0.5, 0, 1) * min(1.0, 0.3 + radius / 4), out=patch)
    return field


def _growth_rings(rng: np.random.Generator, size: int, width: float) -> Array:
    """Share 0..1 of late (dark) wood, grain along the columns: straight rings here, cathedral arches there."""
    fy, fx = _frequencies(size)

    def drawn_out(along: float, across: float) -> Array:
        return _filtered(rng, size, np.exp(-((fy * along) ** 2) - (fx * across) ** 2))

    where = np.arange(size, dtype=np.float32)[None] / width
    phase = where + 2.2 * drawn_out(330.0, 90.0) + 0.16 * drawn_out(110.0, 7.0) + 0.5 * drawn_out(300.0, 12.0)
    ring = phase - np.floor(phase)
    late = np.clip(ring / 0.85, 0, 1) ** 2.2 * np.clip((1 - ring) / 0.12, 0, 1)
    return (late * (0.75 + 0.25 * np.tanh(drawn_out(300.0, 30.0)))).astype(np.float32)


__all__ = ["Array", "ShotBank", "TextureBank", "unit"]
