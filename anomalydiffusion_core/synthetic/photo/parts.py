"""Simple parts seen from above on a background: disc, ring, cap, bolt head, bottle mouth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .bank import Array, TextureBank
from .light import Light, Surface, shade
from .materials import base_colour, render_material

_STEPS = 2048
_STEEL = ("brushed-metal", "cast-metal", "painted-sheet")
_BACKGROUNDS = ("painted-sheet", "plastic", "concrete", "fabric", "brushed-metal", "wood")


@dataclass
class Part:
    """A part in front of a background.

    Attributes:
        surface: of the part, defined everywhere.
        inside: [H, W], distance in pixels to the outline, positive on the part.
        backdrop: light of the background, [3, H, W], with the shadow of the part.
    """

    surface: Surface
    inside: Array
    backdrop: Array

    @property
    def cover(self) -> Array:
        """[H, W], 0..1: how much of each pixel the part hides."""
        return np.clip(self.inside + 0.5, 0.0, 1.0)


@dataclass(frozen=True)
class _Plane:
    """Coordinates of the pixels around a part's centre, in pixels; and whether the part must be of steel."""

    size: int
    radius: float
    y: Array
    x: Array
    r: Array
    steel: bool

    def hexagon(self, turn: float) -> Array:
        """Distance of every pixel from the centre in a metric whose circles are hexagons."""
        far = np.zeros_like(self.r)
        for angle in (turn, turn + np.pi / 3, turn + 2 * np.pi / 3):
            np.maximum(far, np.abs(self.y * math.sin(angle) + self.x * math.cos(angle)), out=far)
        return far

    def angle(self) -> Array:
        return np.arctan2(self.y, self.x)

    def along(self, values: Array) -> Array:
        """A curve over the radius, [_STEPS] from the centre to 1.1 radii, at every pixel."""
        index = np.minimum(self.r * ((_STEPS - 1) / (1.1 * self.radius)), _STEPS - 1)
        return values[index.astype(np.intp)]


def render_part(
    rng: np.random.Generator,
    bank: TextureBank,
    name: str,
    colour: Array,
    light: Light,
    size: int,
    steel: bool = False,
    shift: tuple[float, float] = (0.0, 0.0),
) -> Part:
    """One of `PARTS` near the middle of the image, in a linear colour [3].

    steel: of a metal that can rust. shift: down and right, as shares of the side.
    """
    radius = size * rng.uniform(0.34, 0.45)
    if name == "bottle":
        radius = size * rng.uniform(0.40, 0.47)
    centre = size / 2 + rng.uniform(-1, 1, 2) * min(0.05 * size, size * 0.485 - radius)
    centre = (centre + np.asarray(shift) * size).astype(np.float32)
    axis = np.arange(size, dtype=np.float32) + 0.5
    y, x = np.broadcast_arrays((axis - centre[0])[:, None], (axis - centre[1])[None])
    plane = _Plane(size, float(radius), y, x, np.sqrt(y * y + x * x), steel)
    surface, inside = _PARTS[name](rng, bank, plane, colour)
    return Part(surface, inside.astype(np.float32), _backdrop(rng, bank, light, inside, size, name == "bottle"))


def _backdrop(
    rng: np.random.Generator, bank: TextureBank, light: Light, inside: Array, size: int, glass: bool
) -> Array:
    if rng.random() < (0.75 if glass else 0.25):  # a light table
        glow = rng.uniform(0.8, 1.3) * light.colour[:, None, None] * (0.5 + 0.5 * light.field)
        return glow * (1 - 0.35 * np.exp(np.minimum(inside, 0) / rng.uniform(1.0, 4.0)))
    ground = str(rng.choice(_BACKGROUNDS))
    shown = str(rng.choice(("grey", "black", "white", "blue", "green", "beige") if ground != "wood" else ("beige",)))
    seen = shade(render_material(rng, bank, ground, base_colour(rng, shown), size), light, size)
    reach = rng.uniform(0.02, 0.06) * size
    shift = tuple(round(-value * reach) for value in light.direction[:2])
    cast = np.roll(inside, shift, (0, 1))
    soft = rng.uniform(1.5, 7.0)
    dark = rng.uniform(0.35, 0.8) * np.clip(0.5 + cast / (2 * soft), 0, 1) + 0.3 * np.exp(np.minimum(inside, 0) / 5)
    return seen * (1 - np.minimum(dark, 0.9))


