"""Files beside the MVTec layout for other readers: anomalib's arguments, COCO, YOLO, maps of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...files import write_json
from ..pairing import list_folders, list_images
from .described import GOOD

ANOMALIB = "anomalib_folder.json"


def anomalib_arguments(folder: Path, name: str) -> dict[str, Any]:
    """Arguments of anomalib's data module ``Folder`` (1.x and 2.x) for a folder in the MVTec layout.

    root is "." for the folder itself: pass the folder's own path instead when working elsewhere.
    """
    defects = [entry.name for entry in list_folders(folder / "test") if entry.name != GOOD and list_images(entry)]
    arguments: dict[str, Any] = {
        "name": name,
        "root": ".",
        "normal_dir": f"train/{GOOD}",
        "abnormal_dir": [f"test/{defect}" for defect in defects],
        "mask_dir": [f"ground_truth/{defect}" for defect in defects],
    }
    if list_images(folder / "test" / GOOD):
        arguments["normal_test_dir"] = f"test/{GOOD}"
    return {key: value for key, value in arguments.items() if value}


def write_beside(folder: Path, name: str) -> None:
    """Write what goes with every folder in the MVTec layout."""
    write_json(folder / ANOMALIB, anomalib_arguments(folder, name))
