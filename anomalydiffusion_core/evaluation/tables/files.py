"""Tables as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...data.images import write_image
from .build import MeasuredTable
from .pictures import table_picture
from .text import to_csv, to_latex, to_markdown


def write_tables(folder: Path, tables: Sequence[MeasuredTable]) -> None:
    """Write `tables.md`, `tables.csv`, `tables.tex` and `table_01.png` and so on into a new folder."""
    for name, form in (("tables.md", to_markdown), ("tables.csv", to_csv), ("tables.tex", to_latex)):
        (folder / name).write_text(form(tables), encoding="utf-8", newline="\n")
    for table in tables:
        write_image(folder / f"table_{table.published.number:02d}.png", table_picture(table))
