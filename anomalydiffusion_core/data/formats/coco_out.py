"""COCO instances written: an annotation for each connected part of a mask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .raster import packed, runs_of
from .tracing import Part, parts_of


class OutImage(NamedTuple):
    """An image as label files list it. file: relative, with "/". masks: type -> [H, W] of bool; none when normal."""

    file: str
    size: tuple[int, int]
    masks: Mapping[str, np.ndarray]


def coco_document(images: Iterable[OutImage], types: Sequence[str], about: str) -> dict[str, Any]:
    """The content of a COCO file. Categories are numbered from 1 in the order of types.

    Parts that touch at corners are one annotation. A part without holes is polygons along the edges of its pixels;
    one with holes is run lengths, which COCO's polygons cannot hold. Both draw exactly the mask.
    """
    numbers = {name: number for number, name in enumerate(types, start=1)}
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in images:
        height, width = image.size
        listed.append({"id": len(listed) + 1, "file_name": image.file, "height": height, "width": width})
        for name, mask in image.masks.items():
            for part in parts_of(mask):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": len(listed),
                        "category_id": numbers[name],
                        "segmentation": segmentation(part),
                        "area": part.area,
                        "bbox": list(part.bounds),
                        "iscrowd": 0,
                    }
                )
    return {
        "info": {"description": about, "version": "1.0"},
        "images": listed,
        "annotations": annotations,
        "categories": [{"id": number, "name": name, "supercategory": "defect"} for name, number in numbers.items()],
    }


def segmentation(part: Part) -> list[list[float]] | dict[str, Any]:
    """Polygons of a part, or run lengths where it has holes."""
    if not part.holes:
        return [ring.ravel().tolist() for ring in part.outlines]
    return {"size": list(part.inside.shape), "counts": packed(runs_of(part.inside.T.ravel()))}
