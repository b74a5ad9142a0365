"""Masks kept as shapes with a place, so that thousands of them on huge images take little memory, and put into images.

A shape has the size in image pixels that the defect has. On an image of another size it stays so large and goes to
the same relative place; what is larger than the image is made smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.mask_resizing import resize_mask
from ..data.training import covering_frame
from ..sampling.windows import mask_box
from ..scale import TrainedView


@dataclass(frozen=True)
class FramedMask:
    """The box of a mask: pixels bool [h, w] at (top, left) of an image of ``size`` (height, width)."""

    pixels: NDArray[np.bool_]
    top: int
    left: int
    size: tuple[int, int]

    @classmethod
    def of(cls, mask: Tensor) -> FramedMask:
        """A mask [1, H, W] of {0, 1} that is not empty."""
        (top, bottom), (left, right) = mask_box(mask)
        return cls(mask[0, top:bottom, left:right].numpy() > 0, top, left, (int(mask.shape[-2]), int(mask.shape[-1])))

    def on(self, size: tuple[int, int]) -> Tensor:
        """The mask [1, 1, H, W] on an image of another (height, width), at the same relative place."""
        pixels, sides = self.pixels, self.pixels.shape
        if sides[0] > size[0] or sides[1] > size[1]:
            factor = min(size[0] / sides[0], size[1] / sides[1])
            fitted = (max(int(sides[0] * factor), 1), max(int(sides[1] * factor), 1))
            pixels = resize_mask(torch.from_numpy(pixels).float()[None, None], fitted)[0, 0].numpy() > 0
        starts = []
        for start, side, own, have in zip((self.top, self.left), pixels.shape, self.size, size, strict=True):
            room, new = max(own - side, 0), have - side
            starts.append(round(new * min(start / room, 1.0)) if room else new // 2)
        mask = torch.zeros(1, 1, *size)
        top, left = starts
        mask[0, 0, top : top + pixels.shape[0], left : left + pixels.shape[1]] = torch.from_numpy(pixels).float()
        return mask


def put_on(shapes: Sequence[FramedMask], size: Sequence[int]) -> Tensor:
    """Masks [N, 1, H, W] of {0, 1} on images of ``size`` (height, width)."""
    return torch.cat([shape.on((int(size[0]), int(size[1]))) for shape in shapes])


def on_whole_images(
    masks: Sequence[Tensor], view: TrainedView | None, size: tuple[int, int], seed: int
) -> list[FramedMask]:
    """Masks [1, h, w] of a mask embedding as shapes on images of ``size`` (height, width).

    view: what the embedding's training looked at. Masks of whole images keep their aspect and their place, as the
    training's canvas covered the images; what lies beyond the border there is moved inside. Those of windows have the
    size they had in the training, in image pixels, at random places (`scattered`).
    """
    if view is not None and view.windows:
        return scattered(masks, size, view.scale, seed)
    found = []
    for mask in masks:
        frame = covering_frame(size, (int(mask.shape[-2]), int(mask.shape[-1])))
        own = FramedMask.of(resize_mask(mask[None], (frame.height, frame.width))[0])
        starts = []
        for start, offset, side, length in zip(
            (own.top, own.left), (frame.top, frame.left), own.pixels.shape, size, strict=True
        ):
            starts.append(min(max(start + offset, 0), max(length - side, 0)))
        found.append(FramedMask(own.pixels, starts[0], starts[1], size))
    return found


def scattered(masks: Sequence[Tensor], size: tuple[int, int], scale: float, seed: int) -> list[FramedMask]:
    """Shapes of masks [1, h, w] drawn in windows of ``scale`` image pixels per pixel, at random places of images.

    size: (height, width) of the images. Shape i depends on ``seed + i`` alone.
    """
    found = []
    for number, mask in enumerate(masks):
        own = FramedMask.of(mask)
        sides = [max(round(side * scale), 1) for side in own.pixels.shape]
        pixels = resize_mask(torch.from_numpy(own.pixels).float()[None, None], (sides[0], sides[1]))[0, 0].numpy() > 0
        random = np.random.default_rng(seed + number)
        places = [int(random.integers(max(have - side, 0) + 1)) for have, side in zip(size, sides, strict=True)]
        found.append(FramedMask(pixels, places[0], places[1], size))
    return found
