"""Matching the pictures of one defect type with their masks by name, never by position."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .splits import natural_key

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
MASK_ENDING = "_mask"


@dataclass(frozen=True)
class MatchedFiles:
    """Pictures and masks of one type. `pairs` in natural order; `problems` name every file that has no partner."""

    pairs: tuple[tuple[str, Path, Path], ...]
    problems: tuple[str, ...]


def list_pictures(folder: Path) -> list[Path]:
    """The picture files directly in a folder in natural order; hidden files and other suffixes are ignored."""
    if not folder.is_dir():
        return []
    found = [
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in PICTURE_SUFFIXES and not entry.name.startswith(".") and entry.is_file()
    ]
    return sorted(found, key=lambda entry: natural_key(entry.name))


def list_folders(folder: Path) -> list[Path]:
    """The visible folders directly in a folder in natural order (archive left-overs such as __MACOSX ignored)."""
    if not folder.is_dir():
        return []
    found = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__"))]
    return sorted(found, key=lambda entry: natural_key(entry.name))


def match_files(pictures: Iterable[Path], masks: Iterable[Path]) -> MatchedFiles:
    """Pair `<stem>.*` with the mask `<stem>_mask.*` or `<stem>.*`, whatever the suffixes are.

    Every picture without mask, mask without picture, and name that occurs twice becomes a problem of its own.
    """
    problems: list[str] = []
    by_stem: dict[str, Path] = {}
    for picture in pictures:
        stem = _stem(picture)
        if stem in by_stem:
            problems.append(f"{picture}: has the same name as {by_stem[stem].name}. Keep one of the two.")
        else:
            by_stem[stem] = picture
    mask_of: dict[str, Path] = {}
    for mask in masks:
        owner = _owner(_stem(mask), by_stem)
        if owner is None:
            problems.append(f"{mask}: mask without picture. Add the picture of this name or remove the mask.")
        elif owner in mask_of:
            problems.append(
                f"{mask}: second mask of {by_stem[owner].name} beside {mask_of[owner].name}. Keep one of the two."
            )
        else:
            mask_of[owner] = mask
    for stem, picture in by_stem.items():
        if stem not in mask_of:
            problems.append(f"{picture}: picture without mask. Add {picture.stem}{MASK_ENDING}.png or remove it.")
    pairs = tuple((stem, picture, mask_of[stem]) for stem, picture in by_stem.items() if stem in mask_of)
    return MatchedFiles(pairs, tuple(problems))


def _owner(mask_stem: str, pictures: dict[str, Path]) -> str | None:
    if mask_stem in pictures:
        return mask_stem
    if mask_stem.lower().endswith(MASK_ENDING):
        shortened = mask_stem[: -len(MASK_ENDING)]
        return shortened if shortened in pictures else None
    return None


def _stem(path: Path) -> str:
    # archives made on macOS hold decomposed accents: the same name, other bytes
    return unicodedata.normalize("NFC", path.stem)
