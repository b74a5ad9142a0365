"""Baselines: earlier methods that turn a normal image into an image with an anomaly and its mask."""

from __future__ import annotations

from .crop_paste import CropPaste
from .cutpaste import VARIANTS, CutPaste
from .draem import Draem
from .making import Made, MadePairs, Method, make_pairs
from .moving import Moves, Source, training_sources
from .poisson import PoissonBlending
from .prn import Prn
from .textures import FolderTextures, ProceduralTextures, Textures

__all__ = [
    "VARIANTS",
    "CropPaste",
    "CutPaste",
    "Draem",
    "FolderTextures",
    "Made",
    "MadePairs",
    "Method",
    "Moves",
    "PoissonBlending",
    "Prn",
    "ProceduralTextures",
    "Source",
    "Textures",
    "make_pairs",
    "training_sources",
]
