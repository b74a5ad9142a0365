"""Random crop, translation and rotation of an image and its mask together (paper, section 4.1).

A label must never disagree with its image, and an anomaly must never leave the frame. Both hold by construction:
the image and the mask go through one and the same map, and the crop window is drawn among those that contain the
whole rotated anomaly. Where the window reaches beyond the image both are mirrored at the border, so that a mirrored
defect is a labelled defect.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.mask_resizing import skeleton
from ..data.training import View
from ..errors import InputError
from ..sampling.blending import check_mask


@dataclass(frozen=True)
class AugmentSettings:
    """Ranges of the random map.

    max_degrees: rotation, drawn from both directions alike. min_scale, max_scale: side of the crop window as a share
    of the view's frame. overhang: how far the window may reach beyond the image, as a share of the window's side (this
    is what makes a translation). flips: mirror left-right and up-down with probability 1/2 each. mirror: beyond the
    image lies its mirror image, else nothing, which is right for images of masks.
    """

    max_degrees: float = 15.0
    min_scale: float = 0.7
    max_scale: float = 1.0
    overhang: float = 0.08
    flips: bool = False
    mirror: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.min_scale <= self.max_scale:
            raise InputError(f"min_scale: {self.min_scale} is not in 0 to max_scale ({self.max_scale}). Lower it.")
        if not 0 <= self.max_degrees <= 180 or not 0 <= self.overhang < 0.5:
            raise InputError(
                f"augmentation: max_degrees {self.max_degrees} must be 0 to 180 and overhang {self.overhang} 0 to 0.5."
            )


WINDOW_MOVES = AugmentSettings(min_scale=0.9, max_scale=1.1, overhang=0.0)
"""For windows around defects: the scale is nearly kept, and what is around a window is known."""
MASK_MOVES = AugmentSettings(min_scale=1.0, max_scale=1.0, mirror=False)
"""For masks that are learned as images: moved and turned, but not zoomed, so that their areas stay those of the
real ones."""


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _window_start(
    generator: torch.Generator, length: float, side: float, low: float, high: float, slack: float
) -> float:
    """Start of a window of ``length`` that contains [low, high], near the image's [0, side] where it can be."""
    first, last = high - length, low
    near_first, near_last = -slack, side - length + slack
    start_first = min(max(first, near_first), last)
    start_last = max(min(last, near_last), start_first)
    return _uniform(generator, start_first, start_last)


def _rotated_extent(mask: Tensor, angle: float) -> tuple[float, float, float, float]:
    """Left, right, top, bottom of the mask's pixels, taken as unit squares, turned by ``angle`` about the centre."""
    height, width = mask.shape[-2:]
    rows, columns = mask.reshape(height, width).nonzero(as_tuple=True)
    x = torch.stack([columns, columns + 1, columns, columns + 1]).double() - width / 2
    y = torch.stack([rows, rows, rows + 1, rows + 1]).double() - height / 2
    cos, sin = math.cos(angle), math.sin(angle)
    turned_x = cos * x + sin * y + width / 2
    turned_y = -sin * x + cos * y + height / 2
    return float(turned_x.min()), float(turned_x.max()), float(turned_y.min()), float(turned_y.max())


@dataclass(frozen=True)
class _Map:
    """Where an output pixel comes from: a window of the image turned by ``angle`` about its centre."""

    angle: float
    left: float
    top: float
    window_width: float
    window_height: float
    height: int
    width: int
    flip_x: bool
    flip_y: bool

    def step(self, size: tuple[int, int]) -> float:
        """Image pixels per output pixel of a result of ``size`` (height, width)."""
        return max(self.window_height / size[0], self.window_width / size[1])

    def grid(self, rows: int, columns: int) -> Tensor:
        """Sampling positions [1, rows, columns, 2] in grid_sample's units (align_corners False)."""
        u = (torch.arange(columns, dtype=torch.float64) + 0.5) / columns
        v = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
        u = 1 - u if self.flip_x else u
        v = 1 - v if self.flip_y else v
        y, x = torch.meshgrid(
            self.top + v * self.window_height - self.height / 2,
            self.left + u * self.window_width - self.width / 2,
            indexing="ij",
        )
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        source_x, source_y = cos * x - sin * y, sin * x + cos * y
        grid = torch.stack([source_x * 2 / self.width, source_y * 2 / self.height], dim=-1)
        return grid.float()[None]


