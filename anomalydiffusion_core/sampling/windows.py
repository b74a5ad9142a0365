"""Windows around small masks: sample an enlarged part of the picture, put it back where it came from.

A defect of a few latent cells is too small for the model to draw. Cut out with some context and enlarged to the
resolution the model knows, it covers enough cells; the result is made small again and put back. Only geometry is
here; the pixel composite (``blending.composite``) still decides which pixels may change.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .blending import check_mask, latent_mask, pad_mask_to_multiple

CROP_MODES = ("auto", "off", "always")


@dataclass(frozen=True)
class CropSettings:
    """When and how to crop.

    mode: ``auto`` crops around masks that touch fewer than ``cells`` latent cells, ``always`` around every mask.
    margin: context on every side of the mask's bounding box, in pixels of the picture.
    resolution: the longer side of the window is enlarged to this many pixels; a window that is larger stays as it is.
    """

    mode: str = "auto"
    cells: int = 8
    margin: int = 32
    resolution: int = 512

    def __post_init__(self) -> None:
        if self.mode not in CROP_MODES:
            raise InputError(f"crop: there is no {self.mode!r}. Choose one of {', '.join(CROP_MODES)}.")
        if self.cells < 0 or self.margin < 0:
            raise InputError(f"crop_cells, crop_margin: {self.cells} and {self.margin}. Give 0 or more of each.")
        if self.resolution < 8:
            raise InputError(f"crop_size: {self.resolution} px is too small to sample at. Give 256 or 512, say.")


@dataclass(frozen=True)
class Window:
    """A part of a picture, in its pixels, and the size (height, width) at which that part is sampled."""

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
    """The window for one mask [1, H, W] of {0, 1}, or None where the whole picture is sampled at its own size.

    Square where the picture has room, moved inwards at its borders, never smaller than the mask's bounding box, and
    never shrunk. ``downscale``: pixels per latent cell along one side. Raises InputError for an empty or grey mask.
    """
    check_mask(mask[None])
    if settings.mode == "off":
        return None
    touched = int(latent_mask(pad_mask_to_multiple(mask[None], downscale), downscale).sum())
    if settings.mode == "auto" and touched >= settings.cells:
        return None
    sides = tuple(mask.shape[-2:])
    spans = []
    for axis in (1, 0):  # what is left when the other axis is reduced
        marked = mask[0].amax(dim=axis).nonzero().flatten()
        spans.append((int(marked[0]), int(marked[-1]) + 1))
    side = max(stop - start for start, stop in spans) + 2 * settings.margin
    starts, lengths = [], []
    for (start, stop), limit in zip(spans, sides, strict=True):
        length = min(side, limit)
        starts.append(min(max((start + stop - length) // 2, 0), limit - length))
        lengths.append(length)
    zoom = max(settings.resolution / max(lengths), 1.0)
    sampled = (max(round(lengths[0] * zoom), 1), max(round(lengths[1] * zoom), 1))
    if sampled == sides:
        return None
    return Window(starts[0], starts[1], lengths[0], lengths[1], sampled)


def cut_picture(image: Tensor, window: Window) -> Tensor:
    """The window of a picture [3, H, W] in [0, 1] at its sampled size, enlarged bicubically."""
    part = _part(image, window)[None]
    if part.shape[-2:] == window.sampled:
        return part[0]
    return F.interpolate(part, size=window.sampled, mode="bicubic", align_corners=False).clamp(0, 1)[0]


def cut_mask(mask: Tensor, window: Window) -> Tensor:
    """The window of a mask [1, H, W] at its sampled size, still exactly {0, 1}; no marked pixel is lost."""
    return F.interpolate(_part(mask, window)[None], size=window.sampled, mode="nearest-exact")[0]


def stitch(part: Tensor, image: Tensor, window: Window) -> Tensor:
    """A copy of the picture [3, H, W] with ``part`` [3, *window.sampled] in its window; bit-identical around it."""
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


def common_windows(cells: Tensor, margin: int) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Windows of one size around masks [B, 1, h, w], none empty: their corners (top, left), and that (height, width).

    Each holds its mask with ``margin`` cells around it, as far as the map has them.
    """
    sides = tuple(cells.shape[-2:])
    boxes = []
    for mask in cells[:, 0] > 0:
        marked = [mask.any(dim=axis).nonzero().flatten() for axis in (1, 0)]
        boxes.append([(int(places[0]), int(places[-1]) + 1) for places in marked])
    lengths = [min(max(box[axis][1] - box[axis][0] for box in boxes) + 2 * margin, sides[axis]) for axis in range(2)]
    corners = []
    for box in boxes:
        starts = [
            min(max((box[axis][0] + box[axis][1] - lengths[axis]) // 2, 0), sides[axis] - lengths[axis])
            for axis in range(2)
        ]
        corners.append((starts[0], starts[1]))
    return corners, (lengths[0], lengths[1])
