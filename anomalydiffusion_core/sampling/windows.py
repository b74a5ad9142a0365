"""Windows around small masks: sample an enlarged part of the image, put it back where it came from.

A defect of a few latent cells is too small for the model to generate. Cut out with some context and enlarged to the
resolution the model knows, it covers enough cells; the result is made small again and put back. Only geometry is
here; the pixel composite (``blending.composite``) still decides which pixels may change.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..options import Settings, option
from .blending import check_mask, latent_mask, pad_mask_to_multiple

CROP_MODES = ("auto", "off", "always")


@dataclass(frozen=True)
class CropSettings(Settings):
    """When and how to sample in a window around the mask."""

    crop: str = option(
        CROP_MODES[0],
        "Sample an enlarged window around the mask and put it back. auto does so for masks that touch fewer latent "
        "cells than crop_cells, always for every mask.",
        choices=CROP_MODES,
    )
    crop_cells: int = option(
        8,
        "With crop auto: masks that touch fewer latent cells (8 x 8 pixels each) are enlarged.",
        min=0,
        max=4096,
    )
    crop_margin: int = option(
        32, "Context in pixels of the image on every side of the mask in its window.", min=0, max=4096
    )
    crop_size: int = option(
        0,
        "Resolution in pixels at which windows are sampled; larger windows stay as they are. 0 uses the resolution "
        "that the embedding was trained at.",
        min=0,
        max=4096,
        step=8,
    )


@dataclass(frozen=True)
class Window:
    """A part of a image, in its pixels, and the size (height, width) at which that part is sampled."""

    top: int
    left: int
    height: int
    width: int
    sampled: tuple[int, int]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Top, left, height and width."""
        return (self.top, self.left, self.height, self.width)


def plan_window(mask: Tensor, settings: CropSettings, downscale: int) -> Window | None:
    """The window for one mask [1, H, W] of {0, 1}, or None where the whole image is sampled at its own size.

    Square where the image has room, moved inwards at its borders, never smaller than the mask's bounding box, and
    never shrunk. ``downscale``: pixels per latent cell along one side. Raises InputError for an empty or grey mask.
    """
    check_mask(mask[None])
    if settings.crop == "off":
        return None
    touched = int(latent_mask(pad_mask_to_multiple(mask[None], downscale), downscale).sum())
    if settings.crop == "auto" and touched >= settings.crop_cells:
        return None
    sides = tuple(mask.shape[-2:])
    spans = []
    for axis in (1, 0):  # what is left when the other axis is reduced
        marked = mask[0].amax(dim=axis).nonzero().flatten()
        spans.append((int(marked[0]), int(marked[-1]) + 1))
    side = max(stop - start for start, stop in spans) + 2 * settings.crop_margin
    starts, lengths = [], []
    for (start, stop), limit in zip(spans, sides, strict=True):
        length = min(side, limit)
        starts.append(min(max((start + stop - length) // 2, 0), limit - length))
        lengths.append(length)
    zoom = max(settings.crop_size / max(lengths), 1.0)
    sampled = (max(round(lengths[0] * zoom), 1), max(round(lengths[1] * zoom), 1))
    if sampled == sides:
        return None
    return Window(starts[0], starts[1], lengths[0], lengths[1], sampled)


def cut_image(image: Tensor, window: Window) -> Tensor:
    """The window of a image [3, H, W] in [0, 1] at its sampled size, enlarged bicubically."""
    part = _part(image, window)[None]
    if part.shape[-2:] == window.sampled:
        return part[0]
    return F.interpolate(part, size=window.sampled, mode="bicubic", align_corners=False).clamp(0, 1)[0]


def cut_mask(mask: Tensor, window: Window) -> Tensor:
    """The window of a mask [1, H, W] at its sampled size, still exactly {0, 1}; no marked pixel is lost."""
    return F.interpolate(_part(mask, window)[None], size=window.sampled, mode="nearest-exact")[0]


def stitch(part: Tensor, image: Tensor, window: Window) -> Tensor:
    """A copy of the image [3, H, W] with ``part`` [3, *window.sampled] in its window; bit-identical around it."""
    if part.shape[-2:] != window.sampled:
        raise InputError(
            f"crop: the part has {tuple(part.shape[-2:])} px, its window was sampled at {window.sampled}. "
            "Stitch what was sampled for this window."
        )
    result = image.clone()
    size = (window.height, window.width)
    if tuple(part.shape[-2:]) != size:
        part = F.interpolate(part[None], size=size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)[0]
    _part(result, window).copy_(part)
    return result


def _part(image: Tensor, window: Window) -> Tensor:
    return image[:, window.top : window.top + window.height, window.left : window.left + window.width]
