"""A finished classification as a record for Results Table (Table 4)."""

from __future__ import annotations

from dataclasses import asdict

from ...data.mvtec import AnomalyDataset
from ..tables.records import FEW_REAL, ResultRecord, data_name
from .evaluation import Classification

PAPER_SIZE, PAPER_WIDTH, PAPER_PASSES = 256, 64, 150
"""The authors' code: 256 px, a full ImageNet network, 30 epochs of 5 passes. Anything less is a reduced protocol."""


def classification_record(
    result: Classification, dataset: AnomalyDataset, method: str, training_set: str, pictures: int
) -> ResultRecord:
    """The accuracy of each seed.

    Args:
        method: what made the pictures; not used for few real ones.
        training_set: as `ResultRecord` calls it.
        pictures: how many were trained on.
    """
    s = result.settings
    budget = {name: value for name, value in asdict(s).items() if name != "seed"}
    budget |= {"weights": "random" if s.weights is None else s.weights.name, "split": dataset.split_rule}
    small = s.size < PAPER_SIZE or s.width < PAPER_WIDTH or s.weights is None
    return ResultRecord(
        category=dataset.object,
        method="" if training_set == FEW_REAL else method,
        training_set=training_set,
        metrics={"accuracy": [run.accuracy for run in result.runs]},
        seeds=[run.seed for run in result.runs],
        budget=budget,
        data=data_name(dataset),
        reduced=small or s.steps * s.batch_size < PAPER_PASSES * pictures,
    )
