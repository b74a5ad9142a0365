"""Folders of generated images of any method, with masks or without.

Classification and image quality need no masks, and several generators give none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DatasetError
from .formats.described import GOOD
from .pairing import list_folders, list_images
from .pairs import MANIFEST, load_exported, recorded_method
from .provenance import SOURCES, Mark, read_sources

_NO_TYPE = {GOOD, "train", "test", "ground_truth", "normal", "mask"}


@dataclass(frozen=True)
class GeneratedImage:
    """A generated image; `mask` and `normal` where there are such files, `record` its line of a manifest."""

    object: str
    defect: str
    image: Path
    mask: Path | None = None
    normal: Path | None = None
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bits(self) -> int | None:
        """Depth of its samples, see `read_image`; None for 8 bits and where it is not known."""
        return int(self.record["bits"]) if self.record.get("bits") else None


def load_generated(folder: Path) -> list[GeneratedImage]:
    """Find the generated images of a folder.

    What `load_exported` reads is taken with its masks and its manifest. Where no mask exists at all, the images of
    `[<object>/][test/]<defect>` are taken without.

    Raises:
        DatasetError: no folder, no images, or what `load_exported` refuses.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"pairs folder: {folder} does not exist. Give a folder of generated images.")
    if (folder / MANIFEST).is_file() or _has_masks(folder):
        return [
            GeneratedImage(pair.object, pair.defect, pair.image, pair.mask, pair.normal, pair.record)
            for pair in load_exported(folder)
        ]
    found = []
    for base in (folder, *(path for path in list_folders(folder) if path.name not in _NO_TYPE)):
        for kind in (*list_folders(base / "test"), *list_folders(base)):
            if kind.name not in _NO_TYPE:
                found += [GeneratedImage(base.name, kind.name, path) for path in list_images(kind)]
    if not found:
        raise DatasetError(
            f"pairs folder: {folder} holds no images. Give a folder with test/<defect> or <defect> below it."
        )
    return found


def of_object(images: Sequence[GeneratedImage], object: str) -> list[GeneratedImage]:
    """The images of one object. Folders of other methods often leave the object out: then all are of it.

    Raises DatasetError where a manifest says that all are of other objects.
    """
    own = [image for image in images if image.object == object]
    if own:
        return own
    named = sorted({image.object for image in images if image.record})
    if named:
        raise DatasetError(
            f"pairs folder: holds pairs of {', '.join(named)}, none of {object}. Choose another folder."
        )
    return list(images)


def load_folders(folders: Sequence[Path], object: str, method: str = "") -> tuple[list[GeneratedImage], str]:
    """The images of one object in all folders, and their method: `method`, or what the folders name.

    A folder whose manifest names no method counts by its own name. Raises DatasetError as `load_generated` and
    `of_object`.
    """
    found = {path: load_generated(path) for path in folders}
    names = [recorded_method([one.record for one in images]) or path.name for path, images in found.items()]
    images = [image for part in found.values() for image in of_object(part, object)]
    return images, method.strip() or " + ".join(dict.fromkeys(names))


def generated_marks(folders: Sequence[Path], object: str) -> dict[str, Mark]:
    """Marks of the images of one object in all folders, and of what they were learned from."""
    found: dict[str, Mark] = {}
    for folder in folders:
        images = of_object(load_generated(folder), object)
        found |= read_sources(folder, [str(one.record[SOURCES]) for one in images if one.record.get(SOURCES)])
        found |= {
            f"{folder.name}/{one.image.relative_to(folder).as_posix()}": Mark.of_file(one.image) for one in images
        }
    return found


def _has_masks(folder: Path) -> bool:
    for base in (folder, *list_folders(folder)):
        if (base / "ground_truth").is_dir() or any((kind / "mask").is_dir() for kind in list_folders(base)):
            return True
    return False
