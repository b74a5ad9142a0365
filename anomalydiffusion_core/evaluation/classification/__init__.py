"""Which defect is it? A classifier trained on generated pictures, tested on real ones (AnomalyDiffusion, Table 4)."""

from __future__ import annotations

from .evaluation import Classification, ClassificationRun, classify, confusion_picture
from .network import ARCHITECTURES, build_classifier
from .training import ClassifierSettings, ClassifierStep, predict, train_classifier

__all__ = [
    "ARCHITECTURES",
    "Classification",
    "ClassificationRun",
    "ClassifierSettings",
    "ClassifierStep",
    "build_classifier",
    "classify",
    "confusion_picture",
    "predict",
    "train_classifier",
]
