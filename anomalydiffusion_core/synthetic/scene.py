"""One captioned image: draw the words, render the surface, put the defect in, keep everything else untouched."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .captions import DEFECT_COLOURS, DEFECTS, PLACES, SIZES, SURFACE_COLOURS, SURFACES, Caption
from .defects import BLOB_RADIUS, STROKE_LENGTH, Shape, apply_defect, shape_of
from .noise import NoiseBank
from .surfaces import base_colour, render_surface, shade

# Never drawn for pretraining, so that the demo and its check show what few-shot learning adds.
HELD_OUT_COMBINATIONS = (("leather", "scratch"), ("leather", "stain"), ("stone", "hole"))

SMALLEST_SIZE = 128

MASK_SHARE = 0.18
"""Of the images for pretraining, those that show a mask alone."""

_COLOURED = ("stain", "scratch")


@dataclass(frozen=True)
class Scene:
    """A rendered part: `image` and `normal` uint8 [H, W, 3] (equal outside the mask), `mask` bool [H, W]."""

    image: NDArray[np.uint8]
    normal: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    caption: Caption


def sample_caption(rng: np.random.Generator, mask_share: float = MASK_SHARE, good_share: float = 0.25) -> Caption:
    """A caption for pretraining; never one of `HELD_OUT_COMBINATIONS`."""
    size, place = str(rng.choice(SIZES)), str(rng.choice(PLACES))
    if rng.random() < mask_share:
        return Caption("mask", "none", str(rng.choice(("stain", "scratch"))), "none", size, place)
    surface = str(rng.choice([name for name in SURFACES if name != "mask"]))
    colour = str(rng.choice(list(SURFACE_COLOURS)))
    if rng.random() < good_share:
        return Caption(surface, colour)
    allowed = [d for d in DEFECTS if d != "good" and (surface, d) not in HELD_OUT_COMBINATIONS]
    defect = str(rng.choice(allowed))
    paint = "none"
    if defect in _COLOURED:
        paint = str(rng.choice(distinct_colours(colour)))
    return Caption(surface, colour, defect, paint, size, place)


def distinct_colours(surface_colour: str) -> tuple[str, ...]:
    """The defect colours that can be seen on a surface colour, in the order of ``DEFECT_COLOURS``."""
    own = np.asarray(SURFACE_COLOURS[surface_colour])
    return tuple(name for name, value in DEFECT_COLOURS.items() if np.abs(own - np.asarray(value)).mean() > 0.16)


def render_scene(
    rng: np.random.Generator, bank: NoiseBank, caption: Caption, size: int = 256, opacity: float = 1.0
) -> Scene:
    """Render a caption at [size, size] pixels; the defect keeps its pixel size whatever the image's size.

    Args:
        opacity: 0..1, of a stain or scratch.

    Raises:
        ValueError: `size` is below `SMALLEST_SIZE`, where the largest defects do not fit.
    """
    if size < SMALLEST_SIZE:
        raise ValueError(f"size: {size} px is too small for the largest defects. Give at least {SMALLEST_SIZE}.")
    shape = None if caption.defect == "good" else _placed_shape(rng, caption, size)
    if caption.surface == "mask":
        mask = np.zeros((size, size), bool) if shape is None else shape.mask
        image = np.repeat((mask * 255).astype(np.uint8)[:, :, None], 3, axis=2)
        return Scene(image, np.zeros_like(image), mask, caption)
    colour = base_colour(rng, caption.surface_colour)
    albedo, height = render_surface(rng, bank, caption.surface, colour, size)
    normal = _to_bytes(shade(albedo, height))
    if shape is None:
        return Scene(normal, normal, np.zeros((size, size), bool), caption)
    painted, dented = apply_defect(rng, bank, caption.defect, caption.defect_colour, shape, albedo, height, opacity)
    image = np.where(shape.mask[:, :, None], _to_bytes(shade(painted, dented)), normal)
    return Scene(image, normal, shape.mask, caption)


def _placed_shape(rng: np.random.Generator, caption: Caption, size: int) -> Shape:
    """An outline that lies wholly inside the image, its centre in the ninth that the place word names."""
    row, column = divmod(PLACES.index(caption.place), 3)
    if caption.defect == "scratch":
        margin = min(0.42 * STROKE_LENGTH[caption.size][1], 0.45 * size)
    else:
        margin = min(BLOB_RADIUS[caption.size][1] * 1.2, 0.45 * size)
    third = size / 3
    while True:
        centre = tuple(
            float(np.clip(rng.uniform(index * third, (index + 1) * third), margin, size - margin))
            for index in (row, column)
        )
        shape = shape_of(rng, caption.defect, caption.size, size, (centre[0], centre[1]))
        mask = shape.mask
        if mask.any() and not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()):
            return shape
        margin = min(margin + 2.0, 0.5 * size)


def _to_bytes(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(image * 255).astype(np.uint8)
