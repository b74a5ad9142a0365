"""COCO instances: one JSON file for all images of a part, with polygons or run lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from .assembling import Annotated, assemble, drawn_masks, polygon, skipped
from .described import Described, part_of
from .listing import Listing
from .raster import Region, Runs, unpacked

FORM = "COCO"
IMAGE_FOLDERS = ("", "images", "JPEGImages", "data")


def is_coco(content: Any) -> bool:
    """Whether parsed JSON holds COCO instances."""
    return isinstance(content, dict) and all(isinstance(content.get(k), list) for k in ("images", "annotations"))


def describe_coco(listing: Listing) -> Described:
    """Each category is a type; images without annotations are normal. Several files are parts of one data set.

    Polygons of one annotation are its parts, as COCO means them; holes are kept in run lengths.
    """
    found = Described(FORM, listing.folder)
    files = [path for path in listing.of(".json") if is_coco(listing.json(path))]
    annotated: dict[Path, Annotated] = {}
    boxes = 0
    for path in files:
        content = listing.json(path)
        try:
            names = {entry["id"]: str(entry["name"]).strip() for entry in content.get("categories") or []}
            of_image: dict[Any, list[dict[str, Any]]] = {}
            for entry in content["annotations"]:
                of_image.setdefault(entry["image_id"], []).append(entry)
            images = [(entry["id"], str(entry["file_name"]), _stated(entry)) for entry in content["images"]]
            strangers = of_image.keys() - {identity for identity, *_ in images}
        except (KeyError, TypeError, ValueError) as error:
            found.problem(f"{path}: an entry of COCO lacks {error}. Export it again.")
            continue
        if strangers:
            found.problem(
                f"{path}: annotations of image_id {', '.join(map(str, strangers))}, which is not in its images."
            )
        for key in ("images", "categories"):
            for identity in _twice([entry["id"] for entry in content.get(key) or []]):
                found.problem(f"{path}: two of its {key} have the id {identity}. Export it again.")
        part = _part(path, listing, len(files))
        for identity, name, stated in images:
            image = listing.find_image(name, _near(path, part, listing))
            if image is None:
                found.problem(f"{path}: its image '{name}' is not in {listing.folder}, or there several times.")
                continue
            if image in annotated:
                found.problem(f"{path}: the image '{name}' is listed twice. Keep one entry.")
                continue
            regions: dict[str, list[Region]] = {}
            for entry in of_image.get(identity, []):
                try:
                    region = _region(entry.get("segmentation"))
                except (InputError, KeyError, TypeError, ValueError) as error:
                    found.problem(f"{path}: annotation {entry.get('id')} of {name}: {error}")
                    continue
                category = entry.get("category_id")
                if region and category not in names:
                    found.problem(
                        f"{path}: annotation {entry.get('id')} of {name}: no category has the id {category}."
                    )
                elif region:
                    regions.setdefault(names[category], []).extend(region)
                else:
                    boxes += 1
            masks = drawn_masks(found, path, image, regions, stated)
            if masks is not None:
                boxes_only = not masks and of_image.get(identity)
                annotated[image] = Annotated(image, masks, "box" if boxes_only else part)
    if boxes:
        text = f"{boxes} annotations are boxes without segmentation; a mask is needed. Draw polygons for them."
        (found.notice if any(one.masks for one in annotated.values()) else found.problem)(text)
    others = [image for image in listing.images if image not in annotated]
    skipped(found, "not listed in the COCO file", others, listing.relative)
    return assemble(found, [one for one in annotated.values() if one.part != "box"], listing)


def _part(path: Path, listing: Listing, files: int) -> str:
    """What the names of a file and its folder say; nothing for a single file."""
    if files < 2:
        return ""
    return part_of(path.stem) or part_of(path.parent.name)


def _twice(identities: Sequence[Any]) -> list[Any]:
    counts = Counter(identities)
    return [identity for identity, count in counts.items() if count > 1]


def _near(path: Path, part: str, listing: Listing) -> list[Path]:
    bases = [path.parent, listing.folder, path.parent.parent]
    return [base / name for base in dict.fromkeys(bases) for name in IMAGE_FOLDERS]


def _stated(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    return (int(height), int(width)) if height and width else None


def _region(segmentation: Any) -> Sequence[Region]:
    """Regions of one annotation, none where it only has a box."""
    if isinstance(segmentation, Mapping):
        counts, size = segmentation["counts"], segmentation["size"]
        lengths = unpacked(counts) if isinstance(counts, str) else [int(count) for count in counts]
        return [Runs(tuple(lengths), (int(size[0]), int(size[1])))]
    rings: list[Region] = []
    for corners in segmentation or []:
        numbers = np.asarray(corners, dtype=np.float64)
        if numbers.ndim != 1 or len(numbers) < 6 or len(numbers) % 2 or not np.isfinite(numbers).all():
            raise InputError("a polygon needs at least 3 points x, y.")
        rings += polygon(numbers.reshape(-1, 2))
    return rings