def _material(
    rng: np.random.Generator, bank: TextureBank, plane: _Plane, colour: Array, kinds: tuple[str, ...]
) -> Surface:
    kinds = tuple(kind for kind in kinds if kind in _STEEL) if plane.steel else kinds
    surface = render_material(rng, bank, str(rng.choice(kinds)), colour, plane.size)
    surface.height = surface.height * np.float32(rng.uniform(0.25, 0.7))
    return surface


def _step(inside: Array, width: float) -> Array:
    """0 outside, 1 at `width` pixels inside, smooth."""
    t = np.clip(inside / width, 0, 1)
    return t * t * (3 - 2 * t)


def _turned(rng: np.random.Generator, surface: Surface, plane: _Plane, depth: float) -> None:
    """Fine circular marks of a lathe: slopes along the radius that differ from ring to ring."""
    marks = rng.standard_normal(_STEPS)
    pixel = _STEPS / (1.1 * plane.radius)
    fine, coarse = (np.hanning(max(round(width * pixel), 3)) for width in (3.5, 12.0))
    marks = np.convolve(marks, fine, mode="same") + 0.3 * np.convolve(marks, coarse, mode="same")
    slope = plane.along((depth * marks / marks.std()).astype(np.float32)) / np.maximum(plane.r, 1.0)
    surface.tilt_y += slope * plane.y
    surface.tilt_x += slope * plane.x


def _grooves(rng: np.random.Generator, plane: _Plane, first: float, last: float, count: int) -> Array:
    """Height of `count` steps and grooves between two radii given as shares of the part's."""
    radii = np.linspace(0, 1.1, _STEPS)
    profile = np.zeros(_STEPS)
    pixel = 1 / plane.radius
    for _ in range(count):
        at, wide = rng.uniform(first, last), rng.uniform(1.2, 4.0) * pixel
        if rng.random() < 0.5:
            profile += rng.uniform(-3.5, 3.5) / (1 + np.exp((radii - at) / (0.5 * wide)))
        else:
            profile -= rng.uniform(1.0, 3.0) * np.exp(-(((radii - at) / wide) ** 2))
    return plane.along(profile.astype(np.float32))


def _disc(rng: np.random.Generator, bank: TextureBank, plane: _Plane, colour: Array) -> tuple[Surface, Array]:
    kinds = ("brushed-metal", "cast-metal", "painted-sheet", "plastic", "ceramic", "wood", "stone")
    surface = _material(rng, bank, plane, colour, kinds)
    inside = plane.radius - plane.r
    if rng.random() < 0.35:
        inside = np.minimum(inside, plane.r - plane.radius * rng.uniform(0.08, 0.25))
    surface.height = surface.height + rng.uniform(1.5, 5) * _step(inside, rng.uniform(2, 7))
    surface.height += _grooves(rng, plane, 0.3, 0.9, int(rng.integers(0, 4)))
    surface.height += rng.uniform(-6, 6) * _step(1.05 * plane.radius - plane.r, plane.radius)
    if surface.metal.max() > 0.3:
        _turned(rng, surface, plane, rng.uniform(0.05, 0.2))
    return surface, inside


