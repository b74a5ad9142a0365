"""Pascal VOC: class masks in ``SegmentationClass``, in palette or colour, named by CVAT's ``labelmap.txt``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ...errors import DatasetError
from .assembling import Annotated, assemble, skipped
from .described import TEST, TRAIN, Described, MaskSource, is_normal
from .listing import Listing

FORM = "Pascal VOC"
MASKS, IMAGES, LABELMAP, CLASSES = "SegmentationClass", "JPEGImages", "labelmap.txt", "classes.txt"
BACKGROUND = (0, 0, 0)
VOID = (224, 224, 192)
VOID_INDEX = 255
PART_FILES = {"train": TRAIN, "val": TEST, "test": TEST}


@dataclass(frozen=True)
class ClassMask:
    """One class of a mask of classes: pixels of one index or of one colour."""

    path: Path
    value: int | tuple[int, int, int]

    @property
    def files(self) -> tuple[Path, ...]:
        """The mask of all classes."""
        return (self.path,)

    def read(self) -> Tensor:
        """[1, H, W] float32 of {0, 1}. Raises DatasetError for a file that cannot be read."""
        samples = read_classes(self.path, isinstance(self.value, tuple))
        inside = (samples == np.array(self.value)).all(axis=2) if samples.ndim == 3 else samples == self.value
        return torch.from_numpy(inside.astype(np.float32))[None]


def read_classes(path: Path, colours: bool) -> np.ndarray:
    """The indices [H, W] of a mask of classes, or its colours [H, W, 3]. Raises DatasetError."""
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            return np.asarray(upright.convert("RGB") if colours else upright)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path}: cannot be decoded ({error}). Replace or remove the file.") from error


def values_of(path: Path, colours: bool) -> list[int | tuple[int, int, int]]:
    """The classes in a mask, without background and void."""
    samples = read_classes(path, colours)
    if samples.ndim == 3:
        found = {tuple(int(n) for n in row) for row in np.unique(samples.reshape(-1, samples.shape[2])[:, :3], axis=0)}
        return sorted(found - {BACKGROUND, VOID})  # type: ignore[arg-type]
    return [int(value) for value in np.unique(samples) if value not in (0, VOID_INDEX)]


def looks_voc(listing: Listing) -> bool:
    """Whether there is a folder of VOC."""
    return any((listing.folder / name).is_dir() for name in (MASKS, IMAGES))


def describe_voc(listing: Listing) -> Described:
    """Each class is a type; images without a mask, or with a mask of background alone, are normal."""
    folder = listing.folder
    found = Described(FORM, folder)
    masks = {path.stem: path for path in listing.images if path.parent == folder / MASKS}
    if not masks:
        found.problem(f"{folder / MASKS}: holds no masks. VOC's boxes are not enough: export segmentation masks.")
        return found
    names = _colour_names(listing)
    parts = _parts(listing)
    own = [path for path in listing.images if IMAGES in path.parts]
    images = own or [path for path in listing.images if not path.parent.name.startswith("Segmentation")]
    annotated = []
    for image in images:
        mask = masks.pop(image.stem, None)
        try:
            classes = _classes(mask, names) if mask else {}
        except DatasetError as error:
            found.problem(str(error))
            continue
        annotated.append(Annotated(image, classes, parts.get(image.stem, "")))
    for path in masks.values():
        found.problem(f"{path}: mask without image. Add the image of this name to {IMAGES} or remove the mask.")
    bare = sum(not one.masks for one in annotated)
    if bare:
        found.notice(f"{bare} images without a mask, or with an empty one, are read as normal images")
    files = set(images)
    others = [path for path in listing.images if path not in files and not path.parent.name.startswith("Segm")]
    skipped(found, f"not in {IMAGES}", others, listing.relative)
    return assemble(found, annotated, listing)


def _classes(mask: Path, names: dict[tuple[int, int, int], str]) -> dict[str, MaskSource]:
    """Class name -> its mask, of one file."""
    with Image.open(mask) as image:
        indexed = image.mode in ("P", "L", "I", "I;16", "1")
    if names:
        values = values_of(mask, colours=True)
        unknown = [value for value in values if value not in names]
        if unknown:
            raise DatasetError(f"{mask}: the colour {unknown[0]} is not in {LABELMAP}. Add it there.")
        return {names[v]: ClassMask(mask, v) for v in values if not is_normal(names[v])}  # type: ignore[index]
    found = values_of(mask, colours=not indexed)
    return {
        f"class {v}" if isinstance(v, int) else f"colour {'-'.join(map(str, v))}": ClassMask(mask, v) for v in found
    }


def _colour_names(listing: Listing) -> dict[tuple[int, int, int], str]:
    """Lines ``name:r,g,b:parts:actions`` of CVAT."""
    path = listing.folder / LABELMAP
    names: dict[tuple[int, int, int], str] = {}
    for line in listing.lines(path) if path.is_file() else ():
        name, _, rest = line.partition(":")
        numbers = rest.split(":")[0].split(",")
        if line.startswith("#") or len(numbers) != 3:
            continue
        colour = tuple(int(number) for number in numbers)
        if colour not in (BACKGROUND, VOID):
            names[colour] = name.strip()  # type: ignore[index]
    return names


def _parts(listing: Listing) -> dict[str, str]:
    """Name of an image -> part, of ``ImageSets/Segmentation``."""
    found: dict[str, str] = {}
    for name, part in PART_FILES.items():
        path = listing.folder / "ImageSets" / "Segmentation" / f"{name}.txt"
        for line in listing.lines(path) if path.is_file() else ():
            if line:
                found.setdefault(Path(line.split()[0]).name, part)
    return found
