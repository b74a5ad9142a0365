"""Where the object is, on images with a plain background: simple estimators that need no model.

All of them look at how far a pixel's colour is from that of the image's border, which is background on most
inspection images. They do not work for textures, which fill the image: there every pixel is the object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..lazy_imports import imported
from ..options import Settings, option
from .variation import OnDone

FLOOD, THRESHOLD, COLOURS = "flood from border", "threshold", "colour models"
METHODS = (FLOOD, THRESHOLD, COLOURS)
KEEP, WHOLE = "keep the estimate", "whole picture"
UNCLEAR = (KEEP, WHOLE)
PLAUSIBLE_COVER = (0.02, 0.95)
"""Shares of the image between which an object on a plain background lies."""
SMALLEST_CONTRAST = 0.75
"""Bottles on white have 0.92 to 0.94, images of tiles, stone, metal and leather 0.1 to 0.73."""
_ROUNDS, _COMPONENTS, _FITTED_PIXELS = 3, 3, 4000
Array = NDArray[Any]


@dataclass(frozen=True)
class ForegroundSettings(Settings):
    """How the object is found.

    ``flood from border`` takes what is connected to the border and of its colour as background; ``threshold`` takes
    everything of the border's colour; ``colour models`` starts there and refines both sides with mixtures of
    Gaussians (as GrabCut does, Rother et al., SIGGRAPH 2004, with smoothing in place of the graph cut). Tolerance 0
    chooses it by Otsu's method. unclear: see `describe_foreground` for what is doubtful.
    """

    method: str = option(
        FLOOD,
        "Background is what has the border's colour and touches it, or has that colour anywhere, or fits colour "
        "models of both sides better (as in GrabCut; slower).",
        choices=METHODS,
    )
    tolerance: float = option(
        0.0,
        "Colour distance (CIE Lab) from the border that is still background. 0 chooses it.",
        min=0,
        max=200,
        step=1,
    )
    margin: int = option(
        0,
        "Pixels to shrink the object by, so that masks keep off its edge. Below 0 it grows.",
        min=-1000,
        max=1000,
    )
    fill_holes: bool = option(True, "Holes inside the object belong to it.")
    smallest_part: float = option(
        0.01, "Parts below this share of the image are ignored.", min=0, max=0.99, step=0.001, exact=True
    )
    unclear: str = option(
        KEEP,
        "Result where no object stands out from a plain background: the estimate anyway, or the whole image, which "
        "is right for textures.",
        choices=UNCLEAR,
    )


def estimate_foreground(
    images: Tensor, settings: ForegroundSettings | None = None, on_done: OnDone | None = None
) -> Tensor:
    """Masks [B, 1, H, W] of {0, 1} of the objects on images [B, 3, H, W] in [0, 1]; none is empty.

    Deterministic. Raises InputError, naming the image, when no object is found.
    """
    settings = settings or ForegroundSettings()
    found = []
    for place, image in enumerate(images):
        lab = _lab(image)
        mask = _estimate(lab, settings)
        if settings.unclear == WHOLE and _doubtful(lab, mask):
            mask = np.ones_like(mask)
        if not mask.any():
            raise InputError(
                f"foreground: no object was found on image {place} of {len(images)}. Lower the tolerance or the "
                "margin, choose another method, or provide your own mask."
            )
        found.append(mask)
        if on_done is not None:
            on_done(place + 1)
    return torch.from_numpy(np.stack(found).astype(np.float32))[:, None]


def describe_foreground(images: Tensor, masks: Tensor) -> str:
    """How much of the images [B, 3, H, W] the objects [B, 1, H, W] cover, with a notice where that is doubtful.

    Doubtful is an implausible cover, and colours that differ from the border's about as much on both sides: a texture.
    """
    covers = masks.flatten(1).mean(dim=1).tolist()
    text = f"{len(covers)} foregrounds, {min(covers):.1%} to {max(covers):.1%} of the image"
    odd = [
        str(place)
        for place, (image, mask) in enumerate(zip(images, masks, strict=True))
        if _doubtful(_lab(image), mask[0].numpy() > 0)
    ]
    if odd:
        text += (
            f"\nnotice: no object stands out from a plain background on image {', '.join(odd)}: check the "
            "preview; a texture that fills the image needs no foreground"
        )
    return text


def _doubtful(lab: Array, inside: Array) -> bool:
    low, high = PLAUSIBLE_COVER
    return not low <= inside.mean() <= high or _contrast(lab, inside) < SMALLEST_CONTRAST


def _contrast(lab: Array, inside: Array) -> float:
    """Share of the variance of the distance from the border's colour that lies between object and background.

    Otsu's criterion of separability, 0 to 1 (IEEE Trans. SMC, 1979).
    """
    distance, share = _border_distance(lab), inside.mean()
    if not 0 < share < 1 or distance.var() == 0:
        return 0.0
    between = share * (1 - share) * (distance[inside].mean() - distance[~inside].mean()) ** 2
    return float(between / distance.var())


def _lab(image: Tensor) -> Array:
    lab: Array = imported("skimage.color", "rgb2lab")(image.movedim(0, -1).double().numpy())
    return lab


def _estimate(lab: Array, settings: ForegroundSettings) -> Array:
    distance = _border_distance(lab)
    tolerance = settings.tolerance or _otsu(distance)
    background = distance <= tolerance
    if settings.method == FLOOD:
        background = _connected_to_border(background)
    elif settings.method == COLOURS:
        background = ~_refined(lab, ~background)
    return _tidied(~background, settings)


def _border_distance(lab: Array) -> Array:
    """CIE Lab distance of every pixel from the border's colour.

    The median of the border, so that an object that leaves the image on one side does not matter.
    """
    border = np.concatenate([lab[0], lab[-1], lab[:, 0], lab[:, -1]])
    distance: Array = np.linalg.norm(lab - np.median(border, axis=0), axis=-1)
    return distance


def _otsu(distance: Array) -> float:
    if distance.max() == distance.min():
        return float(distance.max())
    return float(imported("skimage.filters", "threshold_otsu")(distance))


def _connected_to_border(background: Array) -> Array:
    labels = imported("skimage.measure", "label")(background, connectivity=1)
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    connected: Array = np.isin(labels, np.unique(edge[edge > 0]))
    return connected


def _refined(lab: Array, foreground: Array) -> Array:
    """Foreground after a few rounds of fitting colours to both sides and asking each pixel which fits better."""
    from scipy.ndimage import gaussian_filter
    from sklearn.mixture import GaussianMixture

    colours = lab.reshape(-1, 3)
    rng = np.random.default_rng(0)
    for _ in range(_ROUNDS):
        fits = []
        for side in (foreground, ~foreground):
            own = colours[side.ravel()]
            if len(own) < 10 * _COMPONENTS:
                return foreground
            chosen = own[rng.choice(len(own), min(len(own), _FITTED_PIXELS), replace=False)]
            model = GaussianMixture(_COMPONENTS, reg_covar=1.0, random_state=0).fit(chosen)
            fits.append(model.score_samples(colours).reshape(foreground.shape))
        # Clipped, so that one odd pixel does not outvote its surroundings.
        foreground = gaussian_filter(np.clip(fits[0] - fits[1], -5, 5), 1.5) > 0
    return foreground


def _tidied(mask: Array, settings: ForegroundSettings) -> Array:
    from scipy import ndimage

    if settings.fill_holes:
        mask = ndimage.binary_fill_holes(mask)
    labels = imported("skimage.measure", "label")(mask, connectivity=2)
    large = np.bincount(labels.ravel()) >= max(settings.smallest_part * mask.size, 1)
    large[0] = False
    mask = large[labels]
    if settings.margin > 0:
        # What lies beyond the image is not known to be background.
        inside = ndimage.distance_transform_edt(np.pad(mask, 1, mode="edge"))[1:-1, 1:-1]
        mask = inside > settings.margin
    elif settings.margin < 0 and mask.any():
        mask = ndimage.distance_transform_edt(~mask) <= -settings.margin
    return mask
