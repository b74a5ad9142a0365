"""The scale that defects are learned and drawn at: image pixels per trained pixel.

A training looks at whole images, made smaller to a canvas of about its resolution without changing their aspect, or
through windows around each defect at one scale. The bundle records which, and sampling draws the same way.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WHOLE, WINDOWS, AUTO = "whole image", "windows", "auto"
VIEWS = (AUTO, WHOLE, WINDOWS)
CELL = 8
"""Pixels per latent cell of Stable Diffusion, and the grid that canvases lie on."""
SPANNED_CELLS = 6
"""Latent cells that a defect should span at least: with fewer its shape is lost in the autoencoder."""
SPANNED_SHARES = (0.2, 0.4)
"""Least and largest share of the window that the usual defect should span; the rest is context."""
LARGEST_SHARE = 0.75
"""Nine of ten defects span at most this share of the window."""
LARGEST_ZOOM = 8.0
"""No image pixel is learned as more trained pixels a side: there is nothing to see in them."""
REDUCED = 1.25
"""Whole images that are made smaller than this shrink no defect out of sight, so there windows are not proposed."""
WORTH = 0.6
"""Windows are proposed where whole images would be learned at a scale so much coarser than the useful one."""
LARGEST_SIDE = 100_000
"""Of images, in pixels."""
TOLERANCE = 1.1
"""Scales within this factor of what was trained agree with it."""


@dataclass(frozen=True)
class TrainedView:
    """How a defect type was looked at.

    height, width: trained pixels. scale: image pixels per trained pixel, the median of all training images; low, high:
    its range over all of them, augmented ones too. context: median distance in image pixels between a defect and the
    border of what was looked at. images: (height, width) of the training images, the median.
    """

    windows: bool
    height: int
    width: int
    scale: float
    low: float
    high: float
    context: float = 0.0
    images: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        """WHOLE or WINDOWS."""
        return WINDOWS if self.windows else WHOLE

    def agrees(self, scale: float) -> bool:
        """Whether defects were learned at about this scale."""
        return self.low / TOLERANCE <= scale <= self.high * TOLERANCE

    def text(self) -> str:
        """On one line."""
        return (
            f"{self.name} of {self.width}x{self.height} px, {self.scale:.3g} image pixels per trained pixel "
            f"({self.low:.3g} to {self.high:.3g}), {self.context:.0f} px of context"
        )

    def record(self) -> dict[str, Any]:
        """Plain values, for a bundle."""
        return {
            "view": self.name,
            "size": [self.height, self.width],
            "scale": round(self.scale, 5),
            "spread": [round(self.low, 5), round(self.high, 5)],
            "context": round(self.context, 1),
            "images": list(self.images),
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any] | None) -> TrainedView | None:
        """What `record` wrote; None for a bundle from before scales were recorded.

        Raises KeyError, TypeError or ValueError for anything else.
        """
        if not record:
            return None
        (height, width), (low, high), (tall, wide) = record["size"], record["spread"], record["images"]
        scale, context = float(record["scale"]), float(record["context"])
        sides = [int(side) for side in (height, width, tall, wide)]
        known = (
            record["view"] in (WHOLE, WINDOWS)
            and all(0 <= side <= LARGEST_SIDE for side in sides)
            and min(sides[:2]) > 0
        )
        if not known or not 0 < float(low) <= scale <= float(high) < LARGEST_SIDE or not 0 <= context < LARGEST_SIDE:
            raise ValueError(f"{record}")
        windows = record["view"] == WINDOWS
        return cls(windows, sides[0], sides[1], scale, float(low), float(high), context, (sides[2], sides[3]))


def whole_canvas(sizes: Sequence[tuple[int, int]], resolution: int) -> tuple[int, int]:
    """(height, width) at which whole images of these sizes are learned: their median aspect, the area of a square.

    Both are multiples of CELL. A square of ``resolution`` for square images.
    """
    aspect = statistics.median(width / height for height, width in sizes)
    sides = (resolution / math.sqrt(aspect), resolution * math.sqrt(aspect))
    height, width = (max(CELL * round(side / CELL), 4 * CELL) for side in sides)
    return (resolution, resolution) if abs(aspect - 1) < 1e-9 else (height, width)


def covering_scale(size: tuple[int, int], canvas: tuple[int, int]) -> float:
    """Image pixels per canvas pixel at which an image of ``size`` (height, width) just fits into the canvas."""
    return max(size[0] / canvas[0], size[1] / canvas[1])


def window_scale(spans: Sequence[float], resolution: int) -> float:
    """The scale for windows of ``resolution`` at which defects of these longest sides in pixels are learned well.

    The median defect spans SPANNED_CELLS or a fifth of the window, whichever is more, and nine of ten fit in.
    """
    least, most = (share * resolution for share in SPANNED_SHARES)
    wanted = min(max(SPANNED_CELLS * CELL, least), most)
    ordered = sorted(spans)
    large = ordered[min(math.ceil(0.9 * len(ordered)), len(ordered)) - 1]
    scale = max(statistics.median(ordered) / wanted, large / (LARGEST_SHARE * resolution))
    return max(scale, 1 / LARGEST_ZOOM)


def proposed_view(spans: Sequence[float], sizes: Sequence[tuple[int, int]], resolution: int) -> str:
    """WHOLE, or WINDOWS where whole images would be learned much coarser than their defects need."""
    canvas = whole_canvas(sizes, resolution)
    whole = statistics.median(covering_scale(size, canvas) for size in sizes)
    return WINDOWS if whole > REDUCED and window_scale(spans, resolution) < WORTH * whole else WHOLE
