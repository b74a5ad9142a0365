"""Numbers about generated pictures as a record for Results Table (Table 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...data.mvtec import AnomalyDataset
from ..tables.records import GENERATED, ResultRecord, data_name
from .evaluation import Generation

PAPER_SIZE, PAPER_PICTURES = 256, 1000
"""Side in pixels and pictures of each type in the paper; anything less is a reduced protocol."""


def generation_record(
    result: Generation, dataset: AnomalyDataset, method: str, seed: int, budget: Mapping[str, Any]
) -> ResultRecord:
    """IS and IC-LPIPS, means over the types.

    `ic_lpips` is the form of the paper's text; that of the authors' later script is kept as `ic_lpips_pairwise`, which
    no table of the paper shows.

    Args:
        budget: settings of the measurement, with its `size` in pixels.
    """
    fewest = min(row["pictures"] for row in result.by_type.values())
    values = {"is": "is", "ic_lpips": "ic_lpips_text", "ic_lpips_pairwise": "ic_lpips_pairwise"}
    about = {**budget, "fewest_pictures": int(fewest), "ic_lpips": "as in the text", "split": dataset.split_rule}
    return ResultRecord(
        category=dataset.object,
        method=method,
        training_set=GENERATED,
        metrics={name: [result.mean(metric)] for name, metric in values.items()},
        seeds=[seed],
        budget={**about, "inception": result.inception, "lpips": result.lpips},
        data=data_name(dataset),
        reduced=fewest < PAPER_PICTURES or budget["size"] < PAPER_SIZE,
    )
