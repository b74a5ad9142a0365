"""Tables as images and files."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.images import write_image
from ...figures import figure_tensor, new_figure
from .build import MeasuredTable
from .text import head_and_lines, to_csv, to_latex, to_markdown

FONT = 7
CHARACTER = 0.062
LINE = 0.19
DPI = 110
MEASURED = "#d9ead3"
REDUCED = "#fff2cc"
HEAD = "#e8e8e8"


def write_tables(folder: Path, tables: Sequence[MeasuredTable]) -> None:
    """Write `tables.md`, `tables.csv`, `tables.tex` and `table_01.png` and so on into a new folder."""
    for name, form in (("tables.md", to_markdown), ("tables.csv", to_csv), ("tables.tex", to_latex)):
        (folder / name).write_text(form(tables), encoding="utf-8", newline="\n")
    for table in tables:
        write_image(folder / f"table_{table.published.number:02d}.png", table_image(table))


def table_images(tables: Sequence[MeasuredTable]) -> Tensor:
    """All tables as one batch [N,3,H,W], padded with white to the right and below."""
    images = [table_image(table) for table in tables]
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    return torch.stack([F.pad(x, (0, width - x.shape[2], 0, height - x.shape[1]), value=1.0) for x in images])


def table_image(table: MeasuredTable) -> Tensor:
    """One table as [3,H,W] float32 in [0,1]. Measured cells are green, yellow where the protocol was reduced."""
    from matplotlib.transforms import Bbox

    head, lines = head_and_lines(table)
    rows = [line.texts(table.published.decimals) for line in lines]
    head = [text.replace(" ", "\n") for text in head]
    widths = [max(len(line) for row in [head, *rows] for line in row[i].split("\n")) + 2 for i in range(len(head))]
    width = max(sum(widths) * CHARACTER, 5.0)
    notes = [line for note in table.footnotes for line in textwrap.wrap(note, max(int(width / CHARACTER), 40))]
    head_lines = max(text.count("\n") + 1 for text in head)
    body = (head_lines + len(rows)) * LINE
    height = body + (len(notes) + 3) * LINE
    figure = new_figure((round((width + 0.2) * 100), round(height * 100)), layout=None)
    figure.set_dpi(DPI)
    figure.text(0.1 / width, 1 - LINE / height, table.title, fontsize=FONT + 2, va="center")
    axes = figure.add_axes((0.1 / (width + 0.2), 1 - (body + 2 * LINE) / height, width / (width + 0.2), body / height))
    axes.axis("off")
    shares = [part / sum(widths) for part in widths]
    drawn = axes.table(cellText=[head, *rows], colWidths=shares, cellLoc="center", bbox=Bbox.unit())
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(FONT)
    for (line, column), cell in drawn.get_celld().items():
        cell.set_linewidth(0.3)
        cell.set_height((head_lines if line == 0 else 1) * LINE / body)
        cell.set_facecolor(HEAD if line == 0 else "white")
        labels = len(lines[line - 1].labels)
        if line > 0 and column >= labels:
            measured = lines[line - 1].cells[column - labels].measured
            if measured is not None:
                cell.set_facecolor(REDUCED if measured.reduced else MEASURED)
    for number, text in enumerate(notes):
        place = 1 - (body + (2.7 + number) * LINE) / height
        figure.text(0.1 / width, place, text, fontsize=FONT, va="center", parse_math=False)
    return figure_tensor(figure)
