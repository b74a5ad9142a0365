"""Matching the images of one defect type with their masks by name, never by position."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DatasetError
from .splits import natural_key

IMAGE_SUFFIXES = frozenset(
    ".png .apng .jpg .jpeg .jpe .jfif .mpo .bmp .dib .tif .tiff .webp .avif .avifs .jp2 .j2k .j2c .jpc .jpf .jpx .gif "
    ".pbm .pgm .ppm .pnm .pfm .tga .vda .icb .vst .pcx .dds .psd .sgi .bw .rgb .rgba .qoi .ras .fits .fit .ico".split()
)
"""What Pillow reads of pixels. Drawings, films and containers, which it knows too, are no images here."""
MASK_ENDING = "_mask"
NAMES_SHOWN = 5
_OF_THE_SYSTEM = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})


@dataclass(frozen=True)
class MatchedFiles:
    """Images and masks of one type. `pairs` in natural order; `problems` name every file that has no partner."""

    pairs: tuple[tuple[str, Path, Path], ...]
    problems: tuple[str, ...]


def list_images(folder: Path) -> list[Path]:
    """The image files directly in a folder in natural order, without hidden files; see `skipped_in` for the others.

    Raises DatasetError for a folder that cannot be read.
    """
    found = [entry for entry in _entries(folder) if _is_image(entry)]
    return sorted(found, key=lambda entry: natural_key(entry.name))


def list_folders(folder: Path) -> list[Path]:
    """The visible folders directly in a folder in natural order (archive left-overs such as __MACOSX ignored).

    Raises DatasetError for a folder that cannot be read.
    """
    found = [entry for entry in _entries(folder) if entry.is_dir() and not entry.name.startswith((".", "__"))]
    return sorted(found, key=lambda entry: natural_key(entry.name))


def skipped_in(folder: Path) -> list[str]:
    """Names of the files in a folder that are no images, and of its folders that hold images, with their number.

    What systems leave behind, such as Thumbs.db, is not named.
    """
    found = []
    for entry in sorted(_entries(folder), key=lambda entry: natural_key(entry.name)):
        if entry.name.startswith((".", "__")) or entry.name.lower() in _OF_THE_SYSTEM or _is_image(entry):
            continue
        if entry.is_dir():
            inside = sum(_is_image(path) for path in entry.rglob("*"))
            if inside:
                found.append(f"{entry.name}/ ({inside} {'image' if inside == 1 else 'images'})")
        else:
            found.append(entry.name)
    return found


def some_of(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def folder_named(parent: Path, name: str) -> Path:
    """The folder of this name in ``parent``, or else the only one that differs in case or in the writing of accents.

    Returns ``parent / name`` when there is none or several.
    """
    exact = parent / name
    if exact.is_dir():
        return exact
    alike = [entry for entry in list_folders(parent) if same_name(entry.name) == same_name(name)]
    return alike[0] if len(alike) == 1 else exact


def same_name(name: str) -> str:
    """Equal for names that people take for the same one: without case, accents composed."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _entries(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be read ({error.strerror or error}). Check its permissions.") from error


def _is_image(entry: Path) -> bool:
    return entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".") and entry.is_file()


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
    names = [mask_stem]
    if mask_stem.lower().endswith(MASK_ENDING):
        names.append(mask_stem[: -len(MASK_ENDING)])
    for name in names:
        if name in images:
            return name
    for name in names:
        alike = [stem for stem in images if stem.casefold() == name.casefold()]
        if len(alike) == 1:
            return alike[0]
    return None


def _stem(path: Path) -> str:
    # archives made on macOS hold decomposed accents: the same name, other bytes
    return unicodedata.normalize("NFC", path.stem)
