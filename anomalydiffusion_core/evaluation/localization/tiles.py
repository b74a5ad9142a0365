"""Detectors at native scale: trained on windows of images, tested on overlapping tiles that are stitched together.

A small defect on a large image is a pixel or two once the image is made as small as a network takes it. Here the
network sees parts of the image at one scale instead. Neighbouring tiles overlap by a quarter, and each pixel's score
is their mean, weighted by how far inside a tile it lies, so that a tile's border shows nowhere. Metrics count the
pixels of the original images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.images import resize_image
from ...data.mask_resizing import resize_mask
from ..settings import LocalizerSettings
from .sources import HeldOutImages, NormalSource, PairSource
from .training import Pairs

OVERLAP = 0.25
"""Share of a tile's side that it has in common with the next one at least."""
WINDOWS_PER_IMAGE = 6
"""Windows that are cut from each image and each pair before the training, at random places."""


def window_side(settings: LocalizerSettings) -> int:
    """Side of windows and tiles in image pixels."""
    return max(round(settings.size * settings.tile_scale), 1)


def pair_windows(source: PairSource, settings: LocalizerSettings) -> Pairs:
    """Windows of pairs as `object/defect` -> images [N,3,s,s] and masks [N,1,s,s], each with a part of a defect.

    A random defect pixel lies at a random place of the window. Places depend on the number of the pair alone.
    """
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    side = window_side(settings)
    for place, key in enumerate(source.keys):
        sample, random = source.sample(place), np.random.default_rng([place, 1])
        rows, columns = sample.mask[0].nonzero(as_tuple=True)
        for _ in range(WINDOWS_PER_IMAGE):
            chosen = int(random.integers(len(rows)))
            starts = [
                int(where[chosen]) - int(random.integers(side)) for where in (rows, columns)
            ]  # may reach beyond the image; then it is moved inwards
            parts = _cut(sample.image, starts, side), _cut(sample.mask, starts, side)
            found.setdefault(key, []).append(_sized(*parts, settings.size))
    return {key: (torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts])) for key, parts in found.items()}


def normal_windows(source: NormalSource, settings: LocalizerSettings) -> Tensor:
    """Windows [N,3,s,s] of normal images at random places."""
    side, found = window_side(settings), []
    for place in range(source.count):
        image, random = source.image(place), np.random.default_rng([place, 0])
        for _ in range(WINDOWS_PER_IMAGE):
            starts = [int(random.integers(max(length - side, 0) + 1)) for length in image.shape[-2:]]
            part = _cut(image, starts, side)
            found.append(_sized(part, part[:1], settings.size)[0])
    return torch.cat(found)


def _cut(image: Tensor, starts: list[int], side: int) -> Tensor:
    """A square of an image [C,H,W] moved inside it; where the image is smaller it is mirrored."""
    rows, columns = (
        torch.arange(side) + min(max(start, 0), max(length - side, 0))
        for start, length in zip(starts, image.shape[-2:], strict=True)
    )
    return image[:, _mirrored(rows, image.shape[-2])][:, :, _mirrored(columns, image.shape[-1])]


def _mirrored(places: Tensor, length: int) -> Tensor:
    period = places % (2 * length)
    return torch.where(period < length, period, 2 * length - 1 - period)


def _sized(image: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    return resize_image(image[None], size), resize_mask(mask[None], size)


def tile_starts(length: int, side: int) -> list[int]:
    """Where tiles of ``side`` begin along an axis: evenly spread, from border to border, overlapping by OVERLAP."""
    if length <= side:
        return [0]
    count = math.ceil((length - side) / (side * (1 - OVERLAP))) + 1
    return [round(number * (length - side) / (count - 1)) for number in range(count)]


def score_tiles(score: Callable[[Tensor], Tensor], image: Tensor, settings: LocalizerSettings, batch: int) -> Tensor:
    """Score map [H,W] of an image [3,H,W]: tiles scored at the network's size, stitched at the image's.

    score: images [n,3,s,s] to score maps [n,s,s].
    """
    side = window_side(settings)
    height, width = int(image.shape[-2]), int(image.shape[-1])
    places = [(top, left) for top in tile_starts(height, side) for left in tile_starts(width, side)]
    total, weights = torch.zeros(height, width), torch.zeros(height, width)
    ramp = torch.minimum(torch.arange(side) + 1, side - torch.arange(side)).float() / side
    weight = ramp[:, None] * ramp[None]
    for start in range(0, len(places), batch):
        some = places[start : start + batch]
        tiles = torch.stack([_cut(image, list(place), side) for place in some])
        maps = score(resize_image(tiles, settings.size))
        if settings.size != side:
            maps = F.interpolate(maps[:, None], (side, side), mode="bilinear", align_corners=False)[:, 0]
        for (top, left), own in zip(some, maps, strict=True):
            tall, wide = min(side, height - top), min(side, width - left)
            total[top : top + tall, left : left + wide] += (own * weight)[:tall, :wide]
            weights[top : top + tall, left : left + wide] += weight[:tall, :wide]
    return total / weights


def scored_tiles(
    score: Callable[[Tensor], Tensor],
    tests: HeldOutImages,
    settings: LocalizerSettings,
    batch: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Score map [H,W] and mask [H,W] of each test image at its own size, one at a time."""
    for place in range(tests.count):
        images, masks = tests.read(place, place + 1, 0)
        yield score_tiles(score, images[0], settings, batch), masks[0, 0]
