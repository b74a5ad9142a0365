"""How would real labels fare under the same rule? What makes labels of generated pairs most like them.

People draw labels wider than what shows in one place and tighter in another. So nothing is cut by principle: the real
labels of a type are measured with the threshold of its generated pairs, and the mode wins whose labels are filled, and
filled at their border, most like the real ones.

There is no normal image below a real defect. The mean of those normal images that are most like its surroundings
stands for it. It is not exact, but how wrong it is can be seen around the label, where nothing is defective: a share f
of the pixels there is above the threshold by mistake, so of a share s inside, (s - f) / (1 - f) is defect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.images import read_image, resize_image
from ..data.mask_resizing import resize_mask
from ..data.mvtec import AnomalyDataset
from ..errors import InputError
from ..figures import to_bytes
from .change import Box, Change, Levels, Pixels, Reconstruct, box_around, difference, smoothed, unchanged
from .refine import AUTO, KEEP, RULES, RefineSettings, check_refining, label_of, measured, refined

NORMALS = 40
"""At most so many normal images, evenly over the data set, are looked at."""
NEAREST = 5
"""The mean of so many of them stands for the part without its defect."""
LARGEST = 1024
"""Larger images are looked at with their longer side at this many pixels."""
HALO, RING, LEAST_RING = 3, 0.5, 8
"""Around a label: pixels that may still be defect, and the width of what is compared, over the root of its area."""
BORDER = 0.1
"""Width of the border inside a label, over the root of its area; at least one pixel."""
WORTH = 0.02
"""A mode that changes more must be nearer to the real labels by more than this."""


@dataclass(frozen=True)
class LabelFit:
    """How much of a label changed, and of its border alone; both 0 to 1."""

    fill: float
    border: float

    def distance(self, other: LabelFit) -> float:
        """How unlike two labels are: the mean difference of both shares."""
        return (abs(self.fill - other.fill) + abs(self.border - other.border)) / 2

    def text(self) -> str:
        """Both shares."""
        return f"{self.fill:.2f} filled, {self.border:.2f} at the border"


@dataclass(frozen=True)
class LabelChoice:
    """What was chosen for a type, and why: the fit of real labels, and of generated ones in each mode."""

    mode: str
    real: LabelFit
    fits: Mapping[str, LabelFit]

    def text(self, key: str) -> str:
        """In one line."""
        fits = "; ".join(f"{mode} {fit.text()}" for mode, fit in self.fits.items())
        return f"{key}: {self.mode} (real labels {self.real.text()}; {fits})"


class RealLabels:
    """The real labels of a data set, as the generated ones of the same type are compared with."""

    def __init__(self, dataset: AnomalyDataset) -> None:
        self.dataset, self._normals = dataset, Normals(dataset)

    def fit(self, key: str, threshold: float) -> LabelFit:
        """The median fit of the labels of the training pairs of a type, with a threshold of 0 to 255.

        Raises InputError where the data set has none of this type, or no normal image.
        """
        pairs = self.dataset.defect_type(key).train
        if not pairs or not self.dataset.normals:
            raise InputError(
                f"refine: {AUTO} compares with real pairs, but the data set has {len(pairs)} training pairs of {key} "
                f"and {len(self.dataset.normals)} normal images. Choose another mode."
            )
        images = ((read_image(pair.image_path, pair.bits), pair.read_mask()) for pair in pairs)
        return middle([RealChange.of(*pair, self._normals).fit(threshold) for pair in images])


def choose_label(key: str, changes: Sequence[Change], real: RealLabels, settings: RefineSettings) -> LabelChoice:
    """The mode for the generated pairs of one type, object/defect. Raises InputError as ``RealLabels.fit``."""
    fits = {mode: middle([fit_of(change, mode, settings) for change in changes]) for mode in RULES}
    return choice_of(fits, real.fit(key, float(np.median([settings.threshold(change) for change in changes]))))


def refine_like_real(
    images: Tensor,
    normals: Tensor,
    masks: Tensor,
    reconstruct: Reconstruct | None,
    settings: RefineSettings,
    dataset: AnomalyDataset | None = None,
    key: str = "",
) -> tuple[Tensor, str]:
    """Labels [N, 1, H, W] of N pairs of one type, with any mode, and a report. Arguments as of ``refine_masks``.

    reconstruct: only a fixed threshold does without. dataset, key: for auto. Raises InputError as ``refine_masks`` and
    ``RealLabels.fit``, and where something that the settings need is missing.
    """
    check_refining(settings, reconstruct is not None, dataset is not None)
    changes, mode, lines = measured(images, normals, masks, reconstruct or unchanged), settings.refine, list[str]()
    if dataset is not None and mode == AUTO:
        kind = dataset.defect_type(key).key
        choice = choose_label(kind, changes, RealLabels(dataset), settings)
        mode = choice.mode
        lines.append(choice.text(kind))
    done = refined(masks, changes, [mode] * len(images), settings)
    return done.masks, "\n".join([*lines, done.describe()])


def choice_of(fits: Mapping[str, LabelFit], real: LabelFit) -> LabelChoice:
    """The mode whose labels are most like the real ones."""
    best = KEEP
    for mode in RULES[1:]:
        if fits[mode].distance(real) < fits[best].distance(real) - WORTH:
            best = mode
    return LabelChoice(best, real, fits)


def middle(fits: Sequence[LabelFit]) -> LabelFit:
    """The medians."""
    return LabelFit(*(float(np.median([getattr(fit, name) for fit in fits])) for name in ("fill", "border")))


def fit_of(change: Change, mode: str, settings: RefineSettings) -> LabelFit:
    """The fit of a generated pair's label in this mode; of the drawn mask where nothing shows."""
    label = label_of(change, mode, settings)
    return label_fit(label if label.any() else change.mask, change.levels, settings.threshold(change))


