"""Training and testing a defect detector, the proof of the generated pairs."""

from __future__ import annotations

from .comparison import Comparison, ComparisonStep, compare
from .evaluation import LocalizationResult, evaluate_localizer, image_scores, score_pictures
from .network import DiscriminativeSubNetwork
from .training import LocalizerSettings, LocalizerStep, train_localizer
from .weights import load_network

__all__ = [
    "Comparison",
    "ComparisonStep",
    "DiscriminativeSubNetwork",
    "LocalizationResult",
    "LocalizerSettings",
    "LocalizerStep",
    "compare",
    "evaluate_localizer",
    "image_scores",
    "load_network",
    "score_pictures",
    "train_localizer",
]
