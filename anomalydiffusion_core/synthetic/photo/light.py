"""Light on a relief: diffuse light, highlights, and a reflected room for metal and glass.

All images are linear in light and planar, [3, H, W]; heights are in pixels, so that a slope of 1 is 45 degrees.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from .bank import Array, TextureBank

ROOM_STEPS = 512


@dataclass
class Surface:
    """What light falls on.

    Attributes:
        albedo: [3, H, W], 0..1, linear.
        height: [H, W] in pixels.
        gloss: [H, W], strength of the highlight, 0..1; 0.04 is matt, 0.5 is lacquer.
        metal: [H, W], 0..1, share of the light that mirrors the room, coloured by the albedo.
        tilt_y, tilt_x: [H, W], slopes of the part itself, added to those of `height`.
        sharpness: exponent of the highlight, 5 (broad) to 200 (a spot).
        threads: [2, H, W], of a fabric the number of the thread across and along, as continuous coordinates.
    """

    albedo: Array
    height: Array
    gloss: Array
    metal: Array
    tilt_y: Array
    tilt_x: Array
    sharpness: float = 20.0
    threads: Array | None = None

    @classmethod
    def flat(
        cls, albedo: Array, height: Array, gloss: float, sharpness: float, metal: float = 0.0, **more: Any
    ) -> Surface:
        """A surface without a shape of its own, equally glossy everywhere."""
        shine, mirror, tilt_y, tilt_x = (
            np.full(height.shape, value, np.float32) for value in (gloss, metal, 0.0, 0.0)
        )
        return cls(albedo, height, shine, mirror, tilt_y, tilt_x, sharpness, **more)

    def window(self, rows: slice, columns: slice) -> Surface:
        """A copy of a part of it, whose arrays may be written."""
        parts: dict[str, Any] = {
            field.name: value[..., rows, columns].copy()
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), np.ndarray)
        }
        return replace(self, **parts)


@dataclass(frozen=True)
class Light:
    """One lamp at a finite distance, light from all sides, and the room that metal mirrors.

    Attributes:
        direction: (down, right, towards the camera), of unit length; where the lamp is, seen from the centre.
        ambient: 0..1, share of light from all sides.
        colour: [3], of the lamp, about 1.
        drift: change of the direction from the centre to the edge of the image.
        field: [H, W], slow change of the brightness, about 1.
        room: [ROOM_STEPS], brightness of the room from one side (-1) to the other (1), 1 where a flat surface looks.
        room_side: direction in the image along which the room's brightness changes, (down, right).
    """

    direction: tuple[float, float, float]
    ambient: float
    colour: Array
    drift: float
    field: Array
    room: Array
    room_side: tuple[float, float]

    def window(self, rows: slice, columns: slice) -> Light:
        """This light on a part of the image."""
        return replace(self, field=self.field[rows, columns])


def slopes(height: Array) -> tuple[Array, Array]:
    """Change of the height per pixel downwards and to the right, by central differences; one-sided at the border."""
    down, right = np.empty_like(height), np.empty_like(height)
    np.subtract(height[2:], height[:-2], out=down[1:-1])
    down[1:-1] *= 0.5
    down[0], down[-1] = height[1] - height[0], height[-1] - height[-2]
    np.subtract(height[:, 2:], height[:, :-2], out=right[:, 1:-1])
    right[:, 1:-1] *= 0.5
    right[:, 0], right[:, -1] = height[:, 1] - height[:, 0], height[:, -1] - height[:, -2]
    return down, right


def shade(surface: Surface, light: Light, size: int, rows: slice = slice(None), columns: slice = slice(None)) -> Array:
    """Light that the surface sends to a camera straight above, [3, H, W], 1 = white.

    The normal is (-down, -right, 1) / length; diffuse light goes with its cosine to the lamp (Lambert), the highlight
    with a power of its cosine to the half vector (Blinn), cos^n written as exp(n (cos - 1)). A flat surface has
    diffuse light 1.

    Args:
        size: side of the whole image; `rows` and `columns` say which part of it `surface` and `light` are.
    """
    down, right = slopes(surface.height)
    down += surface.tilt_y
    right += surface.tilt_x
    upright = 1 / np.sqrt(1 + down * down + right * right)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / (size / 2) - 1
    lamp_y = light.direction[0] - light.drift * axis[rows, None]
    lamp_x = light.direction[1] - light.drift * axis[None, columns]
    lamp_z = light.direction[2]
    scale = 1 / np.sqrt(lamp_y**2 + lamp_x**2 + lamp_z**2)
    lean = down * lamp_y + right * lamp_x
    diffuse = np.maximum((lamp_z - lean) * upright * scale, 0.0)
    diffuse *= (1 - light.ambient) / lamp_z
    diffuse += light.ambient * upright
    half_z = lamp_z * scale + 1
    half = 1 / np.sqrt((lamp_y**2 + lamp_x**2) * scale**2 + half_z**2)
    shine = (half_z - lean * scale) * upright * half
    shine -= 1
    shine *= surface.sharpness
    np.exp(shine, out=shine)
    shine *= surface.gloss
    if surface.metal.any():
        towards = -(down * light.room_side[0] + right * light.room_side[1]) * upright
        towards += 0.12 * (axis[rows, None] * light.room_side[0] + axis[None, columns] * light.room_side[1])
        index = np.clip((towards * 0.5 + 0.5) * (ROOM_STEPS - 1), 0, ROOM_STEPS - 1).astype(np.intp)
        diffuse += surface.metal * (light.room[index] - diffuse)
    diffuse *= light.field
    shine *= light.field
    sent = surface.albedo * diffuse
    for channel, tint in zip(sent, light.colour, strict=True):
        channel += tint * shine
    return sent


def draw_light(rng: np.random.Generator, bank: TextureBank, size: int) -> Light:
    """A lamp at 30 to 75 degrees above the surface in a random direction, with a room to mirror."""
    turn, up = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(32, 72))
    direction = (float(np.sin(turn) * np.cos(up)), float(np.cos(turn) * np.cos(up)), float(np.sin(up)))
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    fall = rng.uniform(0.0, 0.4) ** 1.3
    field = 1 + fall * (axis[:, None] * direction[0] + axis[None] * direction[1])
    field = field + rng.uniform(0.01, 0.06) * bank.crop(rng, "broad", size)
    if rng.random() < 0.3:  # a band of light from a window or a tube
        side = rng.uniform(0, np.pi)
        across = axis[:, None] * np.sin(side) + axis[None] * np.cos(side) - rng.uniform(-0.8, 0.8)
        field = field + rng.uniform(0.1, 0.35) * np.exp(-((across / rng.uniform(0.15, 0.5)) ** 2))
    warm = rng.normal(0, 0.03)
    colour = np.asarray((1 + warm, 1.0, 1 - warm), np.float32)
    side = turn + rng.normal(0, 0.5)
    return Light(
        direction,
        float(rng.uniform(0.2, 0.55)),
        colour,
        float(rng.uniform(0.05, 0.35)),
        np.maximum(field, 0.25).astype(np.float32),
        _room(rng),
        (float(np.sin(side)), float(np.cos(side))),
    )


def _room(rng: np.random.Generator) -> Array:
    """A grey room with two to four soft lamps and a dark corner; a flat surface mirrors brightness 1."""
    where = np.linspace(-1, 1, ROOM_STEPS)
    room = np.full(ROOM_STEPS, rng.uniform(0.25, 0.6))
    for _ in range(int(rng.integers(2, 5))):
        width = rng.uniform(0.05, 0.3)
        room += rng.uniform(0.4, 1.6) / (1 + np.exp((np.abs(where - rng.uniform(-0.9, 0.9)) - width) / 0.03))
    room -= rng.uniform(0, 0.3) * np.exp(-(((where - rng.uniform(-1, 1)) / 0.2) ** 2))
    room = np.convolve(np.pad(room, 12, mode="edge"), np.hanning(25) / np.hanning(25).sum(), mode="valid")
    flat = np.clip(room[ROOM_STEPS // 2 - 20 : ROOM_STEPS // 2 + 20].mean(), 0.35, None)
    return np.clip(room / flat, 0.08, 2.6).astype(np.float32)
