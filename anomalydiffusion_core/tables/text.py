"""Tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from .build import MeasuredTable, heading

CSV_HEAD = "table row column metric published measured spread seeds reduced".split()
_LATEX = {"\\": r"\textbackslash{}", **{c: f"\\{c}" for c in "&%$#_{}"}, "~": r"\textasciitilde{}"}


def head_and_rows(table: MeasuredTable) -> tuple[list[str], list[list[str]]]:
    """One column for each method and metric; the first names the row."""
    places = [(column, metric) for column in table.columns for metric in table.published.metrics]
    head = [""] + [f"{column} {heading(metric)}".strip() for column, metric in places]
    decimals = table.published.decimals
    rows = [
        [name, *(table.cells[row, column, metric].text(decimals) for column, metric in places)]
        for row, name in table.rows.items()
    ]
    return head, rows


def to_markdown(tables: Sequence[MeasuredTable]) -> str:
    """All tables, each with its notes below."""
    parts = []
    for table in tables:
        head, rows = head_and_rows(table)
        lines = [f"## {table.title}", "", _row(head), _row(["---"] * len(head)), *map(_row, rows), ""]
        parts.append("\n".join(lines + [f"- {note}" for note in table.footnotes]) + "\n")
    return "\n".join(parts)


def to_csv(tables: Sequence[MeasuredTable]) -> str:
    """One line for each number; published and measured in the unit of the paper's table, empty where there is none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for table in tables:
        for (row, column, metric), cell in table.cells.items():
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
        head, rows = head_and_rows(table)
        lines = [r"\begin{table}", rf"\caption{{{_latex(table.published.title)}}}"]
        lines += [rf"\begin{{tabular}}{{l{'c' * (len(head) - 1)}}}", r"\hline", _latex_row(head), r"\hline"]
        lines += [*map(_latex_row, rows), r"\hline", r"\end{tabular}", ""]
        lines += [f"{_latex(note)}\\par" for note in table.footnotes]
        parts.append("\n".join([*lines, r"\end{table}", ""]))
    return "\n".join(parts)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text).replace("+-", r"$\pm$")


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