def label_fit(label: Pixels, levels: Levels, threshold: float, mistaken: float = 0.0) -> LabelFit:
    """The shares of a label [h, w] above the threshold, less what is there by mistake anyway (share 0 to 1)."""
    from scipy.ndimage import distance_transform_edt

    depth = distance_transform_edt(np.pad(label, 1))[1:-1, 1:-1]
    border = label & (depth <= max(1.0, BORDER * float(label.sum()) ** 0.5))
    shares = (float((levels[part] > threshold).mean()) for part in (label, border))
    return LabelFit(*(max(share - mistaken, 0.0) / max(1 - mistaken, 1e-6) for share in shares))


class Normals:
    """Some normal images of a data set, evenly over it, at the size of whatever they are compared with."""

    def __init__(self, dataset: AnomalyDataset) -> None:
        every = max(-(-len(dataset.normals) // NORMALS), 1)
        self._paths, self._bits = dataset.normals[::every], dataset.bits
        self._size: tuple[int, int] | None = None
        self._images: list[Tensor] = []

    def parts(self, box: Box, size: tuple[int, int], most: int = NORMALS) -> list[Tensor]:
        """A part of each of them, [3, h, w] in [0, 1]; they are read once as long as the size stays the same."""
        if self._size != size:
            images = (resize_image(read_image(path, self._bits)[None], size)[0] for path in self._paths)
            self._images, self._size = [torch.from_numpy(to_bytes(image)) for image in images], size
        every = max(-(-len(self._images) // most), 1)
        return [box.of(image).float() / 255 for image in self._images[::every]]


@dataclass(frozen=True)
class RealChange:
    """What differs in and around a defect from the normal images most like its surroundings, all [h, w].

    levels: inside the label, around: in the ring around it, both smoothed, 0 to 255.
    """

    label: Pixels
    ring: Pixels
    levels: Levels
    around: Levels

    @classmethod
    def of(cls, image: Tensor, mask: Tensor, normals: Normals) -> RealChange:
        """Measured on an image [3, H, W] in [0, 1] with its mask [1, H, W] of {0, 1}."""
        image, mask = _fitted(image, mask)
        margin = HALO + max(LEAST_RING, round(RING * float(mask.sum()) ** 0.5))
        box = box_around(mask, margin)
        own, label = box.of(image), box.of(mask)[0].numpy() > 0
        ring = _ring(label, margin)
        if not ring.any():
            raise InputError("mask: it fills the image, so nothing around the defect says what is normal there.")
        parts = normals.parts(box, (image.shape[1], image.shape[2]))
        parts.sort(key=lambda part: float(difference(own, part)[ring].mean()))
        levels = difference(own, torch.stack(parts[:NEAREST]).mean(dim=0))
        return cls(label, ring, smoothed(levels, label), smoothed(levels, ring))

    def fit(self, threshold: float) -> LabelFit:
        """Of the label, with a threshold of 0 to 255."""
        return label_fit(self.label, self.levels, threshold, float((self.around[self.ring] > threshold).mean()))


def _ring(label: Pixels, margin: int) -> Pixels:
    from scipy.ndimage import distance_transform_edt

    away = distance_transform_edt(~label)
    ring: Pixels = (away > HALO) & (away <= margin)
    return ring


def _fitted(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    scale = LARGEST / max(image.shape[1:])
    if scale >= 1:
        return image, mask
    size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[2] * scale), 1))
    return resize_image(image[None], size)[0], resize_mask(mask[None], size)[0]
