"""A finished comparison as records for Results Table."""

from __future__ import annotations

from typing import Any

from ...data.mvtec import AnomalyDataset
from ..metrics import defined
from ..tables.records import FEW_REAL, GENERATED, REAL_AND_GENERATED, ResultRecord, data_name
from .evaluation import METRICS
from .rows import FEW_REAL as REAL_ROW
from .rows import NONE
from .selection import LAST_STEP, VALIDATION
from .summary import BUDGET, Comparison

PAPER_BUDGET = {"size": 256, "width": 64, "steps": 12600}
"""Pixels, channels and Adam steps of 8 pictures in the authors' evaluation; anything less is a reduced protocol."""


def result_records(comparison: Comparison, dataset: AnomalyDataset) -> list[ResultRecord]:
    """One record for each row that was trained on defects, with the numbers of each seed.

    Rows without seeds (weights that were given) and without defects have no column in the paper's tables. Where two
    rows were trained on the same, the first counts.
    """
    s = comparison.settings
    reduced = any(getattr(s, name) < least for name, least in PAPER_BUDGET.items())
    budget: dict[str, Any] = {name: getattr(s, name) for name in BUDGET}
    budget["selection"] = s.selection
    if s.selection != LAST_STEP:
        budget["check_every"] = s.check_every
    if s.selection == VALIDATION:
        budget["validation_share"] = s.validation_share
    budget["split"] = dataset.split_rule
    records: dict[tuple[str, str], ResultRecord] = {}
    for key, results in comparison.results.items():
        method = comparison.method(key)
        seeds = [seed for seed in comparison.seeds_of(key) if seed is not None]
        if not seeds or method == NONE:
            continue
        training_set = REAL_AND_GENERATED if method.startswith(f"{REAL_ROW} + ") else GENERATED
        place = ("", FEW_REAL) if method == REAL_ROW else (comparison.maker(key), training_set)
        metrics = {name: [defined(getattr(result, name)) for result in results] for name in METRICS}
        record = ResultRecord(
            category=dataset.object,
            method=place[0],
            training_set=place[1],
            metrics=metrics,
            seeds=seeds,
            budget=budget,
            data=data_name(dataset),
            reduced=reduced,
        )
        records.setdefault(place, record)
    return list(records.values())
