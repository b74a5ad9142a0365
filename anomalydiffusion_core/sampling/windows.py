"""Windows around masks: sample a part of the image at another size, put it back where it came from.

Where the embedding says at which scale it was trained, a window has that scale: small defects on large images are
enlarged, huge ones reduced, and the cost depends on the defect alone. Otherwise only masks of few latent cells get a
window, enlarged to the resolution the model knows. Masks that are long, and thinner than can be drawn at that scale,
get several windows along them, of a size that follows from how thick they are. Only geometry is here; the pixel
composite (``blending.composite``) still decides which pixels may change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.images import resize_image
from ..data.mask_resizing import resize_mask
from ..errors import InputError
from ..options import Settings, option
from ..scale import TrainedView, covering_scale
from .blending import check_mask, latent_mask, pad_mask_to_multiple

CROP_MODES = ("auto", "off", "always")


@dataclass(frozen=True)
class CropSettings(Settings):
    """When and how to sample in a window around the mask."""

    crop: str = option(
        CROP_MODES[0],
        "Sample a window around the mask and put it back. auto samples at the scale of the training; where the "
        "embedding does not know it, it enlarges masks that touch fewer latent cells than crop_cells. Long masks "
        "of a pixel are sampled tile by tile. always enlarges every mask, off none.",
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


THIN = 2.0
"""Sampled pixels that a mask should be thick: of a thinner line, half of the effect is lost on images larger than the
model knows (15 in place of 28 of 255 for 1 px on 512 px, 26 with tiles)."""
MOST_TILES = 64
"""Windows along one mask; longer ones get larger windows."""
TILE_OVERLAP = 4
"""One part in so many of a tile's side is shared with the next one."""
LARGEST_WINDOW = 2.0
"""Largest side of what is sampled for one mask, in trained sides; larger masks are sampled at a coarser scale."""


