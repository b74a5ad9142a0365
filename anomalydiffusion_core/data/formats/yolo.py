"""YOLO segmentation: one text file for each image, a line ``class x y x y ...`` for each defect, in shares of 1."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ...errors import DatasetError
from ..images import image_size
from .assembling import Annotated, assemble, drawn_masks, skipped
from .described import TEST, TRAIN, Described, part_of
from .listing import Listing
from .raster import Region, Rings

FORM = "YOLO segmentation"
IMAGES, LABELS = "images", "labels"
NAME_FILES = ("classes.txt", "obj.names", "names.txt")
PARTS = {"train": TRAIN, "val": TEST, "test": TEST}
TOLERANCE = 0.01


def find_config(listing: Listing) -> tuple[Path, Mapping[str, Any]] | None:
    """The YAML file of a data set and its content: it names classes and folders."""
    for path in listing.of(".yaml", ".yml"):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue
        if isinstance(content, dict) and isinstance(content.get("names"), list | dict):
            return path, content
    return None


def label_files(listing: Listing) -> dict[Path, Path]:
    """Image -> its label file: ``labels`` in place of ``images`` in the path, or beside the image."""
    texts = set(listing.of(".txt"))
    found = {}
    for image in listing.images:
        parts = list(image.relative_to(listing.folder).parts)
        swapped = [LABELS if part == IMAGES else part for part in parts]
        for candidate in (listing.folder.joinpath(*swapped), image):
            if candidate.with_suffix(".txt") in texts:
                found[image] = candidate.with_suffix(".txt")
                break
    return found


def looks_yolo(listing: Listing) -> bool:
    """Whether there is a YAML file of a data set, a folder of labels, or text files of numbers beside images."""
    config = find_config(listing)
    if config and set(config[1]) & set(PARTS):
        return True
    for image, path in label_files(listing).items():
        rows = [line.split() for line in listing.lines(path) if line]
        if rows:
            # In a folder of labels also those with mistakes, which are then named.
            plain = all(row[0].isdigit() and _numbers(row[1:]) is not None for row in rows)
            return all(len(row) > 4 for row in rows) and (plain or path.parent != image.parent)
    return False


def describe_yolo(listing: Listing) -> Described:
    """Each class is a type; an image without a label file, or with an empty one, is normal, as YOLO means it."""
    found = Described(FORM, listing.folder)
    config = find_config(listing)
    names = _names(listing, config[1] if config else {})
    folders = _part_folders(listing, *config) if config else {}
    labels = label_files(listing)
    annotated, boxes, bare = [], 0, 0
    for image in listing.images:
        label = labels.get(image)
        regions: dict[str, list[Region]] = {}
        rows = [line.split() for line in listing.lines(label) if line] if label else []
        try:
            own_boxes = 0
            height, width = image_size(image)
            for number, row in enumerate(rows, start=1):
                region = _region(row, width, height, f"{label} line {number}")
                own_boxes += region is None
                if region:
                    regions.setdefault(_class(int(row[0]), names, f"{label} line {number}"), []).append(region)
        except DatasetError as error:
            found.problem(str(error))
            continue
        boxes += own_boxes
        masks = drawn_masks(found, label or image, image, regions)
        if masks is None or (own_boxes and not masks):
            continue
        bare += label is None
        annotated.append(Annotated(image, masks, _part(image, listing, folders)))
    if boxes:
        text = f"{boxes} labels are boxes (class x y width height); a mask is needed. Export segmentation labels."
        (found.notice if any(one.masks for one in annotated) else found.problem)(text)
    if not names and any(one.masks for one in annotated):
        found.notice(
            "no names of the classes: types are called class 0 and so on; a data.yaml or classes.txt names them"
        )
    if bare:
        found.notice(f"{bare} images without a label file are read as normal images, as YOLO means them")
    folders_of_labels = {path.parent for path in labels.values()}
    lone = [path for path in listing.of(".txt") if path.parent in folders_of_labels and path not in labels.values()]
    skipped(found, "labels without image", [path for path in lone if _is_label(path, listing)], listing.relative)
    return assemble(found, annotated, listing)


def _is_label(path: Path, listing: Listing) -> bool:
    rows = [line.split() for line in listing.lines(path) if line]
    return bool(rows) and all(_numbers(row) is not None for row in rows)


def _class(number: int, names: Mapping[int, str], where: str) -> str:
    if names and number not in names:
        raise DatasetError(
            f"{where}: class {number} has no name, the names are those of {min(names)} to {max(names)}."
        )
    return names.get(number, f"class {number}")


def _names(listing: Listing, config: Mapping[str, Any]) -> dict[int, str]:
    names = config.get("names")
    if isinstance(names, Mapping):
        return {int(number): str(name) for number, name in names.items()}
    if isinstance(names, list):
        return {number: str(name) for number, name in enumerate(names)}
    for path in listing.of(".txt", ".names"):
        if path.name in NAME_FILES:
            return dict(enumerate(line for line in listing.lines(path) if line))
    return {}


def _part_folders(listing: Listing, path: Path, config: Mapping[str, Any]) -> dict[Path, str]:
    """Folder -> part, as the YAML file says; folders of other machines are left out."""
    found: dict[Path, str] = {}
    bases = [path.parent / str(config.get("path") or ""), path.parent, listing.folder]
    for key, part in PARTS.items():
        entries = config.get(key) or []
        for entry in [entries] if isinstance(entries, str) else entries:
            for base in bases:
                folder = Path(os.path.normpath(base / str(entry)))
                if folder.is_dir():
                    found.setdefault(folder, part)
    return found


def _part(image: Path, listing: Listing, folders: Mapping[Path, str]) -> str:
    named = next((folders[parent] for parent in image.parents if parent in folders), "")
    parts = Path(listing.relative(image)).parts[:-1]
    return named or next((part for name in parts if (part := part_of(name))), "")


def _region(row: list[str], width: int, height: int, where: str) -> Region | None:
    """The polygon of one line, None for a box."""
    values = _numbers(row[1:])
    if not row[0].isdigit() or values is None:
        raise DatasetError(f"{where}: not numbers. A line is: class x y x y x y ...")
    if len(values) == 4:
        return None
    if len(values) < 6 or len(values) % 2:
        raise DatasetError(f"{where}: {len(values)} numbers after the class. Give at least 3 points x y.")
    if values.min() < -TOLERANCE or values.max() > 1 + TOLERANCE:
        raise DatasetError(f"{where}: {values.max():g} is not a share of the image. Divide by its width and height.")
    return Rings((values.reshape(-1, 2) * (width, height),))


def _numbers(texts: list[str]) -> np.ndarray | None:
    try:
        values = np.array([float(text) for text in texts])
    except ValueError:
        return None
    return values if np.isfinite(values).all() else None
