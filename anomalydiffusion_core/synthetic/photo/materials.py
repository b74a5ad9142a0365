"""Ten industrial surfaces, each as albedo, relief and gloss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .bank import Array, TextureBank
from .light import Surface
from .vocabulary import SURFACE_COLOURS


def base_colour(rng: np.random.Generator, name: str) -> Array:
    """Linear RGB [3] of a named colour, varied a little from part to part."""
    shown = np.asarray(SURFACE_COLOURS[name]) * (1 + rng.normal(0, 0.016, 3) + rng.normal(0, 0.08))
    return (np.clip(shown, 0.07, 0.93) ** 2).astype(np.float32)


def render_material(rng: np.random.Generator, bank: TextureBank, name: str, colour: Array, size: int) -> Surface:
    """A flat piece [size, size] of a material of `MATERIALS` in a linear colour [3]."""
    return _MATERIALS[name](rng, bank, colour, size)


def _toned(colour: Array, tone: Array, other: Array | None = None) -> Array:
    """The colour times (1 + tone), [3, H, W]; with `other`, a mix of both colours by tone, 0..1."""
    if other is None:
        return np.maximum(colour[:, None, None] * (1 + tone), 0.0)
    return colour[:, None, None] + (other - colour)[:, None, None] * tone


def _leather(rng: np.random.Generator, bank: TextureBank, colour: Array, size: int) -> Surface:
    hide = bank.crop(rng, "hide", size)
    broad = bank.crop(rng, "cloud", size)
    depth = rng.uniform(0.5, 1.1)
    height = depth * hide + 0.05 * bank.crop(rng, "fine", size) + 0.8 * bank.crop(rng, "broad", size)
    tone = rng.uniform(0.06, 0.2) * np.minimum(hide, 0.3) + rng.uniform(0.03, 0.09) * broad
    gloss = rng.uniform(0.03, 0.12) * (1 + 0.3 * hide)
    surface = Surface.flat(_toned(colour, tone), height, 0.0, float(rng.uniform(6, 22)))
    surface.gloss = gloss.astype(np.float32)
    return surface


def _brushed_metal(rng: np.random.Generator, bank: TextureBank, colour: Array, size: int) -> Surface:
    lines = bank.crop(rng, "brush", size)
    tone = rng.uniform(0.05, 0.14) * lines + 0.05 * bank.crop(rng, "cloud", size)
    tone = tone + 0.02 * bank.crop(rng, "white", size)
    if rng.random() < 0.25:
        tone = tone - 0.25 * bank.crop(rng, "pores", size)
    height = rng.uniform(0.05, 0.16) * lines + 1.2 * bank.crop(rng, "broad", size)
    metal = float(rng.uniform(0.4, 0.9))
    return Surface.flat(_toned(colour, tone), height, float(rng.uniform(0.05, 0.25)), float(rng.uniform(6, 25)), metal)


def _cast_metal(rng: np.random.Generator, bank: TextureBank, colour: Array, size: int) -> Surface:
    rough = bank.crop(rng, "fractal", size)
    grain = bank.crop(rng, "grain", size)
    pores = bank.crop(rng, "pores", size)
    height = rng.uniform(0.3, 0.7) * grain + rng.uniform(0.4, 1.0) * rough - 1.2 * pores
    tone = 0.07 * rough + 0.06 * bank.crop(rng, "cloud", size) + 0.03 * bank.crop(rng, "white", size) - 0.4 * pores
    metal = float(rng.uniform(0.15, 0.4))
    return Surface.flat(_toned(colour, tone), height, float(rng.uniform(0.05, 0.25)), float(rng.uniform(6, 16)), metal)


def _painted_sheet(rng: np.random.Generator, bank: TextureBank, colour: Array, size: int) -> Surface:
    height = rng.uniform(0.01, 0.08) * bank.crop(rng, "peel", size) + rng.uniform(0.5, 2.5) * bank.crop(
        rng, "broad", size
    )
    tone = 0.02 * bank.crop(rng, "cloud", size)
    if rng.random() < 0.35:  # metallic flakes
        tone = tone + rng.uniform(0.04, 0.12) * bank.crop(rng, "fine", size)
    dust = bank.crop(rng, "pores", size)
    albedo = _toned(colour, tone)
    if rng.random() < 0.2:
        albedo = albedo + rng.uniform(-0.15, 0.25) * dust * colour.mean()
        height = height + 0.5 * dust
    gloss, sharpness = float(rng.uniform(0.1, 0.5)), float(rng.uniform(20, 120))
    return Surface.flat(np.maximum(albedo, 0.003), height, gloss, sharpness, float(rng.uniform(0.0, 0.18)))


def _wood(rng: np.random.Generator, bank: TextureBank, colour: Array, size: int) -> Surface:
    late = bank.crop(rng, "rings", size, turn=False)
    fibre = bank.crop(rng, "fibre", size, turn=False)
    vessels = np.maximum(bank.crop(rng, "fibre", size, turn=False) - rng.uniform(1.2, 1.8), 0.0)
    dark = colour * np.asarray((0.5, 0.40, 0.32), np.float32) * rng.uniform(0.7, 1.3)
    share = np.clip(rng.uniform(0.45, 1.0) * late + 0.06 * fibre, 0, 1)
    albedo = _toned(colour, share, dark)
    albedo *= 1 + 0.05 * bank.crop(rng, "cloud", size) + 0.05 * fibre - rng.uniform(0.1, 0.5) * vessels
    height = 0.06 * fibre + 0.12 * late - 0.25 * vessels
    if rng.random() < 0.5:
        albedo, height = albedo.transpose(0, 2, 1), height.T
    gloss = float(rng.choice((0.02, rng.uniform(0.06, 0.22))))
    return Surface.flat(np.maximum(albedo, 0.003), np.ascontiguousarray(height), gloss, float(rng.uniform(8, 60)))


def _fabric(rng: np.random.Generator, bank: TextureBank, colour: Array, size: int) -> Surface:
    """Plain weave, twill or basket: at each crossing one thread lies on top, and is round across and arched along."""
    period = float(rng.choice((6.0, 8.0, 11.0, 14.0))) * rng.uniform(0.9, 1.1)
    axis = np.arange(size, dtype=np.float32) / period
    bend = rng.uniform(0.06, 0.16)
    u = axis[None] + bend * bank.crop(rng, "cloud", size) + rng.uniform(0, 9)
    v = axis[:, None] + bend * bank.crop(rng, "cloud", size) + rng.uniform(0, 9)
    cell_u, cell_v = np.floor(u), np.floor(v)
    across, along = u - cell_u - 0.5, v - cell_v - 0.5
    kind = rng.integers(3)
    if kind == 0:
        above = (cell_u + cell_v) % 2 < 1
    elif kind == 1:
        above = (cell_u + cell_v) % 4 < 2
    else:
        above = (cell_u // 2 + cell_v // 2) % 2 < 1
    side = np.where(above, across, along)
    length = np.where(above, along, across)
    round_ = np.sqrt(np.maximum(1 - (2.05 * side) ** 2, 0.0))
    height = period * (0.20 * round_ + 0.10 * np.cos(np.pi * length))
    fuzz = bank.crop(rng, "fine", size)
    twist = np.sin(2 * np.pi * (length * period / 3.5 + side * 2.5)) if period > 9 else 0.0
    tone = 0.14 * (round_ - 0.7) + 0.07 * fuzz + 0.05 * twist + 0.05 * bank.crop(rng, "cloud", size)
    second = colour * float(rng.choice((1.0, 1.0, 0.6, 1.5))) * (1 + rng.normal(0, 0.05, 3))
    second = np.clip(second, 0, 0.9).astype(np.float32)
    albedo = np.where(above[None], colour[:, None, None], second[:, None, None])
    albedo *= (1 + tone) * (0.45 + 0.55 * np.minimum(round_ * 1.6, 1.0))
    height = height * rng.uniform(0.5, 0.9) + 0.12 * fuzz + 0.8 * bank.crop(rng, "broad", size)
    gloss = float(rng.uniform(0.0, 0.05))
    threads = np.stack([cell_u, cell_v, across, along])
    return Surface.flat(albedo, height, gloss, 8.0, threads=threads)


def _concrete(rng: np.random.Generator, bank: TextureBank, colour: Array, size: int) -> Surface:
    rough, cloud = bank.crop(rng, "fractal", size), bank.crop(rng, "cloud", size)
    sand = bank.crop(rng, "crystals", size) if rng.random() < 0.6 else 0.0
    pores = bank.crop(rng, "pores", size)
    tone = rng.uniform(0.05, 0.12) * rough + rng.uniform(0.04, 0.12) * cloud + 0.07 * sand
    tone = tone + 0.03 * bank.crop(rng, "white", size) - 0.5 * pores
    height = rng.uniform(0.3, 0.8) * rough + 0.25 * bank.crop(rng, "fine", size) - 1.5 * pores
    return Surface.flat(_toned(colour, tone), height, float(rng.uniform(0.0, 0.03)), 8.0)


def _stone(rng: np.random.Generator, bank: TextureBank, colour: Array, size: int) -> Surface:
    """Granite, polished or rough, or marble with veins."""
    if rng.random() < 0.6:
        coarse, fine = bank.crop(rng, "crystals", size), bank.crop(rng, "crystals", size)
        rough = bank.crop(rng, "fractal", size)
        mineral = coarse + 0.5 * fine + 0.5 * rough
        tone = 0.35 * np.tanh(1.3 * mineral)
        tone = np.where(mineral < rng.uniform(-1.6, -0.9), rng.uniform(-0.8, -0.5), tone)
        tone = np.where(mineral > rng.uniform(1.0, 1.6), rng.uniform(0.3, 0.8), tone)
        height = 0.12 * coarse + rng.uniform(0.0, 0.35) * rough
    else:
        cloud, rough = bank.crop(rng, "cloud", size), bank.crop(rng, "fractal", size)
        veins = np.exp(-np.abs(cloud + 0.25 * rough) * rng.uniform(6, 16))
        tone = rng.choice((-0.45, -0.3, 0.4)) * veins + 0.07 * rough + 0.05 * bank.crop(rng, "cloud", size)
        height = 0.08 * rough
    tone = tone + 0.015 * bank.crop(rng, "white", size)
    gloss = float(rng.choice((0.02, rng.uniform(0.1, 0.3))))
    return Surface.flat(_toned(colour, tone.astype(np.float32)), height, gloss, float(rng.uniform(12, 80)))


def _plastic(rng: np.random.Generator, bank: TextureBank, colour: Array, size: int) -> Surface:
    """Spark-eroded grain or smooth, slightly bulged as moulded parts are."""
    grain = bank.crop(rng, str(rng.choice(("fine", "grain", "peel"))), size)
    height = rng.uniform(0.04, 0.32) * grain + rng.uniform(0.5, 2.0) * bank.crop(rng, "broad", size)
    tone = 0.015 * grain + 0.02 * bank.crop(rng, "cloud", size) + 0.008 * bank.crop(rng, "white", size)
    gloss, sharpness = float(rng.uniform(0.05, 0.3)), float(rng.uniform(8, 50))
    return Surface.flat(_toned(colour, tone), height, gloss, sharpness, float(rng.uniform(0.0, 0.08)))


def _ceramic(rng: np.random.Generator, bank: TextureBank, colour: Array, size: int) -> Surface:
    height = rng.uniform(0.02, 0.10) * bank.crop(rng, "peel", size) + rng.uniform(0.8, 2.5) * bank.crop(
        rng, "broad", size
    )
    tone = 0.025 * bank.crop(rng, "cloud", size) + 0.01 * bank.crop(rng, "white", size)
    specks = bank.crop(rng, "pores", size)
    if rng.random() < 0.25:
        tone = tone - rng.uniform(0.2, 0.6) * specks
    gloss, sharpness = float(rng.uniform(0.2, 0.5)), float(rng.uniform(40, 200))
    return Surface.flat(_toned(colour, tone), height, gloss, sharpness, float(rng.uniform(0.05, 0.2)))


_MATERIALS: dict[str, Callable[[np.random.Generator, TextureBank, Array, int], Surface]] = {
    "leather": _leather,
    "brushed-metal": _brushed_metal,
    "cast-metal": _cast_metal,
    "painted-sheet": _painted_sheet,
    "wood": _wood,
    "fabric": _fabric,
    "concrete": _concrete,
    "stone": _stone,
    "plastic": _plastic,
    "ceramic": _ceramic,
}
