"""The scores of one pair, generated or real: nearest real defect, nearest normal place, effect, fill and seam."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...masks.change import Box, Pixels, box_around, difference, smoothed
from ...masks.label_choice import Normals, RealChange
from ...sampling.effect import FILL_THRESHOLD
from .features import Crop, FeatureSpace, crop_of

NORMALS_COMPARED = 12
"""Normal images whose place under the mask is compared with a defect."""
BORDER_MARGIN = 8
"""Pixels around the mask that a seam is judged by."""
SCORES = {
    "nearest_real": (False, "distance to the nearest real defect of its type"),
    "nearest_normal": (True, "distance to the nearest normal image at this place"),
    "effect": (True, "effect"),
    "fill": (True, "fill"),
    "seam": (False, "seam"),
}
"""Name of a score -> whether more of it is better, and how it is called."""


@dataclass(frozen=True)
class PairScores:
    """Of one pair; NaN where a score is not defined.

    nearest_real, nearest_normal: distances in the feature space, at least 0. effect: mean change inside the mask
    beyond what normal images differ by, 0 to 255. fill: share of the mask that changed, 0 to 1. seam: edges along the
    border of the mask over those beside it; 1 where the border cannot be told.
    """

    nearest_real: float
    nearest_normal: float
    effect: float
    fill: float
    seam: float

    def entry(self) -> dict[str, float | None]:
        """For the manifest."""
        values = {name: getattr(self, name) for name in SCORES}
        return {name: None if math.isnan(value) else round(float(value), 4) for name, value in values.items()}


@dataclass(frozen=True)
class Known:
    """The real defects of a type as crops, and the normal images of the data set."""

    defects: Sequence[Crop]
    normals: Normals
    space: FeatureSpace


def real_scores(images: Sequence[Tensor], masks: Sequence[Tensor], known: Known) -> list[PairScores]:
    """Of the real training pairs of a type, each compared with the others of it."""
    between = known.space.distances(known.defects, known.defects)
    between.fill_diagonal_(math.inf)
    found = []
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        near = float(between[number].min()) if len(known.defects) > 1 else math.nan
        change = RealChange.of(image, mask, known.normals)
        effect = max(float(change.levels[change.label].mean() - change.around[change.ring].mean()), 0.0)
        fill = change.fit(FILL_THRESHOLD).fill
        found.append(PairScores(near, _nearest_normal(image, mask, known), effect, fill, seam(image, mask)))
    return found


def generated_scores(image: Tensor, label: Tensor, drawn: Tensor, normal: Tensor, known: Known) -> PairScores:
    """Of a generated pair: image and normal image [3, H, W] in [0, 1], label and drawn mask [1, H, W] of {0, 1}."""
    near = float(known.space.distances([crop_of(image, label)], known.defects).min())
    box = box_around(label, 0)
    inside: Pixels = box.of(label)[0].numpy() > 0
    levels = smoothed(difference(box.of(image), box.of(normal)), inside)[inside]
    return PairScores(
        near,
        _nearest_normal(image, label, known),
        float(levels.mean()),
        float((levels > FILL_THRESHOLD).mean()),
        seam(image, drawn),
    )


def normal_places(image: Tensor, mask: Tensor, normals: Normals) -> list[Crop]:
    """The place of a mask on some normal images, at the size of ``image``."""
    height, width = image.shape[1:]
    parts = normals.parts(Box(0, height, 0, width), (height, width), NORMALS_COMPARED)
    return [crop_of(normal, mask) for normal in parts]


def _nearest_normal(image: Tensor, mask: Tensor, known: Known) -> float:
    places = normal_places(image, mask, known.normals)
    return float(known.space.distances([crop_of(image, mask)], places).min())


def seam(image: Tensor, mask: Tensor) -> float:
    """Mean edge across the border of a mask over the mean edge up to four pixels beside it, on both sides.

    image [3, H, W] in [0, 1], mask [1, H, W] of {0, 1}. The border of the image is no border. 1 without a border.
    """
    from scipy.ndimage import distance_transform_edt

    box = box_around(mask, BORDER_MARGIN)
    inside = box.of(mask)[0].numpy() > 0
    if inside.all():
        return 1.0
    depth = torch.from_numpy(distance_transform_edt(inside) - distance_transform_edt(~inside))
    grey = box.of(image).mean(dim=0)
    steps, beside = [], []
    for axis in (0, 1):
        edge = grey.diff(dim=axis).abs()
        one, two = (depth.narrow(axis, start, depth.shape[axis] - 1) for start in (0, 1))
        across = (one > 0) != (two > 0)
        near = (torch.minimum(one.abs(), two.abs()) <= 4) & ~across & (torch.maximum(one.abs(), two.abs()) > 1)
        steps.append(edge[across])
        beside.append(edge[near])
    border, others = torch.cat(steps), torch.cat(beside)
    if not len(border) or not len(others):
        return 1.0
    least = 0.5 / 255  # half a level: flat places would otherwise make any step a seam
    return float(border.mean() + least) / float(others.mean() + least)
