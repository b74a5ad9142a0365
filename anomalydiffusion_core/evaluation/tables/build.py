"""Sorting records into the rows and columns of a published table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...data.pairs import OURS
from ..metrics.detection import spread
from ..published import AVERAGE, PublishedTable, load_table
from ..settings import GENERATED
from .records import RENDERED, ResultRecord

NOT_MEASURED = "not measured"
UNDEFINED = "undefined"
HEADINGS = {
    "is": "IS",
    "ic_lpips": "IC-L",
    "accuracy": "accuracy",
    "pixel_auroc": "AUROC",
    "pixel_ap": "AP",
    "pixel_f1": "F1-max",
    "pixel_pro": "PRO",
    "image_auroc": "AUROC",
    "image_ap": "AP",
    "image_f1": "F1-max",
}


@dataclass(frozen=True)
class Measured:
    """A measured number in the unit of its table: mean and sample deviation over `count` seeds (or rows)."""

    mean: float
    spread: float
    count: int
    reduced: bool
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """A published and a measured number; either may be missing."""

    published: float | None
    measured: Measured | None

    def text(self, decimals: int) -> str:
        """`published / measured`; a cell that was not measured says so."""
        printed = "-" if self.published is None else f"{self.published:.{decimals}f}"
        return f"{printed} / {self.measured_text(decimals)}"

    def measured_text(self, decimals: int) -> str:
        """Mean and spread, marked where the protocol was reduced."""
        if self.measured is None:
            return NOT_MEASURED
        m = self.measured
        if math.isnan(m.mean):
            return UNDEFINED
        spread = "" if math.isnan(m.spread) else f" +- {m.spread:.{decimals}f}"
        marks = [mark for mark in (m.note, "reduced" if m.reduced else "") if mark]
        return f"{m.mean:.{decimals}f}{spread}" + (f" ({', '.join(marks)})" if marks else "")


@dataclass(frozen=True)
class MeasuredTable:
    """A published table with everything that was measured for it.

    Attributes:
        columns: methods of the paper, then whatever else was measured.
        rows: row key -> what to show; rows that are only measured come before the average.
        cells: (row, column, metric) -> the two numbers.
        footnotes: notes on the published numbers and budgets of the measured ones.
        by_method: whether each method is shown in its own line instead of in columns.
    """

    published: PublishedTable
    columns: tuple[str, ...]
    rows: dict[str, str]
    cells: dict[tuple[str, str, str], Cell]
    footnotes: tuple[str, ...]
    by_method: bool = False

    @property
    def title(self) -> str:
        """Number and title."""
        return f"Table {self.published.number}: {self.published.title}"


def build_tables(
    records: Sequence[ResultRecord], numbers: Sequence[int] = (), only_measured: bool = False
) -> list[MeasuredTable]:
    """The tables of these numbers (all twelve when empty), in the order given.

    only_measured: leave out the rows that nothing was measured for, see `measured_part`.
    """
    tables = [build_table(records, number) for number in numbers or range(1, 13)]
    return [measured_part(table) for table in tables] if only_measured else tables


def measured_part(table: MeasuredTable) -> MeasuredTable:
    """The rows that something was measured for, with a line for each method; the average only with all its rows.

    A table that nothing was measured for is returned whole.
    """
    measured = {row for (row, _, _), cell in table.cells.items() if cell.measured is not None}
    if not set(table.published.categories) <= measured:
        measured.discard(AVERAGE)
    if not measured:
        return table
    rows = {row: name for row, name in table.rows.items() if row in measured}
    return replace(table, rows=rows, by_method=table.published.compares != "variants")


def build_table(records: Sequence[ResultRecord], number: int) -> MeasuredTable:
    """One table. Records that have none of its metrics, or belong to another ablation, are left out.

    Where several records fill one cell the seeds of all of them count together.
    """
    published = load_table(number)
    chosen = [record for record in records if _belongs(record, published)]
    variants = published.compares == "variants"
    columns = list(published.methods)
    if not variants:
        columns += sorted({record.column for record in chosen} - set(columns))
    rows = {key: published.row_names[key] for key in published.categories}
    for record in sorted(chosen, key=lambda record: (record.category, record.row)):
        rows.setdefault(_row(record, published), _row(record, published))
    groups: dict[tuple[str, str], list[ResultRecord]] = {}
    for record in chosen:
        groups.setdefault((_row(record, published), "" if variants else record.column), []).append(record)
    cells = {}
    for row in rows:
        for column in columns:
            for metric in published.metrics:
                measured = _measured(groups.get((row, column), []), metric, published.scale)
                cells[row, column, metric] = Cell(published.cell(row, column, metric), measured)
    if AVERAGE in published.rows:
        for column in columns:
            for metric in published.metrics:
                average = _average([cells[row, column, metric].measured for row in published.categories])
                cells[AVERAGE, column, metric] = Cell(published.cell(AVERAGE, column, metric), average)
        rows[AVERAGE] = AVERAGE
    return MeasuredTable(published, tuple(columns), rows, cells, _footnotes(published, chosen))


def _belongs(record: ResultRecord, table: PublishedTable) -> bool:
    if not any(metric in record.metrics for metric in table.metrics):
        return False
    if table.compares == "variants":
        return record.table == table.number
    # against detection methods the paper compares its own pairs alone
    kind = table.compares == "generators" or record.column == OURS or record.training_set != GENERATED
    return record.table is None and kind


def _row(record: ResultRecord, table: PublishedTable) -> str:
    if table.compares == "variants":
        if record.row in table.rows:
            return record.row
        return f"{record.row} (not in the paper)"
    return f"{record.category} ({RENDERED})" if record.data == RENDERED else record.category


def _measured(records: Sequence[ResultRecord], metric: str, scale: float) -> Measured | None:
    having = [record for record in records if metric in record.metrics]
    if not having:
        return None
    values = [value for record in having for value in record.metrics[metric]]
    reduced = any(record.reduced for record in having)
    known = [value * scale for value in values if value is not None]
    if len(known) < len(values):
        return Measured(float("nan"), float("nan"), len(values), reduced)
    return Measured(statistics.fmean(known), spread(known), len(known), reduced)


def _average(measured: Sequence[Measured | None]) -> Measured | None:
    """Mean over the rows of the paper that were measured; says how many where some are missing."""
    known = [m for m in measured if m is not None and not math.isnan(m.mean)]
    if not known:
        return None
    note = "" if len(known) == len(measured) else f"{len(known)} of {len(measured)} rows"
    mean = statistics.fmean(m.mean for m in known)
    return Measured(mean, float("nan"), len(known), any(m.reduced for m in known), note)


def _footnotes(table: PublishedTable, records: Sequence[ResultRecord]) -> tuple[str, ...]:
    notes = ["Each cell: published / measured, mean +- sample standard deviation over the seeds."]
    notes += list(table.notes)
    notes += [
        f"Printed average of {entry['method']}, {entry['metric']}: {entry['printed']}, mean of its rows "
        f"{entry['mean_of_rows']} ({entry['reason']})."
        for entry in table.average_exceptions
        if entry["reason"] != "mean without bottle" or table.number not in (2, 10)
    ]
    budgets: dict[str, list[str]] = {}
    for record in records:
        protocol = "reduced protocol" if record.reduced else "protocol as given"
        seeds = f"{len(record.seeds)} seed" + ("s" if len(record.seeds) != 1 else "")
        where = f" on {record.data}" if record.data else ""
        text = f"{protocol}{where}: {seeds}, {record.budget_text() or 'budget not recorded'}"
        name = (record.row or record.category) if record.table else record.column
        budgets.setdefault(text, []).append(name)
    notes += [f"Measured {', '.join(dict.fromkeys(names))}; {text}." for text, names in budgets.items()]
    if not records:
        notes.append("Nothing was measured for this table.")
    return tuple(notes)
