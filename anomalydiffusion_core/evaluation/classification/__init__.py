"""Which defect is it? A classifier trained on generated images, tested on real ones (AnomalyDiffusion, Table 4)."""

from __future__ import annotations

from .evaluation import Classification, ClassificationRun, classify, confusion_image
from .network import build_classifier
from .table import ClassificationTable
from .training import ClassifierStep, predict, train_classifier

__all__ = [
    "Classification",
    "ClassificationRun",
    "ClassificationTable",
    "ClassifierStep",
    "build_classifier",
    "classify",
    "confusion_image",
    "predict",
    "train_classifier",
]
