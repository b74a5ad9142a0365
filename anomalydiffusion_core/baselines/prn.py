"""PRN-style anomalies: real ones moved to new places, and simulated ones.

Zhang et al., "Prototypical Residual Networks for Anomaly Detection and Localization", CVPR 2023, section 3.5:
extended anomalies are seen ones, changed and pasted elsewhere; simulated anomalies fill a Perlin mask with a foreign
texture or with the normal image itself in shuffled blocks. The networks of PRN are not included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..options import Settings, option
from .crop_paste import CropPaste
from .draem import blend, transparency_option
from .making import Made
from .moving import Moves, Source, check_sources
from .perlin import perlin_mask
from .textures import ProceduralTextures, Textures, augmented

BLOCKS = (8, 4)
TEXTURE_SHARE = 0.5


@dataclass(frozen=True)
class Prn(Settings):
    """Simulated anomalies come from a texture and from the normal image in equal parts."""

    sources: Sequence[Source]
    moves: Moves = field(default_factory=Moves)
    textures: Textures = field(default_factory=ProceduralTextures)
    real_share: float = option(0.5, "Share of moved real defects; the others are simulated.", min=0, max=1, step=0.05)
    transparency: float = transparency_option()
    name: str = "PRN-style"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sources(self.sources)

    def make(self, normal: Tensor, rng: np.random.Generator, foreground: Tensor | None) -> Made:
        """See `Method.make`."""
        if rng.random() < self.real_share:
            made = CropPaste(self.sources, self.moves).make(normal, rng, foreground)
            return Made(made.image, made.mask, {"kind": "real", **made.details})
        size = (normal.shape[1], normal.shape[2])
        mask = perlin_mask(size, rng, foreground)
        if rng.random() < TEXTURE_SHARE:
            texture, called = self.textures.draw(rng, size)
            texture = augmented(texture, rng)
        else:
            texture, called = shuffled_blocks(normal, rng), "shuffled blocks"
        made = blend(normal, texture, mask, float(rng.uniform(0, self.transparency)), called)
        return Made(made.image, made.mask, {"kind": "simulated", **made.details})


def shuffled_blocks(image: Tensor, rng: np.random.Generator) -> Tensor:
    """The image [3, H, W] cut into 8 x 4 blocks in another order; a remainder at the right and below repeats."""
    rows, columns = BLOCKS
    height, width = (max(side // count, 1) for side, count in zip(image.shape[1:], BLOCKS, strict=True))
    whole = image[:, : rows * height, : columns * width]
    rows, columns = whole.shape[1] // height, whole.shape[2] // width
    blocks = whole.reshape(3, rows, height, columns, width).permute(1, 3, 0, 2, 4).flatten(0, 1)
    order = torch.from_numpy(rng.permutation(len(blocks)))
    mixed = blocks[order].reshape(rows, columns, 3, height, width).permute(2, 0, 3, 1, 4)
    mixed = mixed.reshape(3, rows * height, columns * width)
    down, right = (torch.arange(side) % extent for side, extent in zip(image.shape[1:], mixed.shape[1:], strict=True))
    return mixed[:, down][:, :, right]
