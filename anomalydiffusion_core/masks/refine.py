"""Labels that cover what changed (design, decision 13): a drawn mask is kept, loses parts, or is cut to the change.

Whatever the mode, a refined label lies inside the drawn mask and is never empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..lazy_imports import imported
from ..options import Settings, option
from .change import Change, Pixels, Reconstruct, measure_change

KEEP, DROP, CUT, AUTO = MODES = ("keep", "drop", "cut", "auto")
RULES = (KEEP, DROP, CUT)
"""The modes that auto chooses from, the one that changes least first."""
SHOWN_SHARE = 0.1
"""A part of a drawn mask shows when at least this share of it changed."""
NOTHING_SHOWS = "nothing shows inside the drawn mask"
_ALL_AROUND = np.ones((3, 3))


@dataclass(frozen=True)
class RefineSettings(Settings):
    """How labels follow from drawn masks and what changed inside them."""

    refine: str = option(
        KEEP,
        "What the label is: keep is the drawn mask; drop leaves out its parts that do not show; cut is what really "
        "changed; auto does for each type what makes its labels most like the real ones.",
        choices=MODES,
    )
    refine_threshold: float = option(
        0.0,
        "A pixel changed when it differs by more than this (0 to 255). 0 follows from the noise of the autoencoder's "
        "own reconstruction of the normal image.",
        min=0,
        max=255,
        step=0.5,
    )
    refine_closing: int = option(
        2, "With cut: gaps of up to twice this many pixels between changed pixels are closed.", min=0, max=64
    )
    refine_parts: float = option(
        0.1,
        "With cut: parts smaller than this share of the largest one are left out.",
        min=0,
        max=1,
        step=0.01,
    )
    refine_holes: bool = option(True, "With cut: fill holes, as far as they lie inside the drawn mask.")
    refine_convex: bool = option(
        False, "With cut: each part becomes convex, as far as that lies inside the drawn mask."
    )

    def threshold(self, change: Change) -> float:
        """Above this a pixel of this pair changed, 0 to 255."""
        return self.refine_threshold or change.threshold


@dataclass(frozen=True)
class Refined:
    """Labels [N, 1, H, W] of {0, 1}, inside their drawn masks; the share of each mask that they keep, 0 to 1.

    modes: what was done with each. shows: whether anything changed at all; where not, the label is the drawn mask.
    """

    masks: Tensor
    shares: list[float]
    modes: list[str]
    shows: list[bool]

    def describe(self) -> str:
        """How much of the masks is kept, in one line."""
        low, middle, high = (float(np.quantile(self.shares, part)) for part in (0.0, 0.5, 1.0))
        text = f"{len(self.shares)} labels keep {middle:.2f} of their drawn masks ({low:.2f} to {high:.2f})"
        hidden = self.shows.count(False)
        return text + (f"; in {hidden} pairs {NOTHING_SHOWS}, they keep it" if hidden else "")


def check_refining(settings: RefineSettings, autoencoder: bool, real: bool) -> None:
    """Raise InputError where the settings need an autoencoder, or real pairs, that are not there."""
    if settings.refine == AUTO and not real:
        raise InputError("refine: auto compares with real pairs. Give the data set, or choose another mode.")
    if not autoencoder and settings.refine != KEEP and not settings.refine_threshold:
        raise InputError(
            "refine_threshold: is 0, so it follows from the noise of an autoencoder, but there is none. Give the "
            "model or its VAE, or a threshold."
        )


def refine_masks(
    images: Tensor, normals: Tensor, masks: Tensor, reconstruct: Reconstruct, settings: RefineSettings
) -> Refined:
    """Labels of N pairs, with one of the modes keep, drop and cut.

    images, normals: [N, 3, H, W] in [0, 1]; masks: [N, 1, H, W] of {0, 1}; one normal image or mask serves all.
    Raises InputError for other counts or sizes, an empty mask, and the mode auto, which needs real pairs.
    """
    if settings.refine not in RULES:
        raise InputError(f"refine: '{settings.refine}' needs real pairs to compare with. Connect a data set.")
    changes = measured(images, normals, masks, reconstruct)
    return refined(masks, changes, [settings.refine] * len(images), settings)


def measured(images: Tensor, normals: Tensor, masks: Tensor, reconstruct: Reconstruct) -> list[Change]:
    """The change of N pairs. Raises InputError as ``refine_masks``."""
    for name, given in (("normals", normals), ("masks", masks)):
        if len(given) not in (1, len(images)):
            raise InputError(f"{name}: {len(given)} for {len(images)} images. Give one, or one for each.")
    pairs = zip(images, normals.expand(len(images), -1, -1, -1), masks.expand(len(images), -1, -1, -1), strict=True)
    return [measure_change(image, normal, mask, reconstruct) for image, normal, mask in pairs]


def refined(masks: Tensor, changes: Sequence[Change], modes: Sequence[str], settings: RefineSettings) -> Refined:
    """Labels [N, 1, H, W] where the change of each pair is known."""
    labels = masks.expand(len(changes), -1, -1, -1).clone()
    shares, shows = [], []
    for label, change, mode in zip(labels, changes, modes, strict=True):
        pixels = label_of(change, mode, settings)
        shows.append(bool(pixels.any()))
        shares.append(float(pixels.sum() / change.mask.sum()) if pixels.any() else 1.0)
        if pixels.any():
            change.box.of(label[0]).copy_(torch.from_numpy(pixels.astype(np.float32)))
    return Refined(labels, shares, list(modes), shows)


def label_of(change: Change, mode: str, settings: RefineSettings) -> Pixels:
    """The label [h, w] of the change's part of the image; empty where nothing shows and the mode is not keep."""
    if mode == KEEP:
        return change.mask
    changed = change.mask & (change.levels > settings.threshold(change))
    return _shown_parts(change.mask, changed) if mode == DROP else _cut(change.mask, changed, settings)


def _shown_parts(mask: Pixels, changed: Pixels) -> Pixels:
    from scipy import ndimage

    parts, count = ndimage.label(mask, _ALL_AROUND)
    areas, filled = (np.bincount(parts.ravel(), weights.ravel(), count + 1) for weights in (mask, changed))
    shown = filled >= SHOWN_SHARE * np.maximum(areas, 1)
    shown[0] = False
    kept: Pixels = shown[parts]
    return kept


def _cut(mask: Pixels, changed: Pixels, settings: RefineSettings) -> Pixels:
    from scipy import ndimage

    label = changed
    if settings.refine_closing:
        # Padded: the closing of scipy erodes what touches the border of the array.
        wide = np.pad(label, settings.refine_closing + 1)
        closed = ndimage.binary_closing(wide, ndimage.generate_binary_structure(2, 1), settings.refine_closing)
        label = closed[(slice(settings.refine_closing + 1, -settings.refine_closing - 1),) * 2] & mask
    if settings.refine_holes:
        label = ndimage.binary_fill_holes(label) & mask
    parts, count = ndimage.label(label, _ALL_AROUND)
    if not count:
        return np.zeros_like(mask)
    areas = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    result = np.zeros_like(mask)
    for number in np.flatnonzero(areas >= settings.refine_parts * areas.max()) + 1:
        part = parts == number
        result |= imported("skimage.morphology", "convex_hull_image")(part) if settings.refine_convex else part
    return result & mask
