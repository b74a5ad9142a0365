"""Whether a manifest still says what lies in its folder: lines that were doubled, edited or removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DatasetError
from ..files import file_digest
from .formats.described import GOOD
from .pairing import list_folders, list_images, some_of

if TYPE_CHECKING:
    from .pairs import ExportedPair

PARTS = ("test", "ground_truth", "normal")
"""Folders of images, masks and normal images below that of an object."""
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
        problems += [f"the line of {pair.record['image']} {text}" for text in place_problems(pair.record)]
    _raise(folder, problems)


def place_problems(record: Mapping[str, Any]) -> list[str]:
    """Where object and defect of a line are not those in the names of its files."""
    own, found = [record["object"], record["defect"]], []
    for key, part in zip(("image", "mask", "normal"), PARTS, strict=True):
        parts = str(record.get(key) or "").replace("\\", "/").split("/")
        if len(parts) == 4 and parts[1] == part and [parts[0], parts[2]] != own:
            found.append(f"says {'/'.join(own)}, but {record[key]} is of {parts[0]}/{parts[2]}. Restore the line")
    return found


def check_hashes(folder: Path, pairs: Sequence[ExportedPair]) -> None:
    """Compare images and masks with the hashes in their lines. Lines of earlier versions have none.

    Raises DatasetError that names the files that are not those that were written.
    """
    problems = []
    for pair in pairs:
        stored = pair.record.get("sha256") or {}
        for key, path in (("image", pair.image), ("mask", pair.mask)):
            if key in stored and file_digest(path) != stored[key]:
                name = path.relative_to(folder).as_posix()
                problems.append(f"{name} has changed since it was written. Restore the file or remove its line")
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
    return [f"{folder.name}: in no line of the manifest, so that they do not count: {some_of(found)}"]


def _raise(folder: Path, problems: Sequence[str]) -> None:
    if problems:
        more = f"; and {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
        raise DatasetError(f"manifest of {folder}: {'; '.join(problems[:PROBLEMS_SHOWN])}{more}.", problems)
