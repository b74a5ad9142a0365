"""Whether a manifest still says what lies in its folder: lines that were doubled, edited or removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DatasetError
from .formats.described import GOOD
from .pairing import list_folders, list_images, some_of

if TYPE_CHECKING:
    from .pairs import ExportedPair

PROBLEMS_SHOWN = 5


def check_lines(folder: Path, pairs: Sequence[ExportedPair]) -> None:
    """Compare the lines of a manifest with each other and with the names of their files.

    Raises DatasetError for an image that two lines name, and for a line whose type is not that of its folder.
    """
    problems = [
        f"{image.relative_to(folder).as_posix()} is in {count} lines. Remove all but one"
        for image, count in Counter(pair.image for pair in pairs).items()
        if count > 1
    ]
    for pair in pairs:
        parts = pair.image.relative_to(folder).parts
        placed = f"{parts[-4]}/{parts[-2]}" if len(parts) >= 4 and parts[-3] == "test" else pair.key
        if placed != pair.key:
            name = Path(*parts).as_posix()
            problems.append(f"the line of {name} says {pair.key}, its folder says {placed}. Restore the line")
    _raise(folder, problems)


def unlisted_notices(folder: Path, pairs: Sequence[ExportedPair]) -> list[str]:
    """Images of an export folder that no line names, so that they do not count. pairs: those of all its lines."""
    listed = {pair.image for pair in pairs}
    found = [
        path.relative_to(folder).as_posix()
        for base in list_folders(folder)
        for kind in list_folders(base / "test")
        if kind.name != GOOD
        for path in list_images(kind)
        if path not in listed
    ]
    if not found:
        return []
    return [f"{folder.name}: {len(found)} images are in no line of the manifest and do not count: {some_of(found)}"]


def _raise(folder: Path, problems: Sequence[str]) -> None:
    if problems:
        more = f"; and {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
        raise DatasetError(f"manifest of {folder}: {'; '.join(problems[:PROBLEMS_SHOWN])}{more}.", problems)
