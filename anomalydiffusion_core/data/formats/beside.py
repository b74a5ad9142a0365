"""Files beside the MVTec layout for other readers: anomalib's arguments, COCO, YOLO, maps of classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ...errors import InputError
from ...files import replacing, write_json
from ..images import image_size
from ..mask_files import read_mask
from ..pairing import MASK_ENDING, list_folders, list_images
from ..splits import listed_names
from .coco_out import OutImage, coco_document
from .described import GOOD
from .yolo_out import data_yaml, yolo_lines

COCO, YOLO, ANOMALIB, CLASSES = "coco", "yolo", "anomalib", "classes"
KINDS = (COCO, YOLO, ANOMALIB, CLASSES)
ANOMALIB_FILE, COCO_FILE, YOLO_FILE = "anomalib_folder.json", "coco_instances.json", "yolo.yaml"
CLASS_FOLDER, CLASS_NAMES = "class_map", "classes.txt"
MOST_CLASSES = 254
"""255 means void in maps of classes."""


class PairFiles(NamedTuple):
    """Files of a pair below a folder, as ``<object>/test/<defect>/...``; normal is None where there is none."""

    object: str
    defect: str
    image: Path
    mask: Path
    normal: Path | None = None


def check_kinds(text: str) -> list[str]:
    """The kinds in a text separated by commas. Raises InputError for an unknown one."""
    kinds = listed_names(text)
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise InputError(f"also: unknown label file '{unknown[0]}'. Choose from: {', '.join(KINDS)}.")
    return kinds


def anomalib_arguments(folder: Path, name: str, normal: Sequence[str] = (f"train/{GOOD}",)) -> dict[str, Any]:
    """Arguments of anomalib's data module ``Folder`` (1.x and 2.x) for a folder in the MVTec layout.

    root is "." for the folder itself: pass the folder's own path instead when working elsewhere. normal: folders of
    normal images.
    """
    defects = [entry.name for entry in list_folders(folder / "test") if entry.name != GOOD and list_images(entry)]
    arguments: dict[str, Any] = {
        "name": name,
        "root": ".",
        "normal_dir": normal[0] if len(normal) == 1 else list(normal),
        "abnormal_dir": [f"test/{defect}" for defect in defects],
        "mask_dir": [f"ground_truth/{defect}" for defect in defects],
    }
    if list_images(folder / "test" / GOOD):
        arguments["normal_test_dir"] = f"test/{GOOD}"
    return {key: value for key, value in arguments.items() if value}


def write_anomalib(folder: Path, name: str, normal: Sequence[str] = (f"train/{GOOD}",)) -> None:
    """Write ``anomalib_folder.json`` into a category's folder."""
    write_json(folder / ANOMALIB_FILE, anomalib_arguments(folder, name, normal))


def write_beside(folder: Path, pairs: Sequence[PairFiles], kinds: Sequence[str]) -> list[str]:
    """Write label files of all pairs below a folder and return what was written, by name.

    COCO: ``coco_instances.json``, file names from the folder, normal images as images without annotations. YOLO: a
    text file beside each image, and ``yolo.yaml``. anomalib: ``anomalib_folder.json`` in each object's folder.
    Classes: ``<object>/class_map/<defect>/<name>.png`` and ``classes.txt``, line 1 for the value 1.

    A file of an earlier call is replaced: these files only repeat what the masks say.
    """
    types = class_names(pairs)
    written = []
    if COCO in kinds:
        write_json(folder / COCO_FILE, coco_document(_out_images(folder, pairs, types), list(types.values()), "pairs"))
        written.append(COCO_FILE)
    if YOLO in kinds:
        _write_yolo(folder, pairs, types)
        written.append(YOLO_FILE)
    if CLASSES in kinds:
        _write_classes(folder, pairs, types)
        written.append(CLASS_NAMES)
    if ANOMALIB in kinds:
        for name in dict.fromkeys(pair.object for pair in pairs):
            own = [pair for pair in pairs if pair.object == name and pair.normal]
            normal = dict.fromkeys(p.normal.parent.relative_to(folder / name).as_posix() for p in own if p.normal)
            write_anomalib(folder / name, name, list(normal))
            written.append(f"{name}/{ANOMALIB_FILE}")
    return written


def class_names(pairs: Sequence[PairFiles]) -> dict[tuple[str, str], str]:
    """(object, defect) -> name of the class, in order: the defect, with its object where there are several."""
    keys = sorted({(pair.object, pair.defect) for pair in pairs})
    several = len({name for name, _ in keys}) > 1
    return {key: f"{key[0]}/{key[1]}" if several else key[1] for key in keys}


def _inside(pair: PairFiles) -> np.ndarray:
    return read_mask(pair.mask)[0].numpy() > 0


def _out_images(folder: Path, pairs: Sequence[PairFiles], types: dict[tuple[str, str], str]) -> Iterator[OutImage]:
    for pair in pairs:
        mask = _inside(pair)
        name = types[pair.object, pair.defect]
        yield OutImage(pair.image.relative_to(folder).as_posix(), (mask.shape[0], mask.shape[1]), {name: mask})
    for normal in dict.fromkeys(pair.normal for pair in pairs):
        if normal:
            yield OutImage(normal.relative_to(folder).as_posix(), image_size(normal), {})


def _write_yolo(folder: Path, pairs: Sequence[PairFiles], types: dict[tuple[str, str], str]) -> None:
    names = list(types.values())
    for pair in pairs:
        lines = yolo_lines({types[pair.object, pair.defect]: _inside(pair)}, names)
        with replacing(pair.image.with_suffix(".txt")) as partial:
            partial.write_text(lines, encoding="utf-8", newline="\n")
    images = [path.parent for pair in pairs for path in (pair.image, pair.normal) if path]
    places = sorted({path.relative_to(folder).as_posix() for path in images})
    with replacing(folder / YOLO_FILE) as partial:
        partial.write_text(data_yaml(names, places, places), encoding="utf-8", newline="\n")


def write_class_map(path: Path, masks: Sequence[tuple[int, np.ndarray]]) -> None:
    """Write a PNG whose pixels hold the numbers of their classes. masks: number and [H, W], later ones on top."""
    values = np.zeros(masks[0][1].shape, np.uint8)
    for number, inside in masks:
        values[inside] = number
    with replacing(path) as partial:
        Image.fromarray(values).save(partial, format="PNG")


def write_class_names(folder: Path, names: Sequence[str]) -> None:
    """Write ``classes.txt``, line 1 for the value 1. Raises InputError for more classes than a map holds."""
    if len(names) > MOST_CLASSES:
        raise InputError(f"also: {len(names)} classes, a map holds {MOST_CLASSES}. Leave classes out.")
    with replacing(folder / CLASS_NAMES) as partial:
        partial.write_text("".join(f"{name}\n" for name in names), encoding="utf-8", newline="\n")


def _write_classes(folder: Path, pairs: Sequence[PairFiles], types: dict[tuple[str, str], str]) -> None:
    write_class_names(folder, list(types.values()))
    numbers = {key: number for number, key in enumerate(types, start=1)}
    for pair in pairs:
        name = f"{pair.mask.stem.removesuffix(MASK_ENDING)}.png"
        path = folder / pair.object / CLASS_FOLDER / pair.defect / name
        write_class_map(path, [(numbers[pair.object, pair.defect], _inside(pair))])
