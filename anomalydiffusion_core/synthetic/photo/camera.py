"""The camera: blur, vignette, shot noise, tone curve, and JPEG now and then."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .bank import Array, TextureBank

JPEG_SHARE = 0.2


@dataclass(frozen=True)
class Camera:
    """Settings of one shot; the same shot of two scenes has the same noise.

    Attributes:
        blur: 0..0.25, weight of either neighbour of a pixel, along both axes.
        gain: [1 or 3, H, W], exposure with vignette and white balance.
        noise: [H, W] of unit deviation; shot: what it counts after the tone curve, 0..1.
        contrast: 0..1, how much of an S curve.
        jpeg: quality, 0 = none.
    """

    blur: float
    gain: Array
    noise: Array
    shot: float
    contrast: float
    jpeg: int

    def exposed_for(self, light: Array) -> Camera:
        """This camera, with less exposure if more than a twentieth of the light [3, H, W] would be too bright."""
        brightest = float(np.quantile(light[:, ::8, ::8].max(0) * self.gain[0, ::8, ::8], 0.95))
        return replace(self, gain=self.gain / np.float32(max(brightest, 1.0)))

    def window(self, rows: slice, columns: slice) -> Camera:
        """This camera for a part of the image."""
        return replace(self, gain=self.gain[:, rows, columns], noise=self.noise[rows, columns])

    def expose(self, light: Array) -> NDArray[np.uint8]:
        """Linear light [3, H, W] -> bytes [H, W, 3] by a gamma of 2, without JPEG."""
        seen = _blurred(light, self.blur)
        seen *= self.gain
        np.maximum(seen, 0.0, out=seen)
        np.sqrt(seen, out=seen)
        # At a gamma of 2, shot noise has the same deviation at every brightness.
        seen += self.noise * self.shot
        np.clip(seen, 0.0, 1.0, out=seen)
        if self.contrast:
            seen += self.contrast * (seen * seen * (3 - 2 * seen) - seen)
        return np.rint(seen * 255).astype(np.uint8).transpose(1, 2, 0)

    def compress(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The image after JPEG, if this camera writes it."""
        if not self.jpeg:
            return np.ascontiguousarray(image)
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", quality=self.jpeg)
        return np.asarray(Image.open(buffer))


def draw_camera(rng: np.random.Generator, bank: TextureBank, size: int) -> Camera:
    """A shot with slight faults, none of which hides a scratch of one pixel."""
    axis = np.linspace(-1, 1, size, dtype=np.float32) ** 2
    vignette = 1 - rng.uniform(0.0, 0.14) * (axis[:, None] + axis[None])
    balance = ((1 + rng.normal(0, 0.02, 3)) * rng.uniform(0.88, 1.12)).astype(np.float32)
    return Camera(
        blur=float(rng.uniform(0.0, 0.2)),
        gain=vignette[None] * balance[:, None, None],
        noise=bank.crop(rng, "white", size),
        shot=float(rng.uniform(0.002, 0.014)),
        contrast=float(rng.uniform(0.0, 0.5)) if rng.random() < 0.5 else 0.0,
        jpeg=int(rng.integers(78, 96)) if rng.random() < JPEG_SHARE else 0,
    )


def _blurred(light: Array, weight: float) -> Array:
    """A copy, each pixel mixed with its neighbours along both axes; the border's outer neighbours equal it."""
    if weight < 0.02:
        return light.copy()
    result = light
    for axis in (1, 2):
        source = np.moveaxis(result, axis, 0)
        result = result * np.float32(1 - 2 * weight)
        target = np.moveaxis(result, axis, 0)
        side = source * np.float32(weight)
        target[:-1] += side[1:]
        target[1:] += side[:-1]
        target[0] += side[0]
        target[-1] += side[-1]
    return result
