"""DRAEM's simulated anomalies: a foreign texture shines through a Perlin mask.

Zavrtanik et al., "DRAEM - A Discriminatively Trained Reconstruction Embedding for Surface Anomaly Detection",
ICCV 2021, section 3.3, Eq. 3: I_a = (1 - M) I + (1 - beta) (M A) + beta (M I), beta uniform in 0.1 to 1 there and in
0 to 0.8 in the published code, which is followed here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ..errors import InputError
from .making import Made
from .perlin import perlin_mask
from .textures import ProceduralTextures, Textures, augmented

MOST_TRANSPARENT = 0.8


@dataclass(frozen=True)
class Draem:
    """largest_beta: how much of the good picture may shine through, 0 to below 1."""

    textures: Textures = field(default_factory=ProceduralTextures)
    largest_beta: float = MOST_TRANSPARENT
    name: str = "DRAEM"

    def __post_init__(self) -> None:
        if not 0 <= self.largest_beta < 1:
            raise InputError(f"transparency: {self.largest_beta} is not in 0 to below 1. Choose for example 0.8.")

    def make(self, normal: Tensor, rng: np.random.Generator, foreground: Tensor | None) -> Made:
        """See `Method.make`."""
        size = (normal.shape[1], normal.shape[2])
        mask = perlin_mask(size, rng, foreground)
        texture, called = self.textures.draw(rng, size)
        return blend(normal, augmented(texture, rng), mask, float(rng.uniform(0, self.largest_beta)), called)


def blend(normal: Tensor, texture: Tensor, mask: Tensor, beta: float, called: str) -> Made:
    """Eq. 3 for one picture; all tensors [C, H, W]."""
    inside = (1 - beta) * texture + beta * normal
    return Made((1 - mask) * normal + mask * inside, mask, {"texture": called, "beta": round(beta, 4)})
