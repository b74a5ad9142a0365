"""Crop and paste: a real defect, cut out by its mask, on a normal image.

Lin et al., "Few-Shot Defect Segmentation Leveraging Abundant Defect-Free Training Samples Through Normal Background
Regularization and Crop-and-Paste Operation", ICME 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .making import Made
from .moving import Moves, Source, check_sources, move


@dataclass(frozen=True)
class CropPaste:
    """The cut-out replaces the pixels of the normal image unchanged; sources have the size of the normal images."""

    sources: Sequence[Source]
    moves: Moves = field(default_factory=Moves)
    name: str = "Crop and Paste"

    def __post_init__(self) -> None:
        check_sources(self.sources)

    def make(self, normal: Tensor, rng: np.random.Generator, foreground: Tensor | None) -> Made:
        """See `Method.make`."""
        placed = move(self.sources, self.moves, (normal.shape[1], normal.shape[2]), rng, foreground)
        return Made(torch.where(placed.shape > 0, placed.pixels, normal), placed.shape, placed.details)
