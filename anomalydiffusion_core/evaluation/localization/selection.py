"""Which step of a training is kept.

The authors test on the test set after every epoch of 500 pictures and keep the best by the sum of image AUROC, pixel
AUROC, pixel AP and PRO (train-localization.py). Numbers of a network chosen that way are better than what an unseen
defect would meet, so it is one labelled option here, beside the last step and a validation split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import InputError

if TYPE_CHECKING:
    from .evaluation import LocalizationResult

LAST_STEP = "last step"
VALIDATION = "validation split"
AUTHORS = "authors (selects on the test set)"
SELECTIONS = (LAST_STEP, VALIDATION, AUTHORS)
AUTHORS_EPOCH = 63
"""Steps of 8 pictures in the authors' epoch of 500."""
SUMMED = ("image_auroc", "pixel_auroc", "pixel_ap", "pixel_pro")


def selection_note(selection: str, check_every: int, validation_share: float) -> str:
    """What a table says about the rule, in words."""
    if selection == LAST_STEP:
        return "last step kept, nothing chosen by the test set"
    checked = f"best of the checks every {check_every} steps kept"
    if selection == VALIDATION:
        return f"{checked}, chosen by a {VALIDATION} of {validation_share:.0%} of the training pictures"
    return f"{checked} by the rule {AUTHORS}: these figures are better than on unseen defects"


def selection_score(result: LocalizationResult) -> float:
    """The authors' sum, over those of the four metrics that the pictures define.

    Raises InputError when they define none of them.
    """
    values = [getattr(result, name) for name in SUMMED]
    known = [value for value in values if not math.isnan(value)]
    if not known:
        raise InputError("selection: no metric is defined on these pictures. Use 'last step'.")
    return sum(known)


def split_validation(
    pairs: Mapping[str, tuple[Tensor, Tensor]], share: float, seed: int
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, tuple[Tensor, Tensor]]]:
    """Divide pairs into (training, validation), type by type, `share` of each drawn with `seed`.

    A type of two or more gives at least one pair and keeps at least one; a type of one keeps it.

    Raises:
        InputError: no type has two pairs.
    """
    training: dict[str, tuple[Tensor, Tensor]] = {}
    held: dict[str, tuple[Tensor, Tensor]] = {}
    for key in sorted(pairs):
        images, masks = pairs[key]
        kept, chosen = split_places(len(images), share, seed)
        training[key] = (images[kept], masks[kept])
        if len(chosen):
            held[key] = (images[chosen], masks[chosen])
    if not held:
        raise InputError("selection: a validation split needs a defect type with two training pairs. Use 'last step'.")
    return training, held


def split_places(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Places 0..count-1 divided into (kept, held), both ascending; see `split_validation`."""
    number = min(max(round(share * count), 1), count - 1) if count > 1 else 0
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[number:].sort().values, order[:number].sort().values
