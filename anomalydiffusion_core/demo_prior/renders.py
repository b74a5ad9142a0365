"""Endless training images: a ring of rendered scenes in which the oldest is replaced at every step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..synthetic import NoiseBank, render_scene, sample_caption
from ..synthetic.captions import Caption
from ..synthetic.scene import MASK_SHARE


@dataclass(frozen=True)
class Render:
    """uint8 [H, W, 3] with the mask of its defect, bool [H, W] (all False on good parts), and its caption."""

    pixels: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    caption: Caption


class RenderRing:
    """Rendered images of one size; `renew` replaces the oldest, so that no image is seen for long."""

    def __init__(
        self, seed: int, size: int, capacity: int, object_share: float = 0.0, mask_share: float = MASK_SHARE
    ) -> None:
        self.rng = np.random.default_rng([seed, size])
        self.bank = NoiseBank(seed=10_000 + seed)
        self.size = size
        self.object_share, self.mask_share = object_share, mask_share
        self.capacity = capacity
        self.renders: list[Render] = []
        self._next = 0

    def renew(self, count: int) -> list[int]:
        """Render `count` images; returns the positions they were put at."""
        positions = []
        for _ in range(count):
            image = self._render()
            if len(self.renders) < self.capacity:
                self.renders.append(image)
                positions.append(len(self.renders) - 1)
            else:
                self.renders[self._next] = image
                positions.append(self._next)
                self._next = (self._next + 1) % self.capacity
        return positions

    def _render(self) -> Render:
        if self.rng.random() < self.object_share:
            return _object_render(self.rng, self.bank, self.size)
        scene = render_scene(self.rng, self.bank, sample_caption(self.rng, self.mask_share), self.size)
        return Render(scene.image, scene.mask, scene.caption)


def random_crops(rng: np.random.Generator, renders: list[Render], count: int, size: int) -> Tensor:
    """Crops [count, 3, size, size] in [0, 1]; half of them centred on a defect, since those are the rare pixels."""
    crops = np.empty((count, size, size, 3), np.float32)
    for index in range(count):
        image = renders[rng.integers(len(renders))]
        limit = image.pixels.shape[0] - size
        top, left = (int(v) for v in rng.integers(0, limit + 1, 2))
        if index % 2 == 0 and image.mask.any():
            rows, columns = np.nonzero(image.mask)
            pick = rng.integers(len(rows))
            top = int(np.clip(rows[pick] - size // 2 + rng.integers(-12, 13), 0, limit))
            left = int(np.clip(columns[pick] - size // 2 + rng.integers(-12, 13), 0, limit))
        crop = image.pixels[top : top + size, left : left + size]
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        crops[index] = crop
    return torch.from_numpy(crops / 255).permute(0, 3, 1, 2).contiguous()


def as_tensor(renders: list[Render]) -> Tensor:
    """Images of one size as [B, 3, H, W] in [0, 1]."""
    pixels = np.stack([image.pixels for image in renders]).astype(np.float32) / 255
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _object_render(rng: np.random.Generator, bank: NoiseBank, size: int) -> Render:
    """Smooth rings and discs on a plain ground: edges and gradients that surfaces lack but photographs have."""
    y, x = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5, indexing="ij")
    canvas = np.broadcast_to(rng.uniform(0.05, 0.98, 3), (size, size, 3)).astype(np.float32)
    for _ in range(int(rng.integers(2, 7))):
        centre, radius = rng.uniform(0.2, 0.8, 2) * size, rng.uniform(0.06, 0.5) * size
        distance = np.hypot(y - centre[0], (x - centre[1]) * rng.uniform(0.6, 1.6))
        inner = radius * rng.choice([0.0, rng.uniform(0.4, 0.9)])
        softness = rng.uniform(0.7, 6.0)
        cover = np.clip((radius - distance) / softness, 0, 1) * np.clip((distance - inner) / softness + 0.5, 0, 1)
        slope = 1 + rng.normal(0, 0.25) * (y - centre[0]) / radius + rng.normal(0, 0.25) * (x - centre[1]) / radius
        paint = rng.uniform(0.03, 0.97, 3)[None, None] * slope[:, :, None]
        canvas = canvas * (1 - cover[:, :, None]) + paint * cover[:, :, None]
    canvas = canvas * (1 + 0.02 * bank.crop(rng, "grain", size)[:, :, None])
    pixels = np.rint(np.clip(canvas, 0, 1) * 255).astype(np.uint8)
    return Render(pixels, np.zeros((size, size), bool), Caption("plastic"))
