"""DRAEM's simulated anomalies: a foreign texture is blended in through a Perlin mask.

Zavrtanik et al., "DRAEM - A Discriminatively Trained Reconstruction Embedding for Surface Anomaly Detection",
ICCV 2021, section 3.3, Eq. 3: I_a = (1 - M) I + (1 - beta) (M A) + beta (M I), beta uniform in 0.1 to 1 there and in
0 to 0.8 in the published code, which is followed here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from ..options import Settings, option
from .making import Made
from .perlin import perlin_mask
from .textures import ProceduralTextures, Textures, augmented


def transparency_option() -> Any:
    """The option ``transparency``, below 1 because at 1 the texture is invisible."""
    return option(
        0.8, "Largest share of the normal image that shines through; drawn from 0 to this.", min=0, max=0.99, step=0.01
    )


@dataclass(frozen=True)
class Draem(Settings):
    """The transparency is the largest beta of Eq. 3."""

    textures: Textures = field(default_factory=ProceduralTextures)
    transparency: float = transparency_option()
    name: str = "DRAEM"

    def make(self, normal: Tensor, rng: np.random.Generator, foreground: Tensor | None) -> Made:
        """See `Method.make`."""
        size = (normal.shape[1], normal.shape[2])
        mask = perlin_mask(size, rng, foreground)
        texture, called = self.textures.draw(rng, size)
        return blend(normal, augmented(texture, rng), mask, float(rng.uniform(0, self.transparency)), called)


def blend(normal: Tensor, texture: Tensor, mask: Tensor, beta: float, called: str) -> Made:
    """Eq. 3 for one image; all tensors [C, H, W]."""
    inside = (1 - beta) * texture + beta * normal
    return Made((1 - mask) * normal + mask * inside, mask, {"texture": called, "beta": round(beta, 4)})
