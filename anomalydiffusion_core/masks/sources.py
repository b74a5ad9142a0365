"""Masks without a trained embedding, for node and command: variations of real masks, and procedural ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.mask_resizing import resize_mask
from ..data.mvtec import AnomalyDataset, DefectType
from ..errors import InputError
from ..options import LARGEST_SEED, Settings, option
from ..progress import Progress
from .cleanup import CleanedMasks
from .framing import FramedMask
from .placement import PlacementSettings, place_masks
from .procedural import AreaDistribution, procedural_masks
from .variation import OnDone, VariationSettings, vary_each, vary_masks


@dataclass(frozen=True)
class MaskOrder(Settings):
    """How many masks of which size."""

    count: int = option(8, "Number of masks.", min=1, max=10000)
    size: int = option(256, "Side of the masks in pixels. 0 keeps the size of the real ones.", min=0, max=8192, step=8)
    seed: int = option(0, "Mask i uses seed + i and does not depend on the others.", min=0, max=LARGEST_SEED)


def varied_masks(
    dataset: AnomalyDataset, key: str, order: MaskOrder, settings: VariationSettings, on_done: OnDone | None = None
) -> tuple[Tensor, str]:
    """Variations [count, 1, H, W] of {0, 1} of the training masks of type ``key`` ("" for the only one), and a report.

    Raises InputError as ``training_masks`` and ``AnomalyDataset.defect_type``.
    """
    kind = dataset.defect_type(key)
    real = training_masks([kind], (order.size, order.size) if order.size else None)
    masks = vary_masks(real, order.count, order.seed, settings, on_done)
    return masks, f"{kind.key}: {order.count} masks from {len(real)} real ones, {_areas(masks)}"


def varied_shapes(
    dataset: AnomalyDataset, key: str, order: MaskOrder, settings: VariationSettings, on_done: OnDone | None = None
) -> tuple[list[FramedMask], str]:
    """As `varied_masks` in the geometry of the real images, whose sizes may differ, kept as shapes with a place."""
    kind = dataset.defect_type(key)
    if not kind.train:
        raise InputError("dataset: has no training masks of this type. Choose another split.")
    shapes = []
    for place in range(order.count):  # one at a time: the images may be huge
        seed = order.seed + place
        real = kind.train[seed % len(kind.train)].read_mask()
        shapes.append(FramedMask.of(vary_each([real], 1, seed, settings)[0]))
        if on_done is not None:
            on_done(place + 1)
    areas = [float(shape.pixels.sum()) / (shape.size[0] * shape.size[1]) for shape in shapes]
    return shapes, f"{kind.key}: {order.count} masks from {len(kind.train)} real ones, {_range(areas)}"


def drawn_masks(
    kind: str,
    order: MaskOrder,
    areas: AreaDistribution,
    dataset: AnomalyDataset | None = None,
    key: str = "",
    on_done: OnDone | None = None,
    frame: tuple[int, int] | None = None,
) -> tuple[Tensor, str]:
    """Procedural masks [count, 1, H, W] of {0, 1} and a report.

    frame: height and width of the image they are for, whatever the order's size. A size of 0 without it takes those
    of the training masks of the data set; raises InputError where there is none, or where they differ.
    With a data set the areas are like those of the training masks of the type ``key``, or of all types for "".
    """
    source = "areas between the two limits"
    if dataset is not None:
        areas = training_areas(dataset, key)
        source = f"areas like those of {len(areas.examples)} training masks"
    size = frame or order.size or own_geometry(dataset, key)
    masks = procedural_masks(kind, order.count, size, order.seed, areas, on_done)
    return masks, f"{kind}: {order.count} masks, {source}, {_areas(masks)}"


def own_geometry(dataset: AnomalyDataset | None, key: str = "") -> tuple[int, int]:
    """Height and width of the training masks of the type ``key``, or of all types for "".

    Raises InputError without a data set, and where they differ.
    """
    if dataset is None:
        raise InputError(
            "size: is 0, and no image or data set says which size masks have. Give pixels, or connect one."
        )
    kinds = [dataset.defect_type(key)] if key.strip() else dataset.types
    height, width = training_masks(kinds, None).shape[-2:]
    return int(height), int(width)


def training_areas(dataset: AnomalyDataset, key: str = "") -> AreaDistribution:
    """Areas like those of the training masks of the type ``key``, or of all types for ""."""
    kinds = [dataset.defect_type(key)] if key.strip() else dataset.types
    return AreaDistribution.learned([float(pair.read_mask().mean()) for one in kinds for pair in one.train])


@dataclass(frozen=True)
class PlacedMasksSource:
    """A MaskSource of masks that a model is not needed for, each moved into ``region`` where there is one.

    draw: the seed of a sample to its mask [1, 1, H, W]. region: [1, 1, H, W] of {0, 1}. Sample i uses seed + i.
    """

    draw: Callable[[int], Tensor]
    placement: PlacementSettings
    region: Tensor | None = None
    cost: int = 1
    at_once: int = 16

    def __call__(self, first: int, count: int, progress: Progress) -> CleanedMasks:
        """As of a MaskSource."""
        masks, kept, rejected = [], [], []
        for place in range(count):
            seed = self.placement.seed + first + place
            mask, reason = self.draw(seed), ""
            if self.region is not None:
                own = self.placement
                placed = place_masks(mask, self.region, own.share_inside, seed, own.keep_inside)
                mask = placed.masks
                if placed.failed:
                    reason = f"fits nowhere: at most {placed.placements[0].share:.1%} of it can be inside"
            if reason:
                rejected.append((place, reason))
            else:
                masks.append(mask)
                kept.append(place)
            progress.step(self.cost)
        return CleanedMasks(torch.cat(masks) if masks else torch.zeros(0, 1, 1, 1), tuple(kept), tuple(rejected))


def training_masks(kinds: Sequence[DefectType], size: tuple[int, int] | None) -> Tensor:
    """The training masks [N, 1, H, W] of some types at ``size`` (height, width), or as stored where all have one size.

    Raises InputError when there are none, or when sizes differ.
    """
    masks = [pair.read_mask() for kind in kinds for pair in kind.train]
    if not masks:
        raise InputError("dataset: has no training masks of this type. Choose another split.")
    if size is None and len({mask.shape for mask in masks}) > 1:
        raise InputError("size: is 0, but the training masks have different sizes. Give one in pixels.")
    return torch.cat([mask[None] if size is None else resize_mask(mask[None], size) for mask in masks])


def _areas(masks: Tensor) -> str:
    return _range(masks.flatten(1).mean(dim=1).tolist())


def _range(areas: Sequence[float]) -> str:
    return f"{min(areas):.2%} to {max(areas):.2%} of the image"