@dataclass(frozen=True)
class Window:
    """A part of an image, in its pixels, and the size (height, width) at which that part is sampled.

    tiles: as how many windows, where it stands for several.
    """

    top: int
    left: int
    height: int
    width: int
    sampled: tuple[int, int]
    tiles: int = 1

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Top, left, height and width."""
        return (self.top, self.left, self.height, self.width)

    @property
    def scale(self) -> float:
        """Image pixels per sampled pixel."""
        return math.sqrt(self.height * self.width / (self.sampled[0] * self.sampled[1]))


def plan_windows(
    mask: Tensor, settings: CropSettings, downscale: int, view: TrainedView | None = None
) -> list[Window]:
    """The windows of one mask [1, H, W] of {0, 1}: none where the whole image is sampled at its own size.

    Several are tiles along a mask that is long and thin; together they cover it. view: how the defect was looked at in
    training, None where that is not known. Windows are moved inwards at the image's borders; a single one is never
    smaller than the mask's bounding box. ``downscale``: pixels per latent cell along one side. Raises InputError for
    an empty or grey mask.
    """
    check_mask(mask[None])
    if settings.crop == "off":
        return []
    if view is not None and settings.crop == "auto":
        return _at_scale(mask, settings, downscale, view)
    spans, zoom_to = mask_box(mask), settings.crop_size
    if settings.crop == "auto" and _touched(mask, downscale) >= settings.crop_cells:
        if not _thin(mask, 1.0):
            return []
        side = 1 + 2 * settings.crop_margin
        return _tiles(mask, (side, side), max(zoom_to / side, 1.0))
    side = max(stop - start for start, stop in spans) + 2 * settings.crop_margin
    starts, lengths = _placed(spans, (side, side), mask.shape[-2:])
    zoom = max(zoom_to / max(lengths), 1.0)
    sampled = (max(round(lengths[0] * zoom), 1), max(round(lengths[1] * zoom), 1))
    return _unless_whole(starts, lengths, sampled, mask)


def _at_scale(mask: Tensor, settings: CropSettings, downscale: int, view: TrainedView) -> list[Window]:
    """The windows of one mask at the scale it was trained at."""
    height, width = int(mask.shape[-2]), int(mask.shape[-1])
    canvas, spans = (view.height, view.width), mask_box(mask)
    if not view.windows:
        scale = covering_scale((height, width), canvas)
        sampled = (max(round(height / scale), 1), max(round(width / scale), 1))
        few = _touched(resize_mask(mask[None], sampled)[0], downscale) < settings.crop_cells
        closest = view.low / view.scale
        if not few or closest >= 1:
            return _unless_whole((0, 0), (height, width), sampled, mask)
        # As near as the training's augmentation came.
        scale *= closest
    else:
        scale = view.scale
    wanted, most = [], 1.0
    for (start, stop), side in zip(spans, canvas, strict=True):
        need = stop - start + 2 * min(settings.crop_margin, round(scale * downscale))
        wanted.append(max(round(scale * side), need))
        most = max(most, need / (scale * side * LARGEST_WINDOW))
    if most > 1 and not settings.crop_size and _thin(mask, scale * most):
        # One window of it all would be coarser than what was learned, and the mask too thin to be drawn there.
        return _tiles(mask, (max(round(scale * canvas[0]), 1), max(round(scale * canvas[1]), 1)), 1 / scale)
    starts, lengths = _placed(spans, (wanted[0], wanted[1]), (height, width))
    zoom = 1 / (scale * most)
    if settings.crop_size:
        zoom = settings.crop_size / max(lengths)
    sampled = (max(round(lengths[0] * zoom), 1), max(round(lengths[1] * zoom), 1))
    return _unless_whole(starts, lengths, sampled, mask)


def _thin(mask: Tensor, scale: float) -> bool:
    """Whether a mask is nowhere THIN sampled pixels thick, at ``scale`` image pixels per sampled pixel."""
    block = math.ceil(THIN * scale - 1e-6)
    if block < 2 or block > min(mask.shape[-2:]):
        return block > 1
    return not bool((F.max_pool2d(1 - mask[None], block, stride=1) == 0).any())


def _tiles(mask: Tensor, sides: tuple[int, int], zoom: float) -> list[Window]:
    """Windows of these sides (height, width) around all parts of a mask, enlarged by ``zoom``."""
    (top, bottom), (left, right) = mask_box(mask)
    steps = [max(side - side // TILE_OVERLAP, 1) for side in sides]
    found = []
    for y in range(top, bottom, steps[0]):
        for x in range(left, right, steps[1]):
            part = mask[:, y : min(y + steps[0], bottom), x : min(x + steps[1], right)]
            if not part.any():
                continue
            (first, last), (start, stop) = mask_box(part)
            starts, lengths = _placed([(y + first, y + last), (x + start, x + stop)], sides, mask.shape[-2:])
            sampled = (max(round(lengths[0] * zoom), 1), max(round(lengths[1] * zoom), 1))
            found.append(Window(*starts, *lengths, sampled))
    found = list(dict.fromkeys(found))
    if len(found) <= MOST_TILES:
        return found
    grown = (math.ceil(sides[0] * math.sqrt(2)), math.ceil(sides[1] * math.sqrt(2)))
    return _tiles(mask, grown, zoom * sides[0] / grown[0])


def around(windows: Sequence[Window]) -> Window | None:
    """What stands for all windows of a mask: the box around them, at their scale; None for no window."""
    if len(windows) < 2:
        return windows[0] if windows else None
    top, left = min(one.top for one in windows), min(one.left for one in windows)
    height = max(one.top + one.height for one in windows) - top
    width = max(one.left + one.width for one in windows) - left
    scale = windows[0].scale
    return Window(top, left, height, width, (round(height / scale), round(width / scale)), len(windows))


def mask_box(mask: Tensor) -> list[tuple[int, int]]:
    """First row and the one after the last, and the same for columns, of a mask [1, H, W] that is not empty."""
    spans = []
    for axis in (1, 0):  # what is left when the other axis is reduced
        marked = mask[0].amax(dim=axis).nonzero().flatten()
        spans.append((int(marked[0]), int(marked[-1]) + 1))
    return spans


def _placed(
    spans: Sequence[tuple[int, int]], wanted: tuple[int, int], sides: Sequence[int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Starts and lengths of a window of the ``wanted`` size about a box, inside the image."""
    starts, lengths = [], []
    for (start, stop), side, limit in zip(spans, wanted, sides, strict=True):
        length = min(side, limit)
        starts.append(min(max((start + stop - length) // 2, 0), limit - length))
        lengths.append(length)
    return (starts[0], starts[1]), (lengths[0], lengths[1])


def _unless_whole(
    starts: tuple[int, int], lengths: tuple[int, int], sampled: tuple[int, int], mask: Tensor
) -> list[Window]:
    if sampled == lengths == tuple(mask.shape[-2:]):
        return []
    return [Window(*starts, *lengths, sampled)]


def _touched(mask: Tensor, downscale: int) -> int:
    return int(latent_mask(pad_mask_to_multiple(mask[None], downscale), downscale).sum())


def cut_image(image: Tensor, window: Window) -> Tensor:
    """The window of an image [3, H, W] in [0, 1] at its sampled size: bicubic to enlarge, averaged to reduce."""
    part = cut(image, window.box)[None]
    if part.shape[-2:] == window.sampled:
        return part[0]
    if window.scale > 1:
        return resize_image(part, window.sampled)[0]
    return F.interpolate(part, size=window.sampled, mode="bicubic", align_corners=False).clamp(0, 1)[0]


def cut_mask(mask: Tensor, window: Window) -> Tensor:
    """The window of a mask [1, H, W] at its sampled size, still exactly {0, 1}; no part of it is lost."""
    part = cut(mask, window.box)[None]
    if window.scale > 1:
        return resize_mask(part, window.sampled)[0]
    return F.interpolate(part, size=window.sampled, mode="nearest-exact")[0]


def stitch(part: Tensor, image: Tensor, window: Window, box: tuple[int, int, int, int] | None = None) -> Tensor:
    """A copy of the image [3, H, W] with ``part`` [3, *window.sampled] in its window; bit-identical around it.

    box: top, left, height and width of what is returned, by default all.
    """
    if part.shape[-2:] != window.sampled:
        raise InputError(
            f"crop: the part has {tuple(part.shape[-2:])} px, its window was sampled at {window.sampled}. "
            "Stitch what was sampled for this window."
        )
    size = (window.height, window.width)
    if tuple(part.shape[-2:]) != size:
        part = F.interpolate(part[None], size=size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)[0]
    top, left, height, width = box or (0, 0, *image.shape[-2:])
    result = cut(image, (top, left, height, width)).clone()
    first, last = max(window.top, top), min(window.top + window.height, top + height)
    start, stop = max(window.left, left), min(window.left + window.width, left + width)
    shared = (slice(first - window.top, last - window.top), slice(start - window.left, stop - window.left))
    result[:, first - top : last - top, start - left : stop - left] = part[:, shared[0], shared[1]]
    return result


def join(parts: Sequence[Tensor], image: Tensor, windows: Sequence[Window], box: tuple[int, int, int, int]) -> Tensor:
    """The image [3, H, W] in a box with all ``parts`` in their windows, faded into each other where these overlap.

    parts: [3, *window.sampled] each. What no window covers is bit-identical.
    """
    top, left, height, width = box
    result = cut(image, box).clone()
    total, weights = torch.zeros_like(result), torch.zeros_like(result[:1])
    for part, window in zip(parts, windows, strict=True):
        first, start = max(window.top, top), max(window.left, left)
        last, stop = min(window.top + window.height, top + height), min(window.left + window.width, left + width)
        if first >= last or start >= stop:
            continue
        drawn = stitch(part, image, window, (first, start, last - first, stop - start))
        rows, columns = (_ramp(side) for side in (window.height, window.width))
        weight = (rows[first - window.top : last - window.top, None] * columns[start - window.left :][: stop - start])[
            None
        ].to(result)
        place = (slice(None), slice(first - top, last - top), slice(start - left, stop - left))
        total[place] += drawn * weight
        weights[place] += weight
    return torch.where(weights > 0, total / weights.clamp_min(1e-12), result)


def _ramp(side: int) -> Tensor:
    """Weights [side] in (0, 1]: 1 in the middle of a tile, falling towards its ends over what tiles share."""
    places = torch.arange(side) + 1
    return (torch.minimum(places, side + 1 - places) / max(side // TILE_OVERLAP, 1)).clamp_max(1)


def cut(image: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """The part of an image or mask [C, H, W] in a box: top, left, height, width. It shares memory with the image."""
    top, left, height, width = box
    return image[:, top : top + height, left : left + width]
