"""How good, how varied and how new generated images are (AnomalyDiffusion, Table 1)."""

from __future__ import annotations

from .evaluation import GeneratedSet, Generation, evaluate_generation
from .memorisation import Nearest, nearest_training_defects
from .scores import IcLpips, ic_lpips, inception_score
from .table import GenerationTable
from .trunks import Inception, Perceptual, load_inception, load_perceptual

__all__ = [
    "GeneratedSet",
    "Generation",
    "GenerationTable",
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
