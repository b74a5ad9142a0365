"""YOLO segmentation labels written: a line for each connected part, its holes joined to it by cuts of no width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import yaml

from .tracing import keyholed, parts_of
from .yolo import IMAGES, LABELS


def yolo_lines(masks: Mapping[str, np.ndarray], types: Sequence[str]) -> str:
    """The label file of one image: ``class x y x y ...`` in shares of its width and height; classes from 0."""
    lines = []
    for name, mask in masks.items():
        height, width = mask.shape
        for part in parts_of(mask, diagonal=False):
            shares = keyholed(part) / (width, height)
            lines.append(f"{list(types).index(name)} " + " ".join(f"{value:.7g}" for value in shares.ravel()))
    return "".join(f"{line}\n" for line in lines)


def label_path(image: str) -> str:
    """Where YOLO looks for the labels of ``images/...``."""
    parts = [LABELS if part == IMAGES else part for part in PurePosixPath(image).parts]
    return PurePosixPath(*parts).with_suffix(".txt").as_posix()


def data_yaml(types: Sequence[str], train: str | list[str], val: str | list[str]) -> str:
    """The file that names a data set's folders, relative to itself, and its classes."""
    content: dict[str, Any] = {"path": ".", "train": train, "val": val, "names": dict(enumerate(types))}
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
