"""Tables as pictures."""

from __future__ import annotations

import textwrap

import numpy as np
import torch
from torch import Tensor

from .build import MeasuredTable
from .text import head_and_lines

FONT = 7
CHARACTER = 0.062
LINE = 0.19
DPI = 110
MEASURED = "#d9ead3"
REDUCED = "#fff2cc"
HEAD = "#e8e8e8"


def table_picture(table: MeasuredTable) -> Tensor:
    """One table as [3,H,W] float32 in [0,1]. Measured cells are green, yellow where the protocol was reduced."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
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
    figure = Figure(figsize=(width + 0.2, height), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
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
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
