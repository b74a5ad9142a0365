"""Variations of real masks: rotated, scaled, mirrored and moved, so new places and sizes with real shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..options import Settings, check_order, option
from ..sampling.blending import check_mask

Shape = NDArray[np.bool_]
OnDone = Callable[[int], None]
"""Called with the number of finished masks; an exception passes through."""
_SAMPLES = 4
"""Samples per output pixel and axis."""


@dataclass(frozen=True)
class VariationSettings(Settings):
    """Ranges of the random transform of a mask.

    Scales are drawn evenly on a logarithmic scale, flips with probability 1/2. max_shift counts for each axis; 1
    reaches every place.
    """

    max_degrees: float = option(180.0, "Largest rotation in both directions, in degrees.", min=0, max=180, step=1)
    min_scale: float = option(0.8, "Smallest factor of the size.", min=0.01, max=100, step=0.05)
    max_scale: float = option(1.25, "Largest factor of the size.", min=0.01, max=100, step=0.05)
    max_shift: float = option(
        0.25,
        "Largest distance that a mask moves, as a share of the image side. Place Masks puts it on the object.",
        min=0,
        max=1,
        step=0.01,
    )
    flips: bool = option(True, "Also mirror the masks.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self, "min_scale", "max_scale")


def vary_masks(
    masks: Tensor, count: int, seed: int, settings: VariationSettings | None = None, on_done: OnDone | None = None
) -> Tensor:
    """``count`` new masks [count, 1, H, W] of {0, 1} from real ones [N, 1, H, W], none empty, each inside the image.

    The masks take turns, and result i depends on ``seed + i`` alone. A shape that does not fit into the frame is made
    smaller until it does. Raises InputError for empty masks and masks of other values.
    """
    check_mask(masks, "real masks")
    return torch.stack(vary_each(list(masks), count, seed, settings, on_done))


def vary_each(
    masks: Sequence[Tensor],
    count: int,
    seed: int,
    settings: VariationSettings | None = None,
    on_done: OnDone | None = None,
) -> list[Tensor]:
    """As `vary_masks`, of masks [1, H, W] whose sizes may differ; a result has the size of the mask it comes from."""
    settings = settings or VariationSettings()
    for mask in masks:
        check_mask(mask[None], "real masks")
    if count < 1:
        raise InputError(f"count: {count} masks are not possible. Give at least 1.")
    varied = []
    for place in range(count):
        source = masks[(seed + place) % len(masks)][0].numpy() > 0
        shape = _vary(source, np.random.default_rng(seed + place), settings)
        varied.append(torch.from_numpy(shape.astype(np.float32))[None])
        if on_done is not None:
            on_done(place + 1)
    return varied


def _vary(mask: Shape, rng: np.random.Generator, settings: VariationSettings) -> Shape:
    shape, top, left = cropped(mask)
    angle = math.radians(rng.uniform(-settings.max_degrees, settings.max_degrees))
    scale = math.exp(rng.uniform(math.log(settings.min_scale), math.log(settings.max_scale)))
    flip_x, flip_y = (settings.flips and rng.random() < 0.5 for _ in range(2))
    shift = rng.uniform(-settings.max_shift, settings.max_shift, 2) * mask.shape
    shape = shape[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
    # Far larger than the image would only cost memory; the loop then finds the size that fits.
    scale = min(scale, *(2 * have / need for have, need in zip(mask.shape, _extent(shape, angle), strict=True)))
    turned = transform_shape(shape, angle, scale)
    while turned.shape[0] > mask.shape[0] or turned.shape[1] > mask.shape[1]:
        scale *= 0.98 * min(have / need for have, need in zip(mask.shape, turned.shape, strict=True))
        turned = transform_shape(shape, angle, scale)
    middle = np.array([top, left]) + np.array(shape.shape) / 2 + shift
    room = np.array(mask.shape) - turned.shape
    start = np.clip(np.rint(middle - np.array(turned.shape) / 2), 0, room).astype(int)
    result = np.zeros_like(mask)
    result[start[0] : start[0] + turned.shape[0], start[1] : start[1] + turned.shape[1]] = turned
    return result


def cropped(mask: Shape) -> tuple[Shape, int, int]:
    """The bounding box [h, w] of a mask [H, W], and its first row and column. The mask must not be empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return mask[top : rows[-1] + 1, left : columns[-1] + 1], top, left


def transform_shape(shape: Shape, angle: float, scale: float) -> Shape:
    """A shape [h, w] rotated clockwise by ``angle`` (radians) and scaled, cropped to its box; never empty.

    A pixel belongs to it when it is covered at least half as much as the most covered one next to it: half of it at
    the border of a patch, and less on thin lines and dots, which so survive.
    """
    height, width = shape.shape
    cos, sin = math.cos(angle), math.sin(angle)
    # A quarter turn must not become half a pixel longer by rounding: the middle would lie between other pixels.
    rows, columns = (math.ceil(length * scale - 1e-6) + 2 for length in _extent(shape, angle))
    y, x = np.meshgrid(_positions(rows) / scale, _positions(columns) / scale, indexing="ij")
    source_y = np.floor(cos * y - sin * x + height / 2).astype(int)
    source_x = np.floor(sin * y + cos * x + width / 2).astype(int)
    inside = (source_y >= 0) & (source_y < height) & (source_x >= 0) & (source_x < width)
    hits = np.zeros(inside.shape, dtype=np.float32)
    hits[inside] = shape[source_y[inside], source_x[inside]]
    share = hits.reshape(rows, _SAMPLES, columns, _SAMPLES).mean(axis=(1, 3))
    return cropped(_kept(share))[0]


def _extent(shape: Shape, angle: float) -> tuple[float, float]:
    """Height and width of the bounding box of a shape [h, w] rotated by ``angle``."""
    height, width = shape.shape
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    return cos * height + sin * width, cos * width + sin * height


def _positions(length: int) -> NDArray[np.float64]:
    """Sample positions of ``length`` pixels about their common middle."""
    return (np.arange(length * _SAMPLES) + 0.5) / _SAMPLES - length / 2


def _kept(share: NDArray[np.float32]) -> Shape:
    from scipy.ndimage import maximum_filter

    kept: Shape = (share > 0) & (share >= 0.5 * maximum_filter(share, size=3))
    if not kept.any():
        # Between the samples of a dot much smaller than a pixel.
        kept[tuple(length // 2 for length in share.shape)] = True
    return kept
