"""Tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from .build import HEADINGS, Cell, MeasuredTable

CSV_HEAD = "table row column metric published measured spread seeds reduced".split()
_LATEX = {"\\": r"\textbackslash{}", **{c: f"\\{c}" for c in "&%$#_{}"}, "~": r"\textasciitilde{}"}


@dataclass(frozen=True)
class Line:
    """One line of a table: its labels and its numbers."""

    labels: tuple[str, ...]
    cells: tuple[Cell, ...]

    def texts(self, decimals: int) -> list[str]:
        """All columns as text."""
        return [*self.labels, *(cell.text(decimals) for cell in self.cells)]


def head_and_lines(table: MeasuredTable) -> tuple[list[str], list[Line]]:
    """As in the paper, a row for each object and a column for each method and metric; or a line for each method.

    The latter, for tables of which only a part is shown, leaves out what was neither published nor measured.
    """
    metrics = table.published.metrics
    if not table.by_method:
        places = [(column, metric) for column in table.columns for metric in metrics]
        head = [""] + [f"{column} {HEADINGS[metric]}".strip() for column, metric in places]
        cells = {row: tuple(table.cells[row, column, metric] for column, metric in places) for row in table.rows}
        return head, [Line((name,), cells[row]) for row, name in table.rows.items()]
    lines = [
        Line((name, column), tuple(table.cells[row, column, metric] for metric in metrics))
        for row, name in table.rows.items()
        for column in table.columns
    ]
    known = [line for line in lines if any(cell.published is not None or cell.measured for cell in line.cells)]
    return ["", "method", *(HEADINGS[metric] for metric in metrics)], known


def to_markdown(tables: Sequence[MeasuredTable]) -> str:
    """All tables, each with its notes below."""
    parts = []
    for table in tables:
        head, rows = _texts(table)
        lines = [f"## {table.title}", "", _row(head), _row(["---"] * len(head)), *map(_row, rows), ""]
        parts.append("\n".join(lines + [f"- {note}" for note in table.footnotes]) + "\n")
    return "\n".join(parts)


def to_csv(tables: Sequence[MeasuredTable]) -> str:
    """One line for each number, in the unit of the paper's table; empty where there is none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for table in tables:
        for (row, column, metric), cell in table.cells.items():
            if row not in table.rows:
                continue
            m = cell.measured
            measured = ["", "", "", ""]
            if m is not None:
                measured = [_number(m.mean), _number(m.spread), str(m.count), str(m.reduced).lower()]
            printed = "" if cell.published is None else f"{cell.published:.{table.published.decimals}f}"
            writer.writerow([table.published.number, table.rows[row], column, metric, printed, *measured])
    return out.getvalue()


def to_latex(tables: Sequence[MeasuredTable]) -> str:
    """A `table` environment each, without packages; the notes follow as text."""
    parts = []
    for table in tables:
        head, rows = _texts(table)
        lines = [r"\begin{table}", rf"\caption{{{_latex(table.published.title)}}}"]
        lines += [rf"\begin{{tabular}}{{l{'c' * (len(head) - 1)}}}", r"\hline", _latex_row(head), r"\hline"]
        lines += [*map(_latex_row, rows), r"\hline", r"\end{tabular}", ""]
        lines += [f"{_latex(note)}\\par" for note in table.footnotes]
        parts.append("\n".join([*lines, r"\end{table}", ""]))
    return "\n".join(parts)


def _texts(table: MeasuredTable) -> tuple[list[str], list[list[str]]]:
    head, lines = head_and_lines(table)
    return head, [line.texts(table.published.decimals) for line in lines]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text).replace("+-", r"$\pm$")


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
