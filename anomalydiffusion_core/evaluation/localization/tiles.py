"""Detectors at native scale: trained on windows of images, tested on overlapping tiles that are stitched together.

A small defect on a large image is a pixel or two once the image is made as small as a network takes it. Here the
network sees parts of the image at one scale instead. Neighbouring tiles overlap by a quarter, and each pixel's score
is their mean, weighted by how far inside a tile it lies, so that a tile's border shows nowhere. Metrics count the
pixels of the original images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.images import resize_image
from ...data.mask_resizing import resize_mask
from .sources import HeldOutImages, NormalSource, PairSource
from .training import Pairs

OVERLAP = 0.25
"""Share of a tile's side that it has in common with the next one at least."""
WINDOWS_PER_IMAGE = 6
"""Windows that are cut from each image and each pair before the training, at random places."""


class Tiled(Protocol):
    """Settings of any network that sees tiles: side in pixels of what it takes, and image pixels per such pixel."""

    @property
    def size(self) -> int: ...  # noqa: D102

    @property
    def tile_scale(self) -> float: ...  # noqa: D102


def window_side(settings: Tiled) -> int:
    """Side of windows and tiles in image pixels."""
    return max(round(settings.size * settings.tile_scale), 1)


def pair_windows(source: PairSource, settings: Tiled) -> Pairs:
    """Windows of pairs as `object/defect` -> images [N,3,s,s] and masks [N,1,s,s], see `windows_on_defect`."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for place, key in enumerate(source.keys):
        sample = source.sample(place)
        found.setdefault(key, []).append(windows_on_defect(sample.image, sample.mask, place, settings))
    return {key: (torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts])) for key, parts in found.items()}


def windows_on_defect(image: Tensor, mask: Tensor, place: int, settings: Tiled) -> tuple[Tensor, Tensor]:
    """Windows [6,3,s,s] of an image [3,H,W] and of its mask [1,H,W], each with a part of the defect.

    A random defect pixel lies at a random place of the window. Places depend on the pair's number ``place`` alone.
    """
    side, random = window_side(settings), np.random.default_rng([place, 1])
    rows, columns = mask[0].nonzero(as_tuple=True)
    found = []
    for _ in range(WINDOWS_PER_IMAGE):
        chosen = int(random.integers(len(rows)))
        starts = [
            int(where[chosen]) - int(random.integers(side)) for where in (rows, columns)
        ]  # may reach beyond the image; then it is moved inwards
        found.append(_sized(_cut(image, starts, side), _cut(mask, starts, side), settings.size))
    return torch.cat([a for a, _ in found]), torch.cat([b for _, b in found])


def normal_windows(source: NormalSource, settings: Tiled, places: Sequence[int] | None = None) -> Tensor:
    """Windows [N,3,s,s] at random places of all normal images, or of those at ``places``."""
    side, found = window_side(settings), []
    for place in range(source.count) if places is None else places:
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


def tiles_of(image: Tensor, settings: Tiled, batch: int) -> Iterator[tuple[list[tuple[int, int]], Tensor]]:
    """Tiles of an image [3,H,W], at most ``batch`` at once: their (top, left), and [n,3,s,s] for the network."""
    side = window_side(settings)
    height, width = int(image.shape[-2]), int(image.shape[-1])
    places = [(top, left) for top in tile_starts(height, side) for left in tile_starts(width, side)]
    for start in range(0, len(places), batch):
        some = places[start : start + batch]
        yield some, resize_image(torch.stack([_cut(image, list(place), side) for place in some]), settings.size)


def score_tiles(score: Callable[[Tensor], Tensor], image: Tensor, settings: Tiled, batch: int) -> Tensor:
    """Score map [H,W] of an image [3,H,W]: tiles scored at the network's size, stitched at the image's.

    score: images [n,3,s,s] to score maps [n,s,s].
    """
    side = window_side(settings)
    height, width = int(image.shape[-2]), int(image.shape[-1])
    total, weights = torch.zeros(height, width), torch.zeros(height, width)
    ramp = torch.minimum(torch.arange(side) + 1, side - torch.arange(side)).float() / side
    weight = ramp[:, None] * ramp[None]
    for some, tiles in tiles_of(image, settings, batch):
        maps = score(tiles)
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
    settings: Tiled,
    batch: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Score map [H,W] and mask [H,W] of each test image at its own size, one at a time."""
    for place in range(tests.count):
        images, masks = tests.read(place, place + 1, 0)
        yield score_tiles(score, images[0], settings, batch), masks[0, 0]
