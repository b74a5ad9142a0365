"""What was learned from which files, and whether a test image is among them.

Every image that something is learned from leaves a mark: the hash of its file and its look, 16 x 16 grey values
without their mean. Bundles, folders of pairs and results carry these marks with them. A test image is known by either:
the hash finds the same file under any name; the look finds it again after another compression, size, brightness or
contrast. Looks were compared on four sets of real parts (bottles, tiles, cookies, ball screws, 458 images): the
nearest two different images of a set are 0.37 grey levels apart, copies at most 0.20 (JPEG quality 50, half size,
noise). Mirrored and rotated copies are not recognised.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DatasetError, InputError
from ..files import content_key, file_digest, write_json
from ..plain_json import read_json
from .images import read_image
from .mvtec import AnomalyDataset

SIDE = 16
SAME_LOOK = 0.25
"""Mean difference in grey levels of 255, after fitting the contrast, below which two images are one."""
GAINS = (0.8, 1.25)
"""Contrast of a copy relative to its original."""
PLAIN = 1.0
"""Mean deviation in grey levels of an image that shows too little to be recognised."""
SOURCES = "learned_from"
"""Entry of metadata, records and lines of a manifest; and the folder of these files in a folder of pairs."""
SHOWN = 20


@dataclass(frozen=True)
class Mark:
    """What an image is recognised by. digest: begin of its file's SHA-256, "" for none. look: base64, "" for none."""

    digest: str = ""
    look: str = ""

    @classmethod
    def of_file(cls, path: Path, bits: int | None = None) -> Mark:
        """Raises DatasetError for a file that cannot be read."""
        return cls(file_digest(path)[:16], look_of(read_image(path, bits)))

    @property
    def plain(self) -> bool:
        """Whether the image shows too little to be recognised by anything."""
        return bool(self.look) and self.values() is None

    def values(self) -> NDArray | None:
        """The look as [256], None for none and where the image is too plain to be recognised."""
        if not self.look:
            return None
        found = np.frombuffer(base64.b64decode(self.look), np.float16).astype(np.float32)
        return found if len(found) == SIDE**2 and float(np.abs(found).mean()) >= PLAIN else None


Marks = Mapping[str, Mark]
"""Name of an image, as <object>/<path below it>, to its mark."""


def look_of(image: Tensor) -> str:
    """The look of an image [3, H, W] in [0, 1]."""
    grey = (image.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=0)[None, None] * 255
    small = F.interpolate(grey, size=(SIDE, SIDE), mode="bilinear", antialias=True)[0, 0]
    return base64.b64encode((small - small.mean()).numpy().astype(np.float16).tobytes()).decode()


def file_marks(dataset: AnomalyDataset, paths: Iterable[Path]) -> dict[str, Mark]:
    """Marks of images of a data set."""
    base = dataset.folder

    def name(path: Path) -> str:
        inside = path.relative_to(base) if path.is_relative_to(base) else Path(path.name)
        return f"{dataset.object}/{inside.as_posix()}"

    return {name(path): Mark.of_file(path, dataset.bits) for path in paths}


def training_marks(dataset: AnomalyDataset, keys: Sequence[str] | None = None) -> dict[str, Mark]:
    """Marks of the training pairs of a data set, of some types or of all."""
    kinds = [kind for kind in dataset.types if keys is None or kind.key in keys]
    return file_marks(dataset, [pair.image_path for kind in kinds for pair in kind.train])


def held_out_marks(dataset: AnomalyDataset, normals: bool = True) -> dict[str, Mark]:
    """Marks of everything that is tested on."""
    tests = [pair.image_path for kind in dataset.types for pair in kind.test]
    return file_marks(dataset, [*tests, *(dataset.test_normals if normals else ())])


def plain_marks(marks: Marks) -> dict[str, dict[str, str]]:
    """For JSON."""
    return {name: {"sha256": mark.digest, "look": mark.look} for name, mark in sorted(marks.items())}


def read_marks(stored: Any) -> dict[str, Mark]:
    """Marks from JSON; what is no mark is left out."""
    if not isinstance(stored, Mapping):
        return {}
    return {
        str(name): Mark(str(entry.get("sha256") or ""), str(entry.get("look") or ""))
        for name, entry in stored.items()
        if isinstance(entry, Mapping)
    }


def marks_of(metadata: Mapping[str, Any]) -> dict[str, Mark]:
    """What a bundle or LoRA was learned from, by its metadata; older ones have hashes alone."""
    found = read_marks(metadata.get(SOURCES))
    for entry in ("training_files", "good_pictures"):
        listed = metadata.get(entry)
        for name, digest in listed.items() if isinstance(listed, Mapping) else ():
            found.setdefault(str(name), Mark(str(digest)))
    return found


def write_sources(folder: Path, marks: Marks) -> str:
    """Keep marks in a folder of pairs, once for the same ones; returns the name that lines of its manifest give."""
    plain = plain_marks(marks)
    name = content_key(plain)
    path = folder / SOURCES / f"{name}.json"
    if not path.is_file():
        write_json(path, plain)
    return name


def read_sources(folder: Path, names: Iterable[str]) -> dict[str, Mark]:
    """The marks that lines of a manifest in this folder name. Raises DatasetError for a missing or damaged file."""
    found: dict[str, Mark] = {}
    for name in sorted(set(names)):
        path = folder / SOURCES / f"{Path(name).name}.json"
        try:
            found |= read_marks(read_json(path, "pairs folder"))
        except InputError as error:
            raise DatasetError(
                f"{path}: says what the pairs were learned from, and cannot be read ({error}). Copy the folder whole."
            ) from error
    return found


def folder_sources(folder: Path) -> dict[str, Mark]:
    """All marks that are kept in a folder, whatever uses them: of masks, for example."""
    return read_sources(folder, (path.stem for path in (folder / SOURCES).glob("*.json")))


@dataclass(frozen=True)
class Overlap:
    """A test image that something was learned from. how: "the same file" or "the same image"."""

    test: str
    source: str
    how: str

    def describe(self) -> str:
        """As one line."""
        return f"{self.test} is {self.how} as {self.source}" if self.source != self.test else f"{self.test}"


def overlaps(sources: Marks, tests: Marks) -> list[Overlap]:
    """The test images that are among the sources, each once, in the order of ``tests``."""
    # A plain image is no evidence: two empty ones of different parts may be the same file.
    by_digest = {mark.digest: name for name, mark in sources.items() if mark.digest and not mark.plain}
    looks = [(name, values) for name, mark in sources.items() if (values := mark.values()) is not None]
    stack = np.stack([values for _, values in looks]) if looks else np.zeros((0, SIDE**2), np.float32)
    found = []
    for name, mark in tests.items():
        if mark.digest and mark.digest in by_digest:
            found.append(Overlap(name, by_digest[mark.digest], "the same file"))
            continue
        values = mark.values()
        if values is None or not len(stack):
            continue
        distances = _distances(stack, values)
        nearest = int(distances.argmin())
        if distances[nearest] < SAME_LOOK:
            found.append(Overlap(name, looks[nearest][0], "the same image"))
    return found


def _distances(looks: NDArray, look: NDArray) -> NDArray:
    """Mean difference of each look [N, 256] to one, after its contrast was fitted."""
    gains = (looks @ look / np.square(looks).sum(axis=1)).clip(*GAINS)
    return np.abs(looks * gains[:, None] - look).mean(axis=1)
