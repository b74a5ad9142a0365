"""How good, how varied and how new generated pictures are (AnomalyDiffusion, Table 1)."""

from __future__ import annotations

from .evaluation import GeneratedSet, Generation, evaluate_generation
from .ic_lpips import IcLpips, ic_lpips
from .inception_score import inception_score
from .memorisation import Nearest, nearest_training_defects
from .trunks import STAND_IN, TRUNKS, Inception, Perceptual, load_inception, load_perceptual

__all__ = [
    "STAND_IN",
    "TRUNKS",
    "GeneratedSet",
    "Generation",
    "IcLpips",
    "Inception",
    "Nearest",
    "Perceptual",
    "evaluate_generation",
    "ic_lpips",
    "inception_score",
    "load_inception",
    "load_perceptual",
    "nearest_training_defects",
]
