"""CVAT for images 1.1: one XML file for all images, with polygons, masks, boxes, ellipses, lines and points."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from ...errors import DatasetError, InputError
from .assembling import LINE_WIDTH, Annotated, assemble, dots, drawn_masks, polygon, skipped, thin_notice
from .described import Described, part_of
from .listing import Listing
from .raster import Patch, Region, Rings, Stroke, box, ellipse, unrolled

FORM = "CVAT for images"
IMAGE_FOLDERS = ("", "images", "data")


def cvat_files(listing: Listing) -> list[Path]:
    """XML files whose root element is that of CVAT, with images."""
    found = []
    for path in listing.of(".xml"):
        try:
            for _, element in ElementTree.iterparse(path, events=("start",)):
                if element.tag != "annotations":
                    break
                found.append(path)
                break
        except (ElementTree.ParseError, OSError):
            continue
    return found


def describe_cvat(listing: Listing) -> Described:
    """Each label is a type; an image without shapes is normal."""
    found = Described(FORM, listing.folder)
    annotated: dict[Path, Annotated] = {}
    boxes = thin = 0
    for path in cvat_files(listing):
        root = _parsed(path)
        if next(root.iter("track"), None) is not None:
            found.problem(f"{path}: holds tracks of a video. Export it from CVAT as 'CVAT for images'.")
        for entry in root.iter("image"):
            name = entry.get("name", "")
            image = listing.find_image(name, [path.parent / folder for folder in IMAGE_FOLDERS])
            if image is None:
                found.problem(f"{path}: its image '{name}' is not in {listing.folder}. Export with images.")
                continue
            if image in annotated:
                found.problem(f"{path}: the image '{name}' is listed twice. Keep one entry.")
                continue
            regions: dict[str, list[Region]] = {}
            try:
                for shape in entry:
                    if shape.tag != "tag":
                        regions.setdefault(shape.get("label", "").strip(), []).extend(_region(shape))
                        boxes += shape.tag == "box"
                        thin += shape.tag in ("polyline", "points")
                size = (int(entry.get("height", 0)), int(entry.get("width", 0)))
            except (InputError, TypeError, ValueError) as error:
                found.problem(f"{path}: a shape of {name} cannot be read ({error}). Export it again.")
                continue
            masks = drawn_masks(found, path, image, regions, size if all(size) else None)
            if masks is not None:
                subset = part_of(entry.get("subset", "")) or part_of(image.parent.name)
                annotated[image] = Annotated(image, masks, subset)
    if boxes:
        found.notice(f"{boxes} boxes are used as masks; a defect rarely fills its box, polygons fit better")
    thin_notice(found, thin)
    others = [image for image in listing.images if image not in annotated]
    skipped(found, "not listed in the XML file", others, listing.relative)
    return assemble(found, list(annotated.values()), listing)


def _parsed(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as error:
        raise DatasetError(f"{path}: not a readable XML file ({error}). Export it again.") from error


def _region(shape: ElementTree.Element) -> list[Region]:
    values: Mapping[str, str] = shape.attrib
    if shape.tag == "box":
        region = box(*(float(values[key]) for key in ("xtl", "ytl", "xbr", "ybr")))
        return [_turned(region, float(values.get("rotation", 0)))]
    if shape.tag == "ellipse":
        x, y, across, down = (float(values[key]) for key in ("cx", "cy", "rx", "ry"))
        return [ellipse(x, y, across, down, float(values.get("rotation", 0)))]
    if shape.tag == "mask":
        left, top, width, height = (int(float(values[key])) for key in ("left", "top", "width", "height"))
        counts = [int(text) for text in values["rle"].split(",")]
        return [Patch(left, top, unrolled(counts, width * height).reshape(height, width))]
    if shape.tag in ("polygon", "polyline", "points"):
        points = np.array([[float(number) for number in pair.split(",")] for pair in values["points"].split(";")])
        if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
            raise InputError(f"points: '{values['points'][:40]}' are not pairs of numbers.")
        if shape.tag == "polygon":
            return polygon(points)
        return [Stroke(points, LINE_WIDTH)] if shape.tag == "polyline" else dots(points)
    raise InputError(f"shape: unknown kind '{shape.tag}'.")


def _turned(region: Rings, degrees: float) -> Rings:
    points = region.rings[0]
    centre, turn = points.mean(axis=0), np.deg2rad(degrees)
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return Rings(((points - centre) @ matrix + centre,))
