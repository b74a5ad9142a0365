"""Results that are there already: an evaluation of the same content is read again instead of computed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import folders

CONTENT_KEY = "content_key"


def content_key(*parts: Any) -> str:
    """A hash of plain values, the same for the same work."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_stamp(path: Path | None) -> list[Any]:
    """Changes when a file is replaced."""
    if path is None or not path.is_file():
        return []
    stat = path.stat()
    return [path.name, stat.st_size, stat.st_mtime_ns]


def find_result(prefix: str, name: str, key: str) -> tuple[Path, dict[str, Any]] | None:
    """The newest folder ``<prefix>_<number>`` in the output folder whose JSON file ``name`` holds this key."""
    base = folders.output_path(prefix)
    there = base.parent.glob(f"{base.name}_*") if base.parent.is_dir() else ()
    for folder in sorted((path for path in there if path.is_dir()), reverse=True):
        try:
            stored = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # another kind of folder, or one that somebody changed
        if isinstance(stored, dict) and stored.get(CONTENT_KEY) == key:
            return folder, stored
    return None


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values; NaN is refused, it is no JSON."""
    path.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8", newline="\n")


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table of comma-separated values; None is an empty cell."""
    import csv

    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([["" if cell is None else cell for cell in row] for row in rows])


def pairs_folders(text: str) -> list[Path]:
    """The folders of a text with one folder a line: absolute, or relative to ComfyUI's output folder."""
    lines = [line for line in text.splitlines() if line.strip()] or [text]
    return [folders.readable_folder(line, "pairs", folders.output_root()) for line in lines]
