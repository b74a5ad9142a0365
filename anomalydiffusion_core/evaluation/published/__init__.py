"""The numbers of the paper's Tables 1 to 12 (AnomalyDiffusion, AAAI 2024, with its supplement), as printed.

One JSON file per table. Where the source does not agree with itself, in an average or between two tables, the printed
number stays and the file says so; disagreements.json lists what two tables give differently.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError

FOLDER = Path(__file__).resolve().parent
NUMBERS = tuple(range(1, 13))
AVERAGE = "Average"


@dataclass(frozen=True)
class PublishedTable:
    """One table.

    Attributes:
        number, title: of the paper; the title is ours.
        task: generation, localization, classification or ablation.
        compares: what the columns are: generators, detectors, or variants where the rows are variants of one method.
        scale: what 1.0 is printed as: 100 for percent, 1 for IS and IC-LPIPS.
        decimals: printed.
        metrics: one number each in every cell.
        methods: the columns; one nameless column for a table of variants.
        rows: row key (category, "Average", or variant) -> the numbers of each method; None is not printed.
        row_names: row key -> what to show.
        notes: what a reader of the numbers must know.
        average_exceptions: averages that are not the mean of their column to rounding, with the reason found.
    """

    number: int
    title: str
    task: str
    compares: str
    scale: float
    decimals: int
    metrics: Sequence[str]
    methods: Sequence[str]
    rows: Mapping[str, Sequence[Sequence[float | None]]]
    row_names: Mapping[str, str]
    notes: Sequence[str]
    average_exceptions: Sequence[Mapping[str, Any]]

    @property
    def categories(self) -> tuple[str, ...]:
        """The rows that are averaged, in the order of the table; all of them in a table of variants."""
        return tuple(key for key in self.rows if key != AVERAGE)

    def cell(self, row: str, method: str, metric: str) -> float | None:
        """The printed number, or None where the table has none."""
        if row not in self.rows or method not in self.methods or metric not in self.metrics:
            return None
        return self.rows[row][self.methods.index(method)][self.metrics.index(metric)]


def load_table(number: int) -> PublishedTable:
    """Read one table. Raises InputError for a number that is not 1 to 12."""
    if number not in NUMBERS:
        raise InputError(f"table: {number} is unknown. The paper has Tables 1 to {NUMBERS[-1]}.")
    content: dict[str, Any] = json.loads((FOLDER / f"table_{number:02d}.json").read_text(encoding="utf-8"))
    variants = content["compares"] == "variants"
    return PublishedTable(
        number=content.pop("table"),
        **{
            **content,
            "methods": [""] if variants else content["methods"],
            "rows": {key: [row["values"]] if variants else row for key, row in content["rows"].items()},
            "row_names": {key: row["name"] if variants else key for key, row in content["rows"].items()},
        },
    )