def _ring(rng: np.random.Generator, bank: TextureBank, plane: _Plane, colour: Array) -> tuple[Surface, Array]:
    kinds = ("brushed-metal", "cast-metal", "painted-sheet", "plastic", "ceramic")
    surface = _material(rng, bank, plane, colour, kinds)
    bore = plane.radius * rng.uniform(0.38, 0.68)
    inside = np.minimum(plane.radius - plane.r, plane.r - bore)
    half = (plane.radius - bore) / 2
    if rng.random() < 0.4:  # round in section, as a seal
        across = np.clip(inside / half, 0, 1)
        surface.height = surface.height + half * rng.uniform(0.4, 0.9) * np.sqrt(1 - 0.97 * (1 - across) ** 2)
    else:
        surface.height = surface.height + rng.uniform(1.5, 5) * _step(inside, rng.uniform(2, 6))
        surface.height += _grooves(rng, plane, bore / plane.radius, 1.0, int(rng.integers(0, 4)))
        if surface.metal.max() > 0.3:
            _turned(rng, surface, plane, rng.uniform(0.05, 0.25))
    return surface, inside


def _cap(rng: np.random.Generator, bank: TextureBank, plane: _Plane, colour: Array) -> tuple[Surface, Array]:
    """A screw cap with ribs, or a crown cap."""
    crown = rng.random() < 0.35
    surface = _material(rng, bank, plane, colour, ("painted-sheet",) if crown else ("plastic", "painted-sheet"))
    count = 21 if crown else int(rng.choice((24, 36, 48, 60, 72)))
    wave = np.cos(count * plane.angle() + rng.uniform(0, 6.28))
    rim = rng.uniform(0.80, 0.92)
    inside = plane.radius - plane.r + (plane.radius * (0.02 if crown else 0.006)) * wave
    skirt = np.clip((plane.r / plane.radius - rim) / (1 - rim), 0, 1)
    surface.height = surface.height - plane.radius * (1 - rim) * (0.9 if crown else 0.6) * skirt**1.5
    surface.height += (3.0 if crown else 1.1) * np.sqrt(skirt) * wave * np.minimum(24 / count + 0.3, 1)
    inner = rim * rng.uniform(0.75, 0.97)
    surface.height += rng.uniform(-3.0, 3.0) * _step(inner * plane.radius - plane.r, rng.uniform(2, 6))
    surface.height += rng.uniform(-4, 6) * _step(plane.radius - plane.r, plane.radius)
    surface.height += _grooves(rng, plane, 0.2, inner, int(rng.integers(0, 3)))
    if rng.random() < 0.4:  # printed ring or emblem
        printed = base_colour(rng, str(rng.choice(("white", "red", "blue", "black", "yellow"))))
        at, wide = rng.uniform(0.3, 0.7) * inner * plane.radius, rng.uniform(2, 14)
        share = np.clip((wide - np.abs(plane.r - at)) + 0.5, 0, 1)
        surface.albedo = surface.albedo + (printed[:, None, None] - surface.albedo) * share
    return surface, inside


def _bolt(rng: np.random.Generator, bank: TextureBank, plane: _Plane, colour: Array) -> tuple[Surface, Array]:
    """A hexagon head, on a washer or not; with a socket, a slot, turned steps, or plain."""
    surface = _material(rng, bank, plane, colour, ("brushed-metal", "cast-metal", "brushed-metal", "plastic"))
    washer = rng.random() < 0.6
    across = plane.radius * (rng.uniform(0.66, 0.78) if washer else 0.87)
    turn = rng.uniform(0, np.pi)
    head = across - plane.hexagon(turn)
    chamfer = np.maximum(plane.r - across * rng.uniform(0.84, 0.96), 0.0)
    bevel = rng.uniform(3, 6)
    rise = bevel * rng.uniform(0.6, 1.1)
    surface.height += np.maximum(rise * _step(head, bevel) - rng.uniform(0.25, 0.6) * chamfer, 0.0)
    if surface.metal.max() > 0.3:
        _turned(rng, surface, plane, rng.uniform(0.04, 0.14))
    inside = head
    if washer:
        inside = plane.radius - plane.r
        surface.height += rng.uniform(1.5, 3) * _step(inside, 4)
        below = np.clip(0.5 - head, 0, 1)
        shadow = np.exp(np.minimum(head, 0) / rng.uniform(2.5, 6.0))
        surface.albedo *= 1 + below * (rng.uniform(-0.45, 0.1) - rng.uniform(0.4, 0.8) * shadow)
    kind = rng.random()
    if kind < 0.45:
        socket = across * rng.uniform(0.38, 0.52) - plane.hexagon(turn + rng.uniform(0, 1))
    elif kind < 0.6:
        side = rng.uniform(0, np.pi)
        slot = np.abs(plane.y * math.sin(side) + plane.x * math.cos(side))
        socket = np.minimum(across * 0.11 - slot, across * 0.8 - plane.r)
    else:
        surface.height += _grooves(rng, plane, 0.1, 0.6 * across / plane.radius, int(rng.integers(0, 3)))
        return surface, inside
    deep = _step(socket, 5)
    surface.height -= 5 * deep
    surface.albedo *= 1 - 0.9 * np.clip(socket / 6 + 0.25, 0, 1)
    surface.metal *= 1 - 0.8 * deep
    return surface, inside


