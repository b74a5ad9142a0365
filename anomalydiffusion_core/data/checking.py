"""Whether a folder of pairs is still what was written: every file, hash, size and mask, line by line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import AnomalyDiffusionError, DatasetError
from ..files import file_digest
from .export import outside_difference
from .images import image_size
from .manifest_checks import PARTS, place_problems
from .mask_files import read_mask
from .pairing import list_folders, list_images
from .pairs import HASHED, HASHES, MANIFEST, MANIFEST_VERSION, file_inside

REQUIRED = ("image", "mask", "object", "defect")
SHOWN = 50


@dataclass
class Checked:
    """What a check found. problems: each names a line or a file, and what is wrong with it."""

    pairs: int = 0
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def report(self, folder: Path) -> str:
        """As lines of text."""
        lines = [f"{folder}: {self.pairs} pairs, {len(self.problems)} problems"]
        lines += [f"- {problem}" for problem in self.problems[:SHOWN]]
        if len(self.problems) > SHOWN:
            lines.append(f"- and {len(self.problems) - SHOWN} more")
        return "\n".join([*lines, *(f"notice: {notice}" for notice in self.notices)])


def check_pairs(folder: Path) -> Checked:
    """Check a folder that Export Pairs, `generate` or a baseline wrote; nothing is changed.

    Raises DatasetError for a folder without manifest, or one that is no text.
    """
    manifest = folder / MANIFEST
    try:
        text = manifest.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{manifest}: cannot be read ({error}). Give a folder that Export Pairs wrote.") from error
    found, listed, unhashed = Checked(), dict[Path, int](), 0
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number}"
        found.pairs += 1
        try:
            record = json.loads(line)
            missing = [key for key in REQUIRED if not isinstance(record.get(key), str)]
        except (ValueError, AttributeError, RecursionError):
            found.problems.append(f"{where}: is not a record of a pair. Restore or remove it.")
            continue
        if missing:
            found.problems.append(f"{where}: has no {', '.join(missing)}. Restore or remove it.")
            continue
        if isinstance(record.get("version"), int) and record["version"] > MANIFEST_VERSION:
            found.problems.append(f"{where}: version {record['version']} is newer than this program. Update it.")
            continue
        found.problems += [f"{where}: {problem}" for problem in _problems(folder, record, listed, number)]
        unhashed += HASHES not in record
    unlisted = [path for path in _image_files(folder) if path not in listed]
    found.problems += [
        f"{path.relative_to(folder).as_posix()}: is in no line of {MANIFEST}. Restore its line or remove it."
        for path in unlisted
    ]
    if unhashed:
        found.notices.append(f"{unhashed} lines have no hashes: they were written by an earlier version")
    return found


def _problems(folder: Path, record: Mapping[str, Any], listed: dict[Path, int], number: int) -> Iterator[str]:
    files: dict[str, Path] = {}
    for key in HASHED:
        name = record.get(key)
        if not name:
            continue
        try:
            files[key] = file_inside(folder, str(name), "the file")
        except DatasetError as error:
            yield str(error)
            continue
        if key != "normal" and files[key] in listed:
            yield f"{name} is also in line {listed[files[key]]}. Remove one of the two."
        listed.setdefault(files[key], number)
        expected = (record.get(HASHES) or {}).get(key)
        if expected and file_digest(files[key]) != expected:
            yield f"{name} has changed since it was written. Restore the file."
    yield from (f"{text}." for text in place_problems(record))
    if {"image", "mask"} <= set(files):
        try:
            yield from _content_problems(record, files)
        except AnomalyDiffusionError as error:
            yield str(error)


def _content_problems(record: Mapping[str, Any], files: Mapping[str, Path]) -> Iterator[str]:
    size, mask = image_size(files["image"]), read_mask(files["mask"])
    if tuple(mask.shape[1:]) != size:
        yield f"{record['mask']} is {mask.shape[2]}x{mask.shape[1]} px, its image {size[1]}x{size[0]} px."
        return
    if not bool(mask.any()):
        yield f"{record['mask']} is empty. Restore or remove the pair."
    if "normal" not in files:
        return
    if image_size(files["normal"]) != size:
        yield f"{record['normal']} has another size than its image. Restore the file."
        return
    drawn = files.get("drawn_mask", files["mask"])
    difference = outside_difference(files["image"], drawn, files["normal"], int(record.get("bits") or 8))
    if difference > int(record.get("outside_max_abs_diff") or 0):
        stated = record.get("outside_max_abs_diff")
        yield f"image and normal image differ by {difference} of 255 outside the mask; the line says {stated}."


def _image_files(folder: Path) -> Iterator[Path]:
    for base in list_folders(folder):
        for part in PARTS:
            for kind in list_folders(base / part):
                yield from list_images(kind)
