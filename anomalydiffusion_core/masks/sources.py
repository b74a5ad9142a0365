"""Masks without a trained embedding, for node and command: variations of real masks, and procedural ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.images import read_mask, resize_mask
from ..data.mvtec import AnomalyDataset, DefectType
from ..errors import InputError
from ..options import LARGEST_SEED, Settings, option
from .procedural import AreaDistribution, procedural_masks
from .variation import OnDone, VariationSettings, vary_masks


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


def drawn_masks(
    kind: str,
    order: MaskOrder,
    areas: AreaDistribution,
    dataset: AnomalyDataset | None = None,
    key: str = "",
    on_done: OnDone | None = None,
) -> tuple[Tensor, str]:
    """Procedural masks [count, 1, size, size] of {0, 1} and a report.

    With a data set the areas are like those of the training masks of the type ``key``, or of all types for "".
    """
    source = "areas between the two limits"
    if dataset is not None:
        kinds = [dataset.defect_type(key)] if key.strip() else dataset.types
        real = [float(read_mask(pair.mask_path).mean()) for one in kinds for pair in one.train]
        areas, source = AreaDistribution.learned(real), f"areas like those of {len(real)} training masks"
    masks = procedural_masks(kind, order.count, order.size, order.seed, areas, on_done)
    return masks, f"{kind}: {order.count} masks, {source}, {_areas(masks)}"


def training_masks(kinds: Sequence[DefectType], size: tuple[int, int] | None) -> Tensor:
    """The training masks [N, 1, H, W] of some types at ``size`` (height, width), or as stored where all have one size.

    Raises InputError when there are none, or when sizes differ.
    """
    masks = [read_mask(pair.mask_path) for kind in kinds for pair in kind.train]
    if not masks:
        raise InputError("dataset: has no training masks of this type. Choose another split.")
    if size is None and len({mask.shape for mask in masks}) > 1:
        raise InputError("size: is 0, but the training masks have different sizes. Give one in pixels.")
    return torch.cat([mask[None] if size is None else resize_mask(mask[None], size) for mask in masks])


def _areas(masks: Tensor) -> str:
    areas = masks.flatten(1).mean(dim=1)
    return f"{float(areas.min()):.2%} to {float(areas.max()):.2%} of the image"
