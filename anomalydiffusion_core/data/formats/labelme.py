"""LabelMe: one JSON file for each image, beside it or in a folder of labels (labelme 3 to 5)."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import DatasetError, InputError
from .assembling import LINE_WIDTH, NAMED_FILES, Annotated, assemble, dots, drawn_masks, polygon, skipped, thin_notice
from .described import Described, is_normal, part_of
from .listing import Listing
from .raster import Patch, Region, Stroke, box, ellipse

FORM = "LabelMe"
THIN = frozenset({"line", "linestrip", "point", "points"})
IGNORED = frozenset({"_background_", "__ignore__", "background"})


def is_labelme(content: Any) -> bool:
    """Whether parsed JSON is a file of LabelMe."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def describe_labelme(listing: Listing) -> Described:
    """Labelled images as pairs, each label a type; images of a folder like ``good``, or without shapes, as normal."""
    found = Described(FORM, listing.folder)
    annotated: list[Annotated] = []
    seen: set[Path] = set()
    rectangles = thin = 0
    bare: list[Path] = []
    for path in listing.of(".json"):
        content = listing.json(path)
        if not is_labelme(content):
            continue
        image = _image_of(path, content, listing)
        if image is None:
            found.problem(f"{path}: its image '{content['imagePath']}' is not in {listing.folder}. Add the image.")
            continue
        if image in seen:
            found.problem(f"{path}: a second file of labels for {image.name}. Keep one of the two.")
            continue
        seen.add(image)
        try:
            regions = _regions(content["shapes"])
        except (InputError, KeyError, TypeError, ValueError) as error:
            found.problem(f"{path}: a shape that cannot be read ({error}). Open and save it in LabelMe.")
            continue
        kinds = [shape.get("shape_type") for shape in content["shapes"]]
        rectangles, thin = rectangles + kinds.count("rectangle"), thin + sum(kind in THIN for kind in kinds)
        if not regions and not is_normal(image.parent.name):
            bare.append(image)
        masks = drawn_masks(found, path, image, regions, _stated(content))
        if masks is not None:
            annotated.append(Annotated(image, masks, _part(image, listing)))
    free = [image for image in listing.images if image not in seen]
    normal = [image for image in free if is_normal(image.parent.name)]
    annotated += [Annotated(image, {}, _part(image, listing)) for image in normal]
    others = [image for image in free if not is_normal(image.parent.name)]
    skipped(found, "no label file and not in a folder called good", others, listing.relative)
    if rectangles:
        found.notice(f"{rectangles} rectangles are used as masks; a defect rarely fills its box, polygons fit better")
    thin_notice(found, thin)
    if bare:
        names = ", ".join(listing.relative(path) for path in bare[:NAMED_FILES])
        more = " ..." if len(bare) > NAMED_FILES else ""
        found.notice(f"{len(bare)} images whose label file has no shapes are read as normal images: {names}{more}")
    return assemble(found, annotated, listing)


def _image_of(path: Path, content: Mapping[str, Any], listing: Listing) -> Path | None:
    named = listing.find_image(str(content["imagePath"]), [path.parent])
    return named or listing.find_image(f"{path.stem}.png", [path.parent])


def _stated(content: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = content.get("imageHeight"), content.get("imageWidth")
    return (int(height), int(width)) if height and width else None


def _part(image: Path, listing: Listing) -> str:
    parts = Path(listing.relative(image)).parts[:-1]
    return next((found for name in parts if (found := part_of(name))), "")


def _regions(shapes: list[dict[str, Any]]) -> dict[str, list[Region]]:
    regions: dict[str, list[Region]] = {}
    for shape in shapes:
        label = str(shape["label"]).strip()
        if label.casefold() not in IGNORED:
            regions.setdefault(label, []).extend(_region(shape))
    return regions


def _region(shape: Mapping[str, Any]) -> list[Region]:
    kind = shape.get("shape_type") or "polygon"
    points = np.asarray(shape["points"], dtype=np.float64).reshape(-1, 2)
    if not np.isfinite(points).all() or not len(points):
        raise InputError("points: none, or not finite numbers.")
    if kind in ("rectangle", "circle", "line") and len(points) < 2:
        raise InputError(f"{kind}: 1 point is not enough. Draw it again.")
    if kind == "polygon":
        return polygon(points)
    if kind == "rectangle":
        return [box(*points.min(axis=0), *points.max(axis=0))]
    if kind == "circle":
        radius = float(np.hypot(*(points[1] - points[0])))
        return [ellipse(float(points[0][0]), float(points[0][1]), radius, radius)]
    if kind in ("line", "linestrip"):
        return [Stroke(points, LINE_WIDTH)]
    if kind in ("point", "points"):
        return dots(points)
    if kind == "mask":
        return [_bitmap(shape["mask"], points)]
    raise InputError(f"shape_type: unknown value '{kind}'.")


def _bitmap(encoded: str, points: np.ndarray) -> Patch:
    """LabelMe's shape "mask": a PNG of its bounding box, as base64."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))) as image:
            inside = np.asarray(image.convert("L")) > 0 if image.mode != "1" else np.asarray(image)
    except (OSError, binascii.Error, SyntaxError) as error:
        raise DatasetError(f"mask: cannot be decoded ({error}).") from error
    left, top = np.floor(points.min(axis=0)).astype(int)
    return Patch(int(left), int(top), inside)
