"""Images of a data set to work with or to look at: normal images to put defects on, and a contact sheet."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..devices import check_images_fit
from ..errors import InputError
from ..figures import contact_sheet, outlined
from ..options import LARGEST_SEED, Settings, option
from .formats.described import GOOD
from .images import image_size
from .mask_files import read_mask
from .mvtec import AnomalyDataset, load_images, load_pairs
from .pairing import list_images

SHEET_IMAGES = 6
SHEET_CELL = 160
_PLANES = 6
"""Values of a pixel of a picked image: three, once more for the host's order of channels."""


@dataclass(frozen=True)
class NormalSettings(Settings):
    """Which normal images are picked."""

    count: int = option(8, "Number of images.", min=1, max=10000)
    seed: int = option(0, "Another seed picks other images.", min=0, max=LARGEST_SEED)
    size: int = option(
        256, "Side in pixels of the square the images are resized to. 0 keeps their own size.", min=0, max=8192, step=8
    )


def picked_normals(dataset: AnomalyDataset, settings: NormalSettings, key: str = "") -> list[Path]:
    """``count`` normal training images; each is taken once before any is taken again.

    key: a defect type, each of which gets images of its own.
    """
    generator = random.Random(f"{settings.seed}|{key}")
    drawn: list[Path] = []
    while len(drawn) < settings.count:
        drawn += generator.sample(list(dataset.normals), len(dataset.normals))
    return drawn[: settings.count]


def pick_normals(dataset: AnomalyDataset, settings: NormalSettings, key: str = "") -> Tensor:
    """Those of ``picked_normals`` as [count, 3, H, W] in [0, 1]. Raises InputError when they do not fit the memory."""
    width, height = (settings.size, settings.size) if settings.size else image_size(dataset.normals[0])
    check_images_fit("count", settings.count, (height, width), _PLANES)
    return load_images(picked_normals(dataset, settings, key), settings.size or None, dataset.bits)


def dataset_sheet(dataset: AnomalyDataset) -> Tensor:
    """Some normal images, and some training images of each type with their masks outlined, as one image [3, H, W].

    All keep their aspect.
    """
    normals = dataset.normals[:SHEET_IMAGES]
    rows: list[list[Tensor | None]] = [[load_images([path], _fitting(path), dataset.bits)[0] for path in normals]]
    for kind in dataset.types:
        pairs = [load_pairs([pair], _fitting(pair.image_path)) for pair in kind.train[:SHEET_IMAGES]]
        rows.append([outlined(image[0], mask[0]) for image, mask in pairs])
    return contact_sheet(rows, row_titles=[GOOD, *(kind.defect for kind in dataset.types)], cell=SHEET_CELL)


def _fitting(path: Path) -> tuple[int, int]:
    """(height, width) of an image that fits into a cell of the sheet."""
    height, width = image_size(path)
    scale = SHEET_CELL / max(height, width)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def masks_in(folder: Path, key: str, count: int | None) -> Tensor:
    """``count`` masks [count, 1, H, W] of {0, 1} from the image files in a folder, or each once for None.

    They are read from ``<folder>/<object>/<defect>``, ``<folder>/<defect>`` or ``folder``, the first that exists.

    They are taken in natural order, and again in turn when there are fewer. Raises InputError for no masks, an empty
    one, or several sizes.
    """
    own = next((path for path in (folder / key, folder / key.partition("/")[2]) if path.is_dir()), folder)
    paths = list_images(own)
    if not paths:
        raise InputError(f"masks: {folder} holds no masks of {key}. Give a folder of mask images.")
    masks = [read_mask(path) for path in paths[:count]]
    if len({mask.shape for mask in masks}) > 1:
        raise InputError(f"masks: those of {key} in {folder} have several sizes. Give masks of one size.")
    empty = [path.name for path, mask in zip(paths, masks, strict=False) if not mask.any()]
    if empty:
        raise InputError(f"masks: {', '.join(empty)} in {folder} is empty. Remove it.")
    return torch.stack([masks[number % len(masks)] for number in range(count or len(masks))])
