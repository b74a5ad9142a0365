"""Feature spaces for single defects: how unlike two places are, with the same mask or with another.

``colour and texture`` needs no weights: mean and deviation of the colour in CIE Lab, inside the mask and around it,
and of the size of edges at two scales. ``perceptual`` is LPIPS of the whole crop, from local weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.images import resize_image
from ...data.mask_resizing import resize_mask
from ...errors import InputError
from ...figures import detail
from ...lazy_imports import imported
from ..generation.trunks import Perceptual

CROP = 64
"""Side in pixels of the crop around a defect that is compared."""
CONTEXT = 1.6
"""Side of the crop over the longer side of the mask's box."""
LEAST = 0.1
"""Smaller deviations of a value, in its own unit, are those of rounding."""
RING = 5
"""Width in pixels of a crop of what counts as around the mask."""


@dataclass(frozen=True)
class Crop:
    """A defect or a normal place: image [3, CROP, CROP] in [0, 1] and mask [1, CROP, CROP] of {0, 1}."""

    image: Tensor
    mask: Tensor


def crop_of(image: Tensor, mask: Tensor) -> Crop:
    """The square around a mask [1, H, W] of an image [3, H, W]. Raises InputError for an empty mask."""
    part, region = detail(image, mask, CONTEXT), detail(mask, mask, CONTEXT)
    return Crop(resize_image(part[None], CROP)[0], resize_mask(region[None], CROP)[0])


def describe(crop: Crop) -> Tensor:
    """Colour and texture of a crop as 20 values: colours in units of CIE Lab, edges in shares of full contrast."""
    lab = imported("skimage.color", "rgb2lab")(crop.image.permute(1, 2, 0).numpy())
    colour = torch.from_numpy(lab).permute(2, 0, 1).float()
    inside = crop.mask > 0
    around = (F.max_pool2d(crop.mask[None], 2 * RING + 1, 1, RING)[0] > 0) & ~inside
    if not bool(around.any()):
        around = inside
    grey = crop.image.mean(dim=0, keepdim=True)[None]
    edges = [_edges(grey)[0], _edges(F.avg_pool2d(grey, 5, 1, 2))[0]]
    found = []
    for region in (inside, around):
        found += [_statistics(channel[None], region) for channel in colour]
        found += [_statistics(edge * 100, region) for edge in edges]
    return torch.cat(found)


def _edges(grey: Tensor) -> Tensor:
    down, right = grey.diff(dim=2)[:, :, :, :-1], grey.diff(dim=3)[:, :, :-1, :]
    return F.pad((down.square() + right.square()).sqrt(), (0, 1, 0, 1), mode="replicate")


def _statistics(values: Tensor, region: Tensor) -> Tensor:
    own = values[region]
    return torch.stack([own.mean(), own.std(unbiased=False)])


class FeatureSpace:
    """Distances between crops: LPIPS with a network, else of their descriptions, each value in its own deviation."""

    def __init__(self, reference: Sequence[Crop], network: Perceptual | None = None) -> None:
        """reference: real defects and normal places, which say how much each value varies."""
        if not reference:
            raise InputError("pairs: nothing to compare with. Use a data set with training pairs and normal images.")
        self._network = network
        described = torch.stack([describe(crop) for crop in reference])
        self._scale = described.std(dim=0, unbiased=False).clamp_min(LEAST)

    def distances(self, ones: Sequence[Crop], others: Sequence[Crop]) -> Tensor:
        """[N, M], at least 0. The root mean square over the values; LPIPS where there is a network."""
        if self._network is not None:
            images = [torch.stack([crop.image for crop in part]) for part in (ones, others)]
            return self._network.distances(images[0], images[1])
        left, right = (torch.stack([describe(crop) for crop in part]) / self._scale for part in (ones, others))
        return torch.cdist(left, right) / len(self._scale) ** 0.5
