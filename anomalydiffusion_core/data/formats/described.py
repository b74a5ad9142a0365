"""What a reader found in a folder: normal images, and defect images with their masks, whatever form they have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ...errors import DatasetError, InputError
from ..decoding import turned
from ..mask_files import inspect_mask, read_mask
from .raster import Region, fill

GOOD = "good"
NORMAL_NAMES = frozenset(
    "good ok normal normals no_defect nodefect defect_free defectfree good_images ok_images clean flawless "
    "without_defect anomaly_free free non_defective".split()
)
"""Names, in small letters and with "_", of folders and classes that mean no defect."""
TRAIN_NAMES = frozenset({"train", "training", "trainval"})
TEST_NAMES = frozenset({"test", "testing", "val", "valid", "validation", "eval"})
TRAIN, TEST = "train", "test"


class MaskSource(Protocol):
    """Where the mask of one pair comes from; it is drawn when it is read, so that listing is cheap."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold it: the first one is named in messages."""
        ...

    def read(self) -> Tensor:
        """[1, H, W] float32 of {0, 1}. Raises DatasetError for a file that cannot be read."""
        ...


@dataclass(frozen=True)
class MaskFile:
    """A mask image of its own. values: the labels in it that are the defect, see `inspect_mask`; none: all."""

    path: Path
    values: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """That image."""
        return (self.path,)

    def read(self) -> Tensor:
        """As `inspect_mask`."""
        return inspect_mask(self.path, self.values).mask


@dataclass(frozen=True)
class MaskUnion:
    """Several mask images of one defect image, such as the folders of MVTec LOCO: a pixel of any is defect."""

    files: tuple[Path, ...]

    def read(self) -> Tensor:
        """Raises DatasetError also for sizes that differ."""
        masks = [read_mask(path) for path in self.files]
        for path, mask in zip(self.files, masks, strict=True):
            if mask.shape != masks[0].shape:
                raise DatasetError(f"{path}: has another size than {self.files[0].name}. Export masks of one size.")
        return torch.stack(masks).amax(dim=0)


@dataclass(frozen=True)
class MaskDrawn:
    """Regions of a label file, drawn when they are read.

    size: (height, width) of the image. regions: see `raster.py`; the mask is their union.
    """

    path: Path
    size: tuple[int, int]
    regions: tuple[Region, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """The label file."""
        return (self.path,)

    def read(self) -> Tensor:
        """The union of the regions. Raises DatasetError for regions that do not fit the image."""
        try:
            inside = fill(self.regions, self.size)
        except InputError as error:
            raise DatasetError(f"{self.path}: {error}") from error
        return torch.from_numpy(inside.astype(np.float32))[None]


@dataclass(frozen=True)
class MaskTurned:
    """A mask that was drawn on the pixels as they are stored, of an image that its EXIF tag turns."""

    source: MaskSource
    orientation: int

    @property
    def files(self) -> tuple[Path, ...]:
        """Those of the mask."""
        return self.source.files

    def read(self) -> Tensor:
        """The mask, turned as the image is."""
        return torch.from_numpy(turned(self.source.read()[0].numpy(), self.orientation).copy())[None]


def mask_choice(source: MaskSource | None) -> str:
    """What is read of the files of a mask beside all of it, for records and keys; "" for all."""
    if isinstance(source, MaskTurned):
        return f"{mask_choice(source.source)}|turned {source.orientation}"
    return "|" + "+".join(source.values) if isinstance(source, MaskFile) and source.values else ""


class Labelled(NamedTuple):
    """One defect image of one type. part: "train" or "test" where the source divides its defect images, else ""."""

    name: str
    image: Path
    mask: MaskSource
    part: str = ""


@dataclass
class Described:
    """A category as its folder holds it.

    form: what it is, for reports. normals, test_normals: images without a defect. pairs: those of each type in
    natural order, names unique within a type; one image may be in several types. problems and notices: (type or "",
    text); those of a type matter only where the type is used.
    """

    form: str
    folder: Path
    normals: list[Path] = field(default_factory=list)
    test_normals: list[Path] = field(default_factory=list)
    pairs: dict[str, list[Labelled]] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    notices: list[tuple[str, str]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    @property
    def types(self) -> list[str]:
        """All types, also those without a complete pair."""
        return list(dict.fromkeys([*self.names, *self.pairs]))

    def problem(self, text: str, defect: str = "") -> None:
        """Note what stops the work."""
        self.problems.append((defect, text))

    def notice(self, text: str, defect: str = "") -> None:
        """Note what the user should know."""
        self.notices.append((defect, text))

    def texts(self, noted: Sequence[tuple[str, str]], chosen: Sequence[str]) -> list[str]:
        """The problems or notices that matter when these types are used."""
        return [text for defect, text in noted if not defect or defect in chosen]


def plain_name(name: str) -> str:
    """A name of a folder or class in small letters, with "_" for blanks and hyphens."""
    return name.strip().casefold().replace(" ", "_").replace("-", "_")


def is_normal(name: str) -> bool:
    """Whether a name of a folder or class means no defect."""
    return plain_name(name) in NORMAL_NAMES


def part_of(name: str) -> str:
    """What a name of a folder or file says about the part that it holds: "train", "test" or ""."""
    words = set(plain_name(name).replace(".", "_").split("_"))
    if words & TRAIN_NAMES:
        return TRAIN
    return TEST if words & TEST_NAMES else ""
