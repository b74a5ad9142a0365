"""Do images from noise obey their caption: one defect, at its place, on a surface of the named colour.

Read off the image alone, so that drawn and rendered images are judged by one rule; renders show how far the rule
itself can be trusted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..lazy_imports import imported
from ..synthetic import Caption
from ..synthetic.captions import PLACES, SIZES, SURFACE_COLOURS

# Defects that stand out from their surface, none of them held out of pretraining.
CLEAR = (
    Caption("plastic", "white", "hole"),
    Caption("fabric", "blue", "stain", "yellow"),
    Caption("metal", "grey", "scratch", "dark"),
    Caption("plastic", "green", "stain", "light"),
    Caption("stone", "orange", "stain", "blue"),
    Caption("fabric", "brown", "scratch", "light"),
)
SMOOTHING = 2.0
"""Deviation in pixels of the blur before anything is looked for."""
PEAK_SHARE = 0.5
"""What stands out this much, relative to what stands out most, is defect."""
SMALLEST_CONTRAST = 0.08
SMALLEST_AREA = 2e-4
JOIN = 0.03
TOLERANCE = 1 / 12
Array = NDArray[np.floating]


@dataclass(frozen=True)
class Obedience:
    """Shares of images, 0 to 1.

    `one_defect`: exactly one region stands out; `place`: its centre lies in the named ninth of the image, a twelfth
    of the side beyond it allowed; `surface_colour`: the median colour is nearest to the named one.
    """

    one_defect: float
    place: float
    surface_colour: float
    mean_defects: float


def captions(count: int, rng: np.random.Generator, clear: Sequence[Caption] = CLEAR) -> list[Caption]:
    """Clear defects in turn, with sizes and places at random."""
    return [with_extent(clear[number % len(clear)], rng) for number in range(count)]


def measure(
    images: Iterable[tuple[Array, Caption]], colours: Mapping[str, Sequence[float]] = SURFACE_COLOURS
) -> Obedience:
    """Judge images, float [H, W, 3] in 0..1, by their captions; `colours`: the surface colours there are."""
    counts, places, named_right = [], [], []
    for pixels, caption in images:
        centres = defect_centres(pixels)
        counts.append(len(centres))
        places.append(bool(centres) and _in_ninth(centres[0], caption.place))
        named = {
            name: np.linalg.norm(np.median(pixels, axis=(0, 1)) - np.asarray(value)) for name, value in colours.items()
        }
        named_right.append(min(named, key=lambda name: named[name]) == caption.surface_colour)
    one = np.mean([count == 1 for count in counts])
    return Obedience(float(one), float(np.mean(places)), float(np.mean(named_right)), float(np.mean(counts)))


def defect_centres(pixels: Array) -> list[tuple[float, float]]:
    """Centres (down, across; 0..1) of the regions that stand out from the median colour, the largest first.

    Parts nearer than `JOIN` of the side count as one, as the beads of a scratch do.
    """
    from scipy import ndimage

    distance = np.abs(pixels - np.median(pixels, axis=(0, 1))).mean(axis=2)
    smooth = ndimage.gaussian_filter(distance, SMOOTHING)
    smooth = smooth - np.median(smooth)
    peak = np.quantile(smooth, 0.999)
    if peak < SMALLEST_CONTRAST:
        return []
    inside = smooth > PEAK_SHARE * peak
    size = pixels.shape[0]
    joined = ndimage.distance_transform_edt(~inside) <= JOIN * size / 2
    labels = imported("skimage.measure", "label")(joined, connectivity=2)
    areas = np.bincount(labels[inside], minlength=labels.max() + 1)
    order = [int(label) for label in np.argsort(-areas) if label and areas[label] >= SMALLEST_AREA * size**2]
    return [tuple(np.mean(np.nonzero(inside & (labels == label)), axis=1) / size) for label in order]


def _in_ninth(centre: tuple[float, float], place: str) -> bool:
    cell = divmod(PLACES.index(place), 3)
    return all(
        index / 3 - TOLERANCE <= value <= (index + 1) / 3 + TOLERANCE
        for index, value in zip(cell, centre, strict=True)
    )


def with_extent(caption: Caption, rng: np.random.Generator) -> Caption:
    """The caption with a size and a place at random."""
    return replace(caption, size=str(rng.choice(SIZES)), place=str(rng.choice(PLACES)))
