"""Matching the images of one defect type with their masks by name, never by position."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .splits import natural_key

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
MASK_ENDING = "_mask"


@dataclass(frozen=True)
class MatchedFiles:
    """Images and masks of one type. `pairs` in natural order; `problems` name every file that has no partner."""

    pairs: tuple[tuple[str, Path, Path], ...]
    problems: tuple[str, ...]


def list_images(folder: Path) -> list[Path]:
    """The image files directly in a folder in natural order; hidden files and other suffixes are ignored."""
    if not folder.is_dir():
        return []
    found = [
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".") and entry.is_file()
    ]
    return sorted(found, key=lambda entry: natural_key(entry.name))


def list_folders(folder: Path) -> list[Path]:
    """The visible folders directly in a folder in natural order (archive left-overs such as __MACOSX ignored)."""
    if not folder.is_dir():
        return []
    found = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__"))]
    return sorted(found, key=lambda entry: natural_key(entry.name))


def match_files(images: Iterable[Path], masks: Iterable[Path]) -> MatchedFiles:
    """Pair `<stem>.*` with the mask `<stem>_mask.*` or `<stem>.*`, whatever the suffixes are.

    Every image without mask, mask without image, and name that occurs twice becomes a problem of its own.
    """
    problems: list[str] = []
    by_stem: dict[str, Path] = {}
    for image in images:
        stem = _stem(image)
        if stem in by_stem:
            problems.append(f"{image}: has the same name as {by_stem[stem].name}. Keep one of the two.")
        else:
            by_stem[stem] = image
    mask_of: dict[str, Path] = {}
    for mask in masks:
        owner = _owner(_stem(mask), by_stem)
        if owner is None:
            problems.append(f"{mask}: mask without image. Add the image of this name or remove the mask.")
        elif owner in mask_of:
            problems.append(
                f"{mask}: second mask of {by_stem[owner].name} beside {mask_of[owner].name}. Keep one of the two."
            )
        else:
            mask_of[owner] = mask
    for stem, image in by_stem.items():
        if stem not in mask_of:
            problems.append(f"{image}: image without mask. Add {image.stem}{MASK_ENDING}.png or remove it.")
    pairs = tuple((stem, image, mask_of[stem]) for stem, image in by_stem.items() if stem in mask_of)
    return MatchedFiles(pairs, tuple(problems))


def _owner(mask_stem: str, images: dict[str, Path]) -> str | None:
    if mask_stem in images:
        return mask_stem
    if mask_stem.lower().endswith(MASK_ENDING):
        shortened = mask_stem[: -len(MASK_ENDING)]
        return shortened if shortened in images else None
    return None


def _stem(path: Path) -> str:
    # archives made on macOS hold decomposed accents: the same name, other bytes
    return unicodedata.normalize("NFC", path.stem)
