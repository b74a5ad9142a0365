"""What defects do to a surface: to its colour, its relief and its gloss. All work on a window of the surface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .bank import Array, TextureBank
from .light import Surface
from .outlines import Outline
from .vocabulary import DEFECT_COLOURS

_PALE = {"painted-sheet": (0.62, 0.62, 0.64), "wood": (0.80, 0.66, 0.48), "ceramic": (0.82, 0.76, 0.68)}
"""Display colours of what lies under a surface; others are a lighter shade of their own."""


@dataclass(frozen=True)
class Flaw:
    """A defect to be made.

    Attributes:
        material: word of the surface or part that has it.
        defect, colour: words.
        outline: where it is.
        strength: 1 = as usual; more makes a faint one clear.
    """

    material: str
    defect: str
    colour: str
    outline: Outline
    strength: float = 1.0


def apply(rng: np.random.Generator, bank: TextureBank, flaw: Flaw, window: Surface) -> None:
    """Change the window of a surface [h, w] that belongs to the flaw's outline, in place, inside the mask."""
    _MAKERS[flaw.defect](rng, bank, flaw, window)


def _noise(rng: np.random.Generator, bank: TextureBank, name: str, flaw: Flaw) -> Array:
    rows, columns = flaw.outline.cover.shape
    return bank.crop(rng, name, max(rows, columns))[:rows, :columns]


def _paint(rng: np.random.Generator, flaw: Flaw) -> Array:
    shown = np.asarray(DEFECT_COLOURS[flaw.colour]) * (1 + rng.normal(0, 0.05)) + rng.normal(0, 0.02, 3)
    return (np.clip(shown, 0.03, 0.97) ** 2).astype(np.float32)[:, None, None]


def _raw(rng: np.random.Generator, flaw: Flaw, window: Surface) -> Array:
    """Colour of fresh material, [3, 1, 1]."""
    if flaw.material in _PALE:
        pale = np.asarray(_PALE[flaw.material], np.float32) ** 2
    else:
        own = window.albedo.mean((1, 2))
        pale = own + (0.55 - own) * np.float32(rng.uniform(0.25, 0.6))
    return (pale * np.float32(rng.uniform(0.75, 1.15)))[:, None, None]


def _mix(window: Surface, paint: Array, share: Array) -> None:
    window.albedo += (paint - window.albedo) * share


def _smooth(depth: Array, width: float) -> Array:
    t = np.clip(depth / max(width, 0.5), 0, 1)
    return t * t * (3 - 2 * t)


def _scratch(rng: np.random.Generator, bank: TextureBank, flaw: Flaw, window: Surface) -> None:
    cover = flaw.outline.cover
    share = cover * min(rng.uniform(0.55, 0.95) * flaw.strength, 1.0)
    share = share * np.clip(0.85 + 0.25 * _noise(rng, bank, "fine", flaw), 0.3, 1)
    if flaw.colour == "dark":
        _mix(window, window.albedo * rng.uniform(0.03, 0.2), share)
        window.metal *= 1 - 0.8 * share
    else:
        bright = np.maximum(_raw(rng, flaw, window), 0.4) * 1.1
        bright = bright + (_paint(rng, flaw) - bright) * 0.5
        _mix(window, bright, share)
        window.gloss += 0.2 * share
    window.height -= rng.uniform(0.3, 1.0) * flaw.strength * cover


def _crack(rng: np.random.Generator, bank: TextureBank, flaw: Flaw, window: Surface) -> None:
    cover = flaw.outline.cover
    if flaw.material == "bottle" and rng.random() < 0.6:  # light caught in broken glass
        _mix(window, np.full((3, 1, 1), rng.uniform(0.4, 0.9), np.float32), cover * rng.uniform(0.5, 0.95))
        return
    share = cover * min(rng.uniform(0.8, 1.0) * flaw.strength, 1.0)
    _mix(window, window.albedo * rng.uniform(0.01, 0.10), share)
    window.metal *= 1 - share
    window.gloss *= 1 - share
    window.height -= rng.uniform(0.6, 1.6) * cover


def _dent(rng: np.random.Generator, bank: TextureBank, flaw: Flaw, window: Surface) -> None:
    deep = float(flaw.outline.depth.max())
    t = np.clip(flaw.outline.depth / max(deep, 1.0), 0, 1)
    edge = rng.uniform(0.5, 1.0)
    bowl = _smooth(t, edge) * (0.8 + 0.2 * t)
    slope = rng.uniform(0.25, 0.55) * flaw.strength
    window.height *= 1 - 0.4 * _smooth(t, 0.4)
    window.height -= slope * edge * deep * bowl
    if rng.random() < 0.3:  # something hard left its mark
        window.albedo *= 1 - rng.uniform(0.1, 0.3) * _smooth(t, 0.8)