def _bottle(rng: np.random.Generator, bank: TextureBank, plane: _Plane, colour: Array) -> tuple[Surface, Array]:
    """The mouth of a glass bottle: dark bore, lip of many thin rings that catch the light, shoulder around it."""
    size, pixel = plane.size, 1 / plane.radius
    radii = np.linspace(0, 1.1, _STEPS)
    bore, lip = rng.uniform(0.42, 0.56), rng.uniform(0.72, 0.84)
    tone = np.full((3, _STEPS), 0.012) + 0.35 * colour[:, None] * (
        0.5 + 0.5 * np.clip((radii - bore) / (1 - bore), 0, 1) ** 2
    )
    tilt = 0.5 * np.sin(np.pi * (radii - bore) / (lip - bore) * rng.uniform(1.5, 3)) + 0.8 * np.clip(
        (radii - lip) / (1 - lip), 0, 1.2
    ) * np.sin((radii - lip) * rng.uniform(20, 45))
    for _ in range(int(rng.integers(5, 12))):
        at, wide = rng.uniform(bore, 1.0), rng.uniform(0.6, 2.2) * pixel
        line = np.exp(-(((radii - at) / wide) ** 2))
        tint = np.asarray(rng.choice([(0.55, 0.27, 0.12), (0.4, 0.4, 0.42), (0.2, 0.25, 0.3), (0.02, 0.02, 0.02)]))
        tone += (rng.uniform(0.3, 1.0) * tint[:, None] - tone * 0.6) * line
        tilt += rng.uniform(-0.8, 0.8) * line
    tone *= np.where(radii < bore, 0.45 + 0.3 * (radii / bore) ** 3, 1.0)
    angle = plane.angle()
    uneven = sum(rng.normal(0, 0.22 / order) * np.cos(order * angle + rng.uniform(0, 6.28)) for order in range(1, 6))
    glass = np.clip((plane.r / plane.radius - bore) / 0.02, 0, 1)
    albedo = np.stack([plane.along(channel.astype(np.float32)) for channel in np.maximum(tone, 0.003)])
    albedo = albedo * (1 + 0.9 * uneven * glass + 0.05 * bank.crop(rng, "cloud", size))
    slope = plane.along(tilt.astype(np.float32)) * glass / np.maximum(plane.r, 1.0)
    height = 0.05 * bank.crop(rng, "peel", size) + 0.5 * bank.crop(rng, "broad", size)
    surface = Surface.flat(albedo.astype(np.float32), height, 0.0, float(rng.uniform(60, 160)))
    surface.gloss = (rng.uniform(0.2, 0.6) * glass).astype(np.float32)
    surface.metal = (rng.uniform(0.4, 0.8) * glass).astype(np.float32)
    surface.tilt_y += slope * plane.y
    surface.tilt_x += slope * plane.x
    return surface, plane.radius - plane.r


_Draw = Callable[[np.random.Generator, TextureBank, _Plane, Array], tuple[Surface, Array]]
_PARTS: dict[str, _Draw] = {"disc": _disc, "ring": _ring, "cap": _cap, "bolt": _bolt, "bottle": _bottle}
