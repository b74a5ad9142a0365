"""Annotated images of a label format, put together as normal images and pairs of each type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...errors import DatasetError, InputError
from ..decoding import read_header
from ..splits import natural_key
from .described import TEST, Described, Labelled, MaskDrawn, MaskSource, is_normal
from .listing import Listing
from .raster import Region, Rings, Stroke

HELD_OUT = 5
"""Of normal images that nobody divided, every last fifth is kept for testing."""
NAMED_FILES = 5
LINE_WIDTH, POINT_SIZE = 10.0, 5.0
"""Width in pixels of drawn lines and diameter of half a point, as LabelMe itself draws them."""


class Annotated(NamedTuple):
    """One image with the mask of each of its types; no mask means a normal image."""

    image: Path
    masks: Mapping[str, MaskSource]
    part: str = ""


def polygon(points: np.ndarray) -> list[Region]:
    """The region of corners [n, 2]. Raises InputError for fewer than three, which have no inside, and for shares."""
    if len(points) < 3:
        raise InputError(f"polygon: {len(points)} points have no inside. Draw at least 3.")
    # whole numbers outline the first pixel
    if points.min() >= 0 and points.max() <= 1 and (points != np.rint(points)).any():
        raise InputError("polygon: all corners lie within 0 to 1, as shares of the image. Export them in pixels.")
    return [Rings((points,))]


def dots(points: np.ndarray) -> list[Region]:
    """A disc at each of the points [n, 2]."""
    return [Stroke(point[None], 2 * POINT_SIZE) for point in points]


def thin_notice(found: Described, count: int) -> None:
    """Say that lines and points, which have no area, got one."""
    if count:
        found.notice(
            f"{count} lines and points are drawn {LINE_WIDTH:g} px wide, as LabelMe draws them; polygons fit better"
        )


def drawn_masks(
    found: Described,
    label: Path,
    image: Path,
    regions: Mapping[str, Sequence[Region]],
    stated: tuple[int, int] | None = None,
) -> dict[str, MaskSource] | None:
    """A mask for each type of an image; None, with a problem, where the label does not fit the image.

    stated: (height, width) for which the label says it was drawn.
    """
    try:
        header = read_header(image)
    except DatasetError as error:
        found.problem(str(error))
        return None
    size = stated or header.size
    if size not in (header.size, header.stored_size):  # the stored pixels are turned with the image later
        found.problem(
            f"{label}: drawn for {size[1]}x{size[0]} px, but {image.name} has {header.width}x{header.height} px. "
            "Label the image as it is."
        )
        return None
    return {name: MaskDrawn(label, size, tuple(own)) for name, own in regions.items() if own and not is_normal(name)}


def assemble(found: Described, annotated: Sequence[Annotated], listing: Listing) -> Described:
    """Sort annotated images into ``found``.

    Normal images without a part are divided: the last fifth by name tests. Names of pairs are the stems of their
    files, or their paths where a type has a stem twice.
    """
    ordered = sorted(annotated, key=lambda one: natural_key(listing.relative(one.image)))
    for one in ordered:
        for defect, mask in one.masks.items():
            pair = Labelled(one.image.stem, one.image, mask, one.part)
            found.pairs.setdefault(defect, []).append(pair)
    for defect, pairs in found.pairs.items():
        stems = [pair.name for pair in pairs]
        if len(set(stems)) < len(stems):
            found.pairs[defect] = [
                pair._replace(name=listing.relative(pair.image.with_suffix("")).replace("/", "_")) for pair in pairs
            ]
    found.pairs = dict(sorted(found.pairs.items(), key=lambda entry: natural_key(entry[0])))
    add_normals(found, [(one.image, one.part) for one in ordered if not one.masks])
    return found


def add_normals(found: Described, images: Sequence[tuple[Path, str]]) -> None:
    """Normal images with the part that they belong to; those without one are divided, with a notice."""
    found.normals += [path for path, part in images if part not in ("", TEST)]
    found.test_normals += [path for path, part in images if part == TEST]
    free = [path for path, part in images if not part]
    kept = 0 if found.test_normals else len(free) // HELD_OUT
    found.normals += free[: len(free) - kept]
    found.test_normals += free[len(free) - kept :]
    if kept:
        found.notice(f"the {len(free)} normal images are not divided: the last {kept} by name are kept for testing")
    if found.test_normals and not found.normals:
        found.normals, found.test_normals = found.test_normals, []
        found.notice("all normal images are in the test part; they are used as normal images for training")


def skipped(found: Described, what: str, paths: Sequence[Path], relative: Callable[[Path], str]) -> None:
    """A notice that counts and names files that were left out."""
    if paths:
        names = ", ".join(relative(path) for path in paths[:NAMED_FILES])
        more = f" and {len(paths) - NAMED_FILES} more" if len(paths) > NAMED_FILES else ""
        found.notice(f"left out, {what}: {len(paths)} files ({names}{more})")
