"""What a training reads of a data set: views of its pairs at one scale, and hashes that say which files they were."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DatasetError, InputError
from ..files import file_digest
from ..scale import AUTO, WHOLE, WINDOWS, TrainedView, covering_scale, proposed_view, whole_canvas, window_scale
from .images import image_size, read_image, resize_image
from .mask_resizing import resize_mask
from .mvtec import AnomalyDataset, DefectPair, DefectType

ROOM = 1.75
"""Side of what is kept around a defect, in windows: room to move and turn the window."""
KEPT_DETAIL = 2.0
"""Images are kept at most so much finer than they are learned: augmentation zooms, and stored images may be huge."""
GROUPED = 0.6
"""Parts of a mask that fit together into this share of a window are one defect."""


class Box(NamedTuple):
    """A rectangle in pixels. It may reach beyond its image."""

    top: int
    left: int
    height: int
    width: int

    def around(self, height: int, width: int) -> Box:
        """One of this size about the same middle."""
        return Box(self.top + (self.height - height) // 2, self.left + (self.width - width) // 2, height, width)

    def inside(self, height: int, width: int) -> Box:
        """The same moved into an image where there is room, else about the image's middle along that axis."""
        starts = []
        for start, length, side in ((self.top, self.height, height), (self.left, self.width, width)):
            starts.append(min(max(start, 0), side - length) if length <= side else (side - length) // 2)
        return Box(starts[0], starts[1], self.height, self.width)

    def clipped(self, height: int, width: int) -> Box:
        """The part of it that lies in an image."""
        top, left = max(self.top, 0), max(self.left, 0)
        return Box(top, left, min(self.top + self.height, height) - top, min(self.left + self.width, width) - left)


@dataclass(frozen=True)
class View:
    """A pair as a training looks at it.

    image [3, H, W] in [0, 1] and mask [1, H, W] of {0, 1}, at ``detail`` image pixels per pixel. frame: what is
    learned of it without augmentation; beyond the border it is mirrored. focus [1, H, W]: the part of the mask that
    must stay in the frame, all of it for None.
    """

    image: Tensor
    mask: Tensor
    frame: Box
    focus: Tensor | None = None
    detail: float = 1.0

    @property
    def kept(self) -> Tensor:
        """What must stay in the frame."""
        return self.mask if self.focus is None else self.focus


TypeViews = Sequence[View]
"""The views of one defect type."""


def whole_views(images: Tensor, masks: Tensor, canvas: tuple[int, int]) -> list[View]:
    """Whole images [N, 3, H, W] with masks [N, 1, H, W], for a canvas (height, width) of any aspect."""
    height, width = images.shape[-2:]
    frame = covering_frame((height, width), canvas)
    return [View(image, mask, frame) for image, mask in zip(images, masks, strict=True)]


def covering_frame(size: tuple[int, int], canvas: tuple[int, int]) -> Box:
    """The smallest frame of a canvas's aspect that covers an image of ``size`` (height, width), about its middle."""
    scale = covering_scale(size, canvas)
    sides = [max(round(scale * side), own) for side, own in zip(canvas, size, strict=True)]
    return Box(0, 0, *size).around(sides[0], sides[1])


def fit_view(view: View, canvas: tuple[int, int], mirror: bool = True) -> tuple[Tensor, Tensor]:
    """Its frame at the size (height, width) of a canvas: image [3, h, w] and mask [1, h, w] of {0, 1}.

    mirror: beyond the border lies the mirror image, else nothing.
    """
    rows, columns = (
        _mirrored(start, length, side)
        for start, length, side in zip(view.frame[:2], view.frame[2:], view.image.shape[-2:], strict=True)
    )
    image, mask = (part[:, rows][:, :, columns][None] for part in (view.image, view.mask))
    if not mirror:
        known = [
            (where >= 0) & (where < side)
            for where, side in zip(_range(view.frame), view.image.shape[-2:], strict=True)
        ]
        inside = (known[0][:, None] & known[1][None]).to(mask.dtype)
        image, mask = image * inside, mask * inside
    if tuple(image.shape[-2:]) == canvas:
        return image[0], mask[0]
    return resize_image(image, canvas)[0], resize_mask(mask, canvas)[0]


def _range(frame: Box) -> tuple[Tensor, Tensor]:
    return torch.arange(frame.top, frame.top + frame.height), torch.arange(frame.left, frame.left + frame.width)


def _mirrored(start: int, length: int, side: int) -> Tensor:
    """Indices of ``length`` pixels from ``start``, mirrored at the borders of ``side`` pixels."""
    period = (torch.arange(start, start + length) % (2 * side)).clone()
    return torch.where(period < side, period, 2 * side - 1 - period)


class Defect(NamedTuple):
    """Parts of a mask that are looked at together: their box, and which pixels [H, W] they are."""

    box: Box
    pixels: NDArray[np.bool_]


def parts_of(mask: Tensor) -> list[Box]:
    """Boxes of the 8-connected parts of a mask [1, H, W], the largest area first."""
    from scipy import ndimage

    labels, _ = ndimage.label(mask[0].numpy() > 0, structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel())[1:]
    boxes = [_box_of(found) for found in ndimage.find_objects(labels)]
    return [boxes[number] for number in np.argsort(-areas, kind="stable")]


def grouped_defects(mask: Tensor, side: float) -> list[Defect]:
    """The parts of a mask [1, H, W] in groups that fit into squares of ``side`` pixels, or are one large part."""
    from scipy import ndimage

    labels, count = ndimage.label(mask[0].numpy() > 0, structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    boxes = [_box_of(found) for found in ndimage.find_objects(labels)]
    waiting = [int(number) for number in np.argsort(-areas, kind="stable")]
    groups: list[Defect] = []
    while waiting:
        own, box = [waiting[0]], boxes[waiting[0]]
        for other in waiting[1:]:
            joined = _union(box, boxes[other])
            if max(joined.height, joined.width) <= side:
                own.append(other)
                box = joined
        waiting = [number for number in waiting if number not in own]
        groups.append(Defect(box, np.isin(labels, np.array(own) + 1)))
    return groups


def _box_of(found: tuple[slice, slice]) -> Box:
    rows, columns = found
    return Box(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)


def _union(one: Box, other: Box) -> Box:
    top, left = min(one.top, other.top), min(one.left, other.left)
    bottom = max(one.top + one.height, other.top + other.height)
    return Box(top, left, bottom - top, max(one.left + one.width, other.left + other.width) - left)


@dataclass(frozen=True)
class Measured:
    """What a type's training pairs are like.

    sizes: (height, width) of the images. parts: for each pair the longest side in pixels of each part of its mask, the
    part with the largest area first.
    """

    sizes: tuple[tuple[int, int], ...]
    parts: tuple[tuple[int, ...], ...]

    @property
    def spans(self) -> list[float]:
        """The longest side of each pair's largest part, which the scale is chosen by."""
        return [float(own[0]) for own in self.parts]


def measure(pairs: Sequence[DefectPair]) -> Measured:
    """Read the masks of some pairs. Raises InputError without any."""
    if not pairs:
        raise InputError("pairs: none given. Choose a split that leaves images on this side.")
    parts = [[max(box.height, box.width) for box in parts_of(pair.read_mask())] for pair in pairs]
    return Measured(tuple(image_size(pair.image_path) for pair in pairs), tuple(tuple(own) for own in parts))


def scale_lines(dataset: AnomalyDataset, resolutions: Sequence[int] = (256, 512)) -> list[str]:
    """What to know of sizes before a training: of images, of defects in pixels, and the proposed scale."""
    lines = []
    for kind in (kind for kind in dataset.types if kind.train):
        own = measure(kind.train)
        sizes = sorted({f"{width}x{height}" for height, width in own.sizes})
        shown = ", ".join(sizes[:3]) + (f" and {len(sizes) - 3} more" if len(sizes) > 3 else "")
        spans = sorted(own.spans)
        lines.append(
            f"  {kind.key}: images {shown} px, defects {spans[0]:.0f} to {spans[-1]:.0f} px long, median "
            f"{statistics.median(spans):.0f}"
        )
        for resolution in resolutions:
            scale = window_scale(own.spans, resolution)
            text = f"windows of {scale * resolution:.0f} px, {scale:.3g} image pixels per learned pixel"
            if proposed_view(own.spans, own.sizes, resolution) == WHOLE:
                text = "whole images"
            lines.append(f"    at resolution {resolution}: {text}")
    return lines


@dataclass(frozen=True)
class TrainingViews:
    """What is learned: views of each type by ``object/defect``, all of one canvas, and how each type was looked at."""

    canvas: tuple[int, int]
    views: Mapping[str, TypeViews]
    trained: Mapping[str, TrainedView]

    @property
    def windows(self) -> bool:
        """Whether windows are looked at."""
        return next(iter(self.trained.values())).windows


def chosen_view(measured: Sequence[Measured], view: str, resolution: int) -> str:
    """WHOLE or WINDOWS for some types together: as asked for, or windows where they are proposed for any type."""
    if view != AUTO:
        return view
    sizes = [size for one in measured for size in one.sizes]
    return WINDOWS if any(proposed_view(one.spans, sizes, resolution) == WINDOWS for one in measured) else WHOLE


def training_views(
    kinds: Sequence[DefectType],
    resolution: int,
    view: str = AUTO,
    scale: float = 0.0,
    zooms: Mapping[str, tuple[float, float]] | None = None,
) -> TrainingViews:
    """Read the training pairs of some types as views.

    view: one of VIEWS. scale: of windows, in image pixels per trained pixel; 0 chooses one for each type by its
    defects. zooms: for WHOLE and WINDOWS the range that augmentation multiplies a frame's sides by, for the record.
    """
    measured = {kind.key: measure(kind.train) for kind in kinds}
    chosen = chosen_view(list(measured.values()), view, resolution)
    low, high = (zooms or {}).get(chosen, (1.0, 1.0))
    sizes = [size for one in measured.values() for size in one.sizes]
    views: dict[str, list[View]] = {}
    trained: dict[str, TrainedView] = {}
    canvas = whole_canvas(sizes, resolution) if chosen == WHOLE else (resolution, resolution)
    for kind in kinds:
        own = measured[kind.key]
        wanted = scale or window_scale(own.spans, resolution)
        found = [one for pair in kind.train for one in _views_of(pair, chosen, wanted, canvas)]
        views[kind.key] = found
        scales = [one.frame.height * one.detail / canvas[0] for one in found]
        context = statistics.median(_context(one) for one in found)
        middle = sorted(own.sizes, key=math.prod)[len(own.sizes) // 2]
        trained[kind.key] = TrainedView(
            chosen == WINDOWS,
            *canvas,
            statistics.median(scales),
            low * min(scales),
            high * max(scales),
            context,
            middle,
        )
    return TrainingViews(canvas, views, trained)


def _context(view: View) -> float:
    """Distance in image pixels from the defect to the border of the frame, along its longer side."""
    rows, columns = (view.kept[0].amax(dim=axis).nonzero() for axis in (1, 0))
    spans = [int(found.max() - found.min()) + 1 for found in (rows, columns)]
    return max(0.0, min(side - span for side, span in zip(view.frame[2:], spans, strict=True)) / 2) * view.detail


def _views_of(pair: DefectPair, chosen: str, scale: float, canvas: tuple[int, int]) -> list[View]:
    image, mask = read_image(pair.image_path, pair.bits), pair.read_mask()
    height, width = image.shape[-2:]
    if mask.shape[-2:] != (height, width):
        raise DatasetError(
            f"{pair.mask_path}: the mask is {mask.shape[2]}x{mask.shape[1]} px, its image {pair.image_path.name} is "
            f"{width}x{height} px. Export the mask at the size of the image."
        )
    if chosen == WHOLE:
        covered = covering_scale((height, width), canvas)
        # As stored where that is a moderate size.
        sides = (height, width) if covered <= KEPT_DETAIL else _reduced((height, width), covered / KEPT_DETAIL)
        image, small = resize_image(image[None], sides)[0], resize_mask(mask[None], sides)[0]
        return [View(image, small, covering_frame(sides, canvas), None, height / sides[0])]
    side = round(scale * canvas[0])
    found = []
    for defect in grouped_defects(mask, GROUPED * side):
        # What is larger than the window enlarges it: the whole anomaly is learned, at a coarser scale.
        own = max(side, math.ceil(max(defect.box.height, defect.box.width) / LARGEST_DEFECT))
        frame = defect.box.around(own, own).inside(height, width)
        kept = frame.around(round(ROOM * own), round(ROOM * own)).clipped(height, width)
        rows, columns = slice(kept.top, kept.top + kept.height), slice(kept.left, kept.left + kept.width)
        parts = (
            image[:, rows, columns],
            mask[:, rows, columns],
            torch.from_numpy(defect.pixels[None])[:, rows, columns],
        )
        found.append(_detailed(parts, frame, kept, own / canvas[0]))
    return found


LARGEST_DEFECT = 0.9
"""Largest share of its window that a defect may span."""


def _detailed(parts: tuple[Tensor, Tensor, Tensor], frame: Box, kept: Box, scale: float) -> View:
    """A view of what is kept of an image, made smaller where it is much finer than it will be learned."""
    image, mask, focus = parts
    detail = 1.0
    if scale > KEPT_DETAIL:
        sides = _reduced((kept.height, kept.width), scale / KEPT_DETAIL)
        detail = kept.height / sides[0]
        image = resize_image(image[None], sides)[0]
        mask, focus = (resize_mask(part.float()[None], sides)[0] for part in (mask, focus))
    place = [round((start - first) / detail) for start, first in zip(frame[:2], kept[:2], strict=True)]
    side = round(frame.height / detail)
    return View(image.clone(), mask.clone(), Box(place[0], place[1], side, side), focus.float().clone(), detail)


def _reduced(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return max(round(size[0] / factor), 1), max(round(size[1] / factor), 1)


def normal_view(dataset: AnomalyDataset, resolution: int, view: str = AUTO) -> str:
    """WHOLE or WINDOWS for normal images: as asked for, or as the data set's defects are looked at."""
    measured = [measure(kind.train) for kind in dataset.types if kind.train]
    return chosen_view(measured, view, resolution) if measured else WHOLE if view == AUTO else view


def normal_views(
    dataset: AnomalyDataset,
    paths: Sequence[Path],
    count: int,
    resolution: int,
    view: str = AUTO,
    scale: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """``count`` views [count, 3, h, w] in [0, 1] of normal images, the way that the data set's defects are looked at.

    Whole images where defects are learned on whole images, or there are none; else windows of the median scale of all
    types at random places. Images take turns. Raises InputError for windows without a scale.
    """
    chosen = normal_view(dataset, resolution, view)
    canvas, side = (resolution, resolution), 0
    if chosen == WHOLE:
        canvas = whole_canvas([image_size(path) for path in paths], resolution)
    else:
        scales = [window_scale(measure(kind.train).spans, resolution) for kind in dataset.types if kind.train]
        if not scale and not scales:
            raise InputError("scale: 0, and there are no defects to choose it by. Give one, or choose whole images.")
        side = round((scale or statistics.median(scales)) * resolution)
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        image = read_image(paths[number % len(paths)], dataset.bits)
        height, width = image.shape[-2:]
        frame = covering_frame((height, width), canvas)
        if chosen == WINDOWS:
            top, left = (int(random.integers(max(length - side, 0) + 1)) for length in (height, width))
            frame = Box(top, left, side, side).inside(height, width)
        found.append(fit_view(View(image, image[:1], frame), canvas)[0])
    return torch.stack(found)


def training_files(dataset: AnomalyDataset) -> dict[str, str]:
    """Hashes of all files that are learned from, by their path from the folder that holds the category.

    Where a part of a mask file is read, the name says which.
    """
    found: dict[str, str] = {}
    for pair in (pair for kind in dataset.types for pair in kind.train):
        for path, choice in pair.read_files:
            name = f"{dataset.object}/{path.relative_to(dataset.folder).as_posix()}{choice}"
            if name not in found:  # one label file may serve all pairs
                found[name] = file_digest(path)[:16]
    return found
