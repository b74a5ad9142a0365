"""Are generated defects new, or copies of the few that were learned from?

Every defect is cropped as a square around its mask and compared with every training defect of its type in all eight
orientations. The threshold for a copy is measured, not set: training defects are on different parts, so a generated
defect that is nearer to one of them than any two of them are to each other is suspicious.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.images import resize_image
from ...data.mask_resizing import resize_mask
from ...errors import InputError
from .trunks import as_floats

CROP = 32
MARGIN = 0.1


@dataclass(frozen=True)
class Nearest:
    """How close N generated defects come to the training defects.

    distance: [N] mean absolute difference to the nearest training defect, over the pixels of either mask, 0 to 255.
    index: [N] which training defect that is. threshold: smallest distance of two different training defects, NaN when
    there is only one.
    """

    distance: Tensor
    index: Tensor
    threshold: float

    @property
    def copies_share(self) -> float:
        """Share of the generated defects below the threshold, 0 to 1; NaN without one."""
        if math.isnan(self.threshold):
            return math.nan
        return float((self.distance < self.threshold).double().mean())


def nearest_training_defects(
    images: Tensor, masks: Tensor, training_images: Tensor, training_masks: Tensor
) -> Nearest:
    """Compare generated with training defects of one type.

    images [N, 3, s, s] in [0, 1] or bytes, and masks [N, 1, s, s] in {0, 1}, none empty; training images and masks
    likewise, of the same size. Raises InputError when there are none.
    """
    if not len(images) or not len(training_images):
        raise InputError(
            f"memorization: {len(images)} generated, {len(training_images)} training defects. Both are required."
        )
    generated, known = defect_crops(images, masks), defect_crops(training_images, training_masks)
    distance, index = _distances(generated, known).min(dim=1)
    between = _distances(known, known)
    between.fill_diagonal_(math.inf)
    threshold = float(between.min()) if len(known) > 1 else math.nan
    return Nearest(distance, index, threshold)


def defect_crops(images: Tensor, masks: Tensor) -> Tensor:
    """Squares around the masks with a margin, [N, 4, CROP, CROP]: three color channels and the mask."""
    crops = []
    for image, mask in zip(images, masks.float(), strict=True):
        rows, columns = (mask[0].amax(dim=axis).nonzero().flatten() for axis in (1, 0))
        if not len(rows):
            raise InputError("memorization: a mask is empty. Leave this pair out.")
        top, left = int(rows[0]), int(columns[0])
        height, width = int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left
        side = max(height, width) + 2 * max(1, round(MARGIN * max(height, width)))
        top, left = top - (side - height) // 2, left - (side - width) // 2
        # as much around the image as any square can need
        pixels = as_floats(image[None])
        padded = F.pad(pixels, (side, side, side, side), mode="replicate")[..., top + side : top + 2 * side, :]
        marked = F.pad(mask[None], (side, side, side, side))[..., top + side : top + 2 * side, :]
        across = slice(left + side, left + 2 * side)
        crops.append(
            torch.cat([resize_image(padded[..., across], CROP), resize_mask(marked[..., across], CROP)], dim=1)
        )
    return torch.cat(crops)


def _distances(one: Tensor, two: Tensor) -> Tensor:
    """[N, M]: the smallest over eight orientations of the second."""
    turned = [torch.rot90(flipped, turns, (2, 3)) for flipped in (two, two.flip(3)) for turns in range(4)]
    found = torch.full((len(one), len(two)), math.inf)
    for other in turned:
        for place, crop in enumerate(one):
            either = torch.maximum(other[:, 3], crop[3])
            difference = (other[:, :3] - crop[:3]).abs().mean(dim=1)
            value = (difference * either).sum(dim=(1, 2)) / either.sum(dim=(1, 2)) * 255
            found[place] = torch.minimum(found[place], value)
    return found