def _draw_map(view: View, generator: torch.Generator, settings: AugmentSettings) -> _Map:
    height, width = view.mask.shape[-2:]
    _, _, high, wide = view.frame
    limit = math.radians(settings.max_degrees)
    angle = _uniform(generator, -limit, limit)
    scale = _uniform(generator, settings.min_scale, settings.max_scale)
    flip_x = settings.flips and _uniform(generator, 0, 1) < 0.5
    flip_y = settings.flips and _uniform(generator, 0, 1) < 0.5
    left, right, top, bottom = _rotated_extent(view.kept, angle)
    if not settings.mirror and (right - left > wide or bottom - top > high):
        # Turned it does not fit, and a larger window would make it smaller.
        angle, (left, right, top, bottom) = 0.0, _rotated_extent(view.kept, 0.0)
    # One source pixel of air on every side: the extent then stays inside after rounding to output pixels.
    air = 1 if settings.mirror else 0
    left, right, top, bottom = left - air, right + air, top - air, bottom + air
    scale = max(scale, (right - left) / wide, (bottom - top) / high)
    window_width, window_height = scale * wide, scale * high
    start_x = _window_start(generator, window_width, width, left, right, settings.overhang * window_width)
    start_y = _window_start(generator, window_height, height, top, bottom, settings.overhang * window_height)
    return _Map(angle, start_x, start_y, window_width, window_height, height, width, flip_x, flip_y)


def _resample_mask(mask: Tensor, where: _Map, size: tuple[int, int], mirror: bool) -> Tensor:
    """The rule of `resize_mask` for any map: the majority of each output cell, and what the skeleton touches.

    Nearest sampling, dense enough to hit every mask pixel.
    """
    thin = torch.from_numpy(skeleton(mask[0, 0].numpy() > 0)).to(mask)[None, None]
    dense = max(1, math.ceil(where.step(size) * math.sqrt(2)))
    hits = F.grid_sample(
        torch.cat([mask, thin], dim=1),
        where.grid(size[0] * dense, size[1] * dense),
        mode="nearest",
        padding_mode=_beyond(mirror),
        align_corners=False,
    )
    share = F.avg_pool2d(hits, dense)
    return ((share[:, :1] >= 0.5) | (share[:, 1:] > 0)).to(mask.dtype)


def _resample_image(image: Tensor, where: _Map, size: tuple[int, int], mirror: bool) -> Tensor:
    # Sampled densely and averaged where the window shrinks, so that fine grain does not alias.
    dense = max(1, math.ceil(where.step(size) - 0.5))
    grid = where.grid(size[0] * dense, size[1] * dense)
    image = F.grid_sample(image, grid, mode="bilinear", padding_mode=_beyond(mirror), align_corners=False)
    return F.avg_pool2d(image, dense).clamp(0, 1)


def _beyond(mirror: bool) -> str:
    """What `grid_sample` finds beyond the border."""
    return "reflection" if mirror else "zeros"


def augment_view(
    view: View, generator: torch.Generator, canvas: tuple[int, int], settings: AugmentSettings | None = None
) -> tuple[Tensor, Tensor]:
    """One random crop, translation and rotation of a view; what must be kept stays in the frame, the aspect too.

    Image float [3, H, W] in [0, 1] and mask [1, H, W] of exactly {0, 1} and not empty, both on the CPU, give
    [3, h, w] and [1, h, w] for a canvas (h, w), the mask again exactly {0, 1} and never empty. An anomaly larger than
    the drawn window enlarges the window. Same generator state, same result. Raises InputError for other values.
    """
    check_mask(view.mask[None])
    own = settings or AugmentSettings()
    where = _draw_map(view, generator, own)
    images = _resample_image(view.image[None], where, canvas, own.mirror)
    return images[0], _resample_mask(view.mask[None], where, canvas, own.mirror)[0]
