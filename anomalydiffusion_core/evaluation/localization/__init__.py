"""Training and testing a defect detector, the proof of the generated pairs."""

from __future__ import annotations

from .comparison import Comparison, ComparisonStep, Pictures, compare, compare_rows
from .evaluation import LocalizationResult, evaluate_localizer, image_scores, score_pictures
from .network import DiscriminativeSubNetwork
from .rows import TRAINING_SETS, Row, rows_of
from .selection import AUTHORS, LAST_STEP, SELECTIONS, VALIDATION
from .settings import LocalizerSettings
from .store import RunStore
from .training import LocalizerStep, train_localizer
from .weights import load_network

__all__ = [
    "AUTHORS",
    "LAST_STEP",
    "SELECTIONS",
    "TRAINING_SETS",
    "VALIDATION",
    "Comparison",
    "ComparisonStep",
    "DiscriminativeSubNetwork",
    "LocalizationResult",
    "LocalizerSettings",
    "LocalizerStep",
    "Pictures",
    "Row",
    "RunStore",
    "compare",
    "compare_rows",
    "evaluate_localizer",
    "image_scores",
    "load_network",
    "rows_of",
    "score_pictures",
    "train_localizer",
]
