"""VisA as published: ``Data/Images/{Normal,Anomaly}`` and ``Data/Masks/Anomaly`` of each category."""

from __future__ import annotations

import csv
from pathlib import Path

from ..pairing import list_images, match_files
from .assembling import add_normals
from .described import Described, Labelled, MaskFile, is_normal, part_of

FORM = "VisA"
LABELS = "image_anno.csv"
SPLIT = ("split_csv", "1cls.csv")
COMBINED, UNNAMED = "combined", "anomaly"


def looks_visa(folder: Path) -> bool:
    """Whether the folders are those of VisA."""
    return (folder / "Data" / "Images" / "Anomaly").is_dir() and (folder / "Data" / "Masks").is_dir()


def describe_visa(folder: Path) -> Described:
    """Types from ``image_anno.csv``; an image with several labels is of the type "combined", as MVTec AD calls it.

    Normal images are divided as ``split_csv/1cls.csv`` beside the category says, where it is there.
    """
    found = Described(FORM, folder)
    data = folder / "Data"
    parts = _column(folder.parent.joinpath(*SPLIT), "split")
    normals = list_images(data / "Images" / "Normal")
    add_normals(found, [(path, part_of(parts.get(_tail(path), ""))) for path in normals])
    matched = match_files(list_images(data / "Images" / "Anomaly"), list_images(data / "Masks" / "Anomaly"))
    for text in matched.problems:
        found.problem(text)
    labels = _column(folder / LABELS, "label")
    for name, image, mask in matched.pairs:
        own = [label.strip() for label in labels.get(_tail(image), UNNAMED).split(",") if label.strip()]
        defect = own[0] if len(own) == 1 else COMBINED
        if is_normal(defect):
            found.problem(f"{image}: {LABELS} calls it normal, but it has a mask. Correct one of the two.")
            continue
        found.pairs.setdefault(defect, []).append(Labelled(name, image, MaskFile(mask)))
    found.pairs = dict(sorted(found.pairs.items()))
    return found


def _tail(path: Path) -> str:
    """What identifies an image in the tables: its folder and name."""
    return "/".join(path.parts[-2:])


def _column(path: Path, column: str) -> dict[str, str]:
    """Folder and name of an image -> the value of a column; nothing without the table."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("image") and row.get(column)]
    return {"/".join(Path(row["image"]).parts[-2:]): row[column] for row in rows}
