"""All generated pairs at one glance."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ..figures import contact_sheet, detail, outlined
from .images import read_image
from .mask_files import read_mask
from .pairs import ExportedPair

MOST = 96
"""Pairs on a sheet; of more every n-th is shown."""
IN_A_ROW = 4
CELL = 160


def pairs_sheet(pairs: Sequence[ExportedPair], most: int = MOST) -> Tensor:
    """Every generated image with the outline of its mask, and the place of the defect enlarged: [3,H,W] in [0,1].

    Types follow each other, each with its name and number of pairs. With more than ``most`` pairs of all types, every
    n-th is shown and the name says so. Images are read one at a time. Raises InputError without pairs.
    """
    every = -(-len(pairs) // most)
    kinds: dict[str, list[ExportedPair]] = {}
    for pair in pairs:
        kinds.setdefault(pair.key, []).append(pair)
    rows: list[list[Tensor | None]] = []
    titles: list[str] = []
    for key, members in sorted(kinds.items()):
        shown = members[::every]
        note = "" if every == 1 else f", {len(shown)} shown"
        for first in range(0, len(shown), IN_A_ROW):
            rows.append([cell for pair in shown[first : first + IN_A_ROW] for cell in _cells(pair)])
            titles.append("" if first else f"{key} ({len(members)}{note})")
    return contact_sheet(rows, ["generated", "enlarged"] * IN_A_ROW, titles, CELL)


def _cells(pair: ExportedPair) -> list[Tensor]:
    image, mask = read_image(pair.image, pair.bits), read_mask(pair.mask)
    return [_small(outlined(image, mask)), _small(detail(image, mask))]


def _small(image: Tensor) -> Tensor:
    # Kept until the sheet is drawn, so no larger than a cell needs.
    factor = max(image.shape[1:]) // CELL
    return F.avg_pool2d(image[None], factor)[0] if factor > 1 else image
