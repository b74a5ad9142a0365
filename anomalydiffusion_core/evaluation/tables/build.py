"""Sorting records into the rows and columns of a published table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...data.pairs import OURS
from ..overlap import MARK
from ..published import AVERAGE, PublishedTable, load_table
from ..settings import GENERATED
from ..statistics import mean_and_spread, repeated_text, without_repeats
from .records import NORMAL_IMAGES, RENDERED, ResultRecord

NOT_MEASURED = "not measured"
UNDEFINED = "undefined"
OBJECTS_MEAN = "mean of objects"
"""Key of the mean over the measured objects."""
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
    """A measured number in the unit of its table: mean and sample deviation of the independent values.

    count: numbers behind it, each run once (or rows). leak: whether something was learned from test images.
    """

    mean: float
    spread: float
    count: int
    reduced: bool
    note: str = ""
    leak: bool = False


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
        marks = [mark for mark in (MARK if m.leak else "", m.note, "reduced" if m.reduced else "") if mark]
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

    Where it has not all of them but several objects were measured, their mean stands last. A table that nothing was
    measured for is returned whole.
    """
    variants = table.published.compares == "variants"
    measured = {row for (row, _, _), cell in table.cells.items() if cell.measured is not None}
    if not set(table.published.categories) <= measured:
        measured.discard(AVERAGE)
    if not measured:
        return table
    rows = {row: name for row, name in table.rows.items() if row in measured}
    cells = dict(table.cells)
    if len(rows) > 1 and AVERAGE not in rows and not variants:
        for column in table.columns:
            for metric in table.published.metrics:
                mean = _average([table.cells[row, column, metric].measured for row in rows])
                cells[OBJECTS_MEAN, column, metric] = Cell(None, mean)
        rows[OBJECTS_MEAN] = f"mean of {len(rows)} objects"
    return replace(table, rows=rows, cells=cells, by_method=not variants)


def build_table(records: Sequence[ResultRecord], number: int) -> MeasuredTable:
    """One table. Records that have none of its metrics, or belong to another ablation, are left out.

    Where several records of one budget fill a cell, the runs of all of them count together, each once. Records of
    another budget are never merged with them: the cell shows the budget with most runs, a full protocol first, and a
    footnote the others.
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
    cells, others = {}, list[str]()
    for row in rows:
        for column in columns:
            shown, *rest = _budgets(groups.get((row, column), []))
            for metric in published.metrics:
                measured = _measured(shown, metric, published.scale)
                cells[row, column, metric] = Cell(published.cell(row, column, metric), measured)
            others += [_other_budget(published, row, column, part) for part in rest]
    if AVERAGE in published.rows:
        for column in columns:
            for metric in published.metrics:
                average = _average([cells[row, column, metric].measured for row in published.categories])
                cells[AVERAGE, column, metric] = Cell(published.cell(AVERAGE, column, metric), average)
        rows[AVERAGE] = AVERAGE
    return MeasuredTable(published, tuple(columns), rows, cells, (*_footnotes(published, chosen), *others))


def _belongs(record: ResultRecord, table: PublishedTable) -> bool:
    if not any(metric in record.metrics for metric in table.metrics):
        return False
    if table.compares == "variants":
        return record.table == table.number
    # against detection methods the paper compares its own pairs alone
    if table.compares == "generators":
        kind = record.training_set != NORMAL_IMAGES
    else:
        kind = record.column == OURS or record.training_set != GENERATED
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
    runs = [run for record in having for run in record.runs or [""] * len(record.seeds)]
    columns = {
        name: [v for record in having for v in record.metrics.get(name, [None] * len(record.seeds))]
        for name in _names(having)
    }
    seeds = [seed for record in having for seed in record.seeds]
    sets = [one for record in having for one in record.sets or [""] * len(record.seeds)]
    kept = without_repeats(runs, seeds, columns)
    values = [columns[metric][place] for place in kept]
    reduced, leak = any(record.reduced for record in having), any(record.leaks for record in having)
    known = [value * scale for value in values if value is not None]
    if len(known) < len(values):
        return Measured(float("nan"), float("nan"), len(values), reduced, leak=leak)
    return Measured(*mean_and_spread(known, [sets[place] for place in kept]), len(known), reduced, leak=leak)


def _names(records: Sequence[ResultRecord]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record.metrics))


def _budgets(records: Sequence[ResultRecord]) -> list[list[ResultRecord]]:
    """Records by budget, the one to show first; one empty list for no records."""
    found: dict[tuple[str, str, bool], list[ResultRecord]] = {}
    for record in records:
        found.setdefault((record.budget_text(), record.data, record.reduced), []).append(record)
    ordered = sorted(found.items(), key=lambda item: (item[0][2], -sum(len(r.seeds) for r in item[1])))
    return [part for _, part in ordered] or [[]]


def _other_budget(table: PublishedTable, row: str, column: str, records: Sequence[ResultRecord]) -> str:
    figures = []
    for metric in table.metrics:
        measured = _measured(records, metric, table.scale)
        if measured is not None:
            figures.append(f"{HEADINGS[metric]} {Cell(None, measured).measured_text(table.decimals)}")
    name = " / ".join(part for part in (row, column) if part)
    return f"Not merged into {name}, because the budget is another: {', '.join(figures)}; {records[0].budget_text()}."


def _average(measured: Sequence[Measured | None]) -> Measured | None:
    """Mean over the rows of the paper that were measured; says how many where some are missing."""
    known = [m for m in measured if m is not None and not math.isnan(m.mean)]
    if not known:
        return None
    note = "" if len(known) == len(measured) else f"{len(known)} of {len(measured)} rows"
    mean = statistics.fmean(m.mean for m in known)
    leak = any(m.leak for m in known)
    return Measured(mean, float("nan"), len(known), any(m.reduced for m in known), note, leak)


def _footnotes(table: PublishedTable, records: Sequence[ResultRecord]) -> tuple[str, ...]:
    notes = [
        "Each cell: published / measured, mean +- sample standard deviation over the generated sets, or over the "
        "detectors where there is one set."
    ]
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
        if len(set(record.sets)) > 1:
            seeds = repeated_text(record.sets)
        where = f" on {record.data}" if record.data else ""
        text = f"{protocol}{where}: {seeds}, {record.budget_text() or 'budget not recorded'}"
        name = (record.row or record.category) if record.table else record.column
        budgets.setdefault(text, []).append(name)
    notes += [f"Measured {', '.join(dict.fromkeys(names))}; {text}." for text, names in budgets.items()]
    notes += [
        f"{MARK}: {record.column} of {record.category} was learned from {len(record.leaks)} of its test images."
        for record in records
        if record.leaks
    ]
    if not records:
        notes.append("Nothing was measured for this table.")
    return tuple(notes)