def _hole(rng: np.random.Generator, bank: TextureBank, flaw: Flaw, window: Surface) -> None:
    """A wall that goes down into the dark, lit where it faces the lamp; a burr around it."""
    depth, cover = flaw.outline.depth, flaw.outline.cover
    if flaw.material in ("fabric", "leather", "concrete", "wood"):
        depth = np.maximum(depth + 0.8 * _noise(rng, bank, "fine", flaw), 0.0) * (depth > 0)
    deep = float(depth.max())
    wall = rng.uniform(0.25, 0.7) * deep + 1.0
    down = np.clip((depth - 0.6) / wall, 0, 1)
    bottom = window.albedo.mean((1, 2)) * float(rng.uniform(0.01, 0.16)) / flaw.strength
    floor = bottom[:, None, None] * np.maximum(1 + 0.3 * _noise(rng, bank, "cloud", flaw), 0.2)
    _mix(window, _raw(rng, flaw, window) * 0.6, cover * rng.uniform(0.0, 0.5))
    window.albedo *= 1 - (1 - rng.uniform(0.3, 0.7)) * cover
    _mix(window, np.maximum(floor, 0.001), down ** rng.uniform(0.35, 0.8))
    window.height += rng.uniform(0.0, 0.8) * np.exp(-((depth - 1.2) ** 2)) * cover
    window.height -= rng.uniform(0.6, 1.3) * wall * down
    window.gloss *= 1 - cover
    window.metal *= 1 - cover


def _chip(rng: np.random.Generator, bank: TextureBank, flaw: Flaw, window: Surface) -> None:
    depth, cover = flaw.outline.depth, flaw.outline.cover
    facets = _noise(rng, bank, "hide", flaw)
    if flaw.material == "bottle":
        crystals = [_noise(rng, bank, "crystals", flaw) for _ in range(2)]
        window.tilt_y += cover * (0.7 * crystals[0] - window.tilt_y)
        window.tilt_x += cover * (0.7 * crystals[1] - window.tilt_x)
        glint = np.clip(crystals[0] + crystals[1] - 0.8, 0, 1) + np.clip(facets - 0.4, 0, 1) * 0.5
        _mix(window, np.maximum(0.04 + 0.75 * glint + 0.04 * facets, 0.01)[None], 0.85 * cover)
        window.metal += cover * (0.5 - window.metal)
        return
    raw = _raw(rng, flaw, window) * (1 + 0.12 * facets + 0.10 * _noise(rng, bank, "fractal", flaw))
    _mix(window, raw, cover * min(rng.uniform(0.8, 1.0) * flaw.strength, 1.0))
    bowl = _smooth(depth, max(float(depth.max()), 2.0)) * rng.uniform(0.1, 0.5) * float(depth.max())
    rough = rng.uniform(0.2, 0.7) * facets + 0.2 * _noise(rng, bank, "fractal", flaw)
    window.height += cover * (rough - window.height + float(window.height.mean())) - 1.2 * _smooth(depth, 2.0) - bowl
    window.gloss *= 1 - 0.8 * cover
    window.metal *= 1 - 0.5 * cover


def _stain(rng: np.random.Generator, bank: TextureBank, flaw: Flaw, window: Surface) -> None:
    depth = flaw.outline.depth
    soft = rng.uniform(0.15, 0.9) * float(depth.max()) + 1.0
    mottled = 0.82 + 0.16 * _noise(rng, bank, "cloud", flaw) + 0.06 * _noise(rng, bank, "fractal", flaw)
    share = _smooth(depth, soft) * np.clip(mottled, 0.3, 1)
    if rng.random() < 0.35:  # it dried at its rim first
        rim = np.exp(-(((depth - 0.5 * soft - 1) / rng.uniform(1.0, 2.5)) ** 2))
        share = share * (0.55 + 0.45 * rim)
    share = share * min(rng.uniform(0.45, 0.92) * flaw.strength, 0.97)
    paint = _paint(rng, flaw)
    own = window.albedo.mean((1, 2), keepdims=True)
    _mix(window, paint * (0.7 + 0.3 * np.minimum(window.albedo / own, 2)), share)
    window.gloss *= 1 + rng.uniform(-0.7, 0.5) * share
    window.metal *= 1 - 0.7 * share


def _residue(rng: np.random.Generator, bank: TextureBank, flaw: Flaw, window: Surface) -> None:
    """Glue, grease or powder that lies on the surface."""
    (_powder if rng.random() < 0.45 else _blob)(rng, bank, flaw, window)


def _powder(rng: np.random.Generator, bank: TextureBank, flaw: Flaw, window: Surface) -> None:
    depth = flaw.outline.depth
    grains = _noise(rng, bank, "grain", flaw) + 0.7 * _noise(rng, bank, "cloud", flaw)
    share = _smooth(depth, 0.5 * float(depth.max()) + 1) * 1.6 - 0.35 + 0.3 * grains
    share = np.clip(share, 0.12 * flaw.strength, 1) * flaw.outline.cover * rng.uniform(0.75, 1.0)
    _mix(window, _paint(rng, flaw) * (1 + 0.12 * grains), share)
    window.height += share * (0.8 + 0.35 * grains)
    window.gloss *= 1 - share
    window.metal *= 1 - share


def _blob(rng: np.random.Generator, bank: TextureBank, flaw: Flaw, window: Surface) -> None:
    depth, cover = flaw.outline.depth, flaw.outline.cover
    deep, lumps = float(depth.max()), _noise(rng, bank, "peel", flaw)
    dome = np.sqrt(np.clip(depth / (0.5 * deep + 1.5), 0, 1))
    share = _smooth(depth, 1.8) * min(rng.uniform(0.6, 0.97) * flaw.strength, 0.98)
    _mix(window, _paint(rng, flaw) * (1 + 0.05 * lumps), share)
    window.height *= 1 - 0.8 * cover
    window.height += min(rng.uniform(0.15, 0.4) * deep, 5.0) * dome + rng.uniform(0.1, 0.6) * cover * lumps
    window.gloss += share * (rng.uniform(0.1, 0.6) - window.gloss)
    window.metal *= 1 - share


def _rust(rng: np.random.Generator, bank: TextureBank, flaw: Flaw, window: Surface) -> None:
    depth, cover = flaw.outline.depth, flaw.outline.cover
    rough, cloud = _noise(rng, bank, "fractal", flaw), _noise(rng, bank, "cloud", flaw)
    eaten = _smooth(depth, 0.35 * float(depth.max()) + 1.5) * 1.7 - 0.25 + 0.35 * rough
    share = np.clip(eaten, 0.15, 1) * cover * rng.uniform(0.8, 1.0)
    bright, dark = (np.asarray(c, np.float32)[:, None, None] ** 2 for c in ((0.66, 0.36, 0.15), (0.27, 0.15, 0.10)))
    tone = np.clip(0.42 + 0.32 * rough + 0.3 * cloud, 0, 1)
    _mix(window, dark + (bright - dark) * tone, share)
    window.height += share * (0.7 * rough * rng.uniform(0.5, 1.2) + 0.5)
    window.gloss *= 1 - share
    window.metal *= 1 - share


def _missing_thread(rng: np.random.Generator, bank: TextureBank, flaw: Flaw, window: Surface) -> None:
    """Where a thread was, the crossing threads show, lower and in the shadow of their neighbours."""
    cover, depth = flaw.outline.cover, flaw.outline.depth
    if window.threads is None:
        _crack(rng, bank, flaw, window)
        return
    crossing = window.threads[3 if cover.shape[0] > cover.shape[1] else 2]
    round_ = np.sqrt(np.maximum(1 - (2.1 * crossing) ** 2, 0))
    lit = (0.05 + rng.uniform(0.25, 0.6) * round_) * (1 - 0.55 * np.exp(-depth / 0.12))
    lit = lit * (1 + 0.10 * _noise(rng, bank, "fine", flaw)) / flaw.strength
    _mix(window, window.albedo.mean((1, 2), keepdims=True) * lit, cover)
    window.height += cover * (rng.uniform(0.8, 1.8) * round_ - window.height + float(window.height.min()) - 0.5)
    window.gloss *= 1 - cover


_MAKERS: dict[str, Callable[[np.random.Generator, TextureBank, Flaw, Surface], None]] = {
    "scratch": _scratch,
    "crack": _crack,
    "dent": _dent,
    "hole": _hole,
    "chip": _chip,
    "stain": _stain,
    "residue": _residue,
    "rust": _rust,
    "missing-thread": _missing_thread,
}
