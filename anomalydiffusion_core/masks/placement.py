"""Putting masks where they may lie: a seeded search for a place where the stated share of a mask is inside a region.

A mask is moved as it is, never changed, and stays wholly in the picture. Random places are tried first; every place
that fits is then equally likely. When none of the tries fits, a correlation counts the inside pixels at all places at
once, so that a mask is called impossible only when no place exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..sampling.blending import check_mask
from .variation import OnDone, cropped

TRIES = 48
"""Random places before the correlation."""
SAMPLED_PIXELS = 64
Array = NDArray[Any]


@dataclass(frozen=True)
class Placement:
    """One mask: its number among those given, whether it could be placed, and the largest share inside found.

    moved: (down, right) in pixels.
    """

    number: int
    placed: bool
    share: float
    moved: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class PlacedMasks:
    """masks [N, 1, H, W] of {0, 1}, those that could not be placed as they were; what became of each.

    used_instead: number of a mask that could not be placed -> number of the mask that stands in its place.
    """

    masks: Tensor
    placements: tuple[Placement, ...]
    used_instead: Mapping[int, int] = field(default_factory=dict)

    @property
    def failed(self) -> tuple[int, ...]:
        """Numbers of the masks that could not be placed."""
        return tuple(entry.number for entry in self.placements if not entry.placed)

    def describe(self) -> str:
        """How many were placed, and each one that was not, as lines of plain text."""
        placed = [entry for entry in self.placements if entry.placed]
        lines = [f"{len(placed)} of {len(self.placements)} masks placed"]
        if placed:
            lines[0] += f", {min(entry.share for entry in placed):.1%} or more of each inside"
        for entry in self.placements:
            if not entry.placed:
                instead = self.used_instead.get(entry.number)
                note = "" if instead is None else f"; mask {instead} stands in its place"
                lines.append(f"mask {entry.number} fits nowhere: at most {entry.share:.1%} of it can be inside{note}")
        return "\n".join(lines)


def place_masks(
    masks: Tensor,
    regions: Tensor,
    share: float = 1.0,
    seed: int = 0,
    keep_inside: bool = False,
    on_done: OnDone | None = None,
) -> PlacedMasks:
    """Move each mask [N, 1, H, W] of {0, 1} to a random place where ``share`` (0 to 1) of it lies in its region.

    regions: [1 or N, 1, H, W] of {0, 1}. keep_inside: leave a mask where it is when that already holds. Mask i depends
    on ``seed + i`` alone. With share 0 a mask must touch the region. Raises InputError for other sizes, numbers and
    values, and for empty masks or regions.
    """
    check_mask(masks, "masks")
    check_mask(regions, "region")
    if regions.shape[-2:] != masks.shape[-2:] or len(regions) not in (1, len(masks)):
        raise InputError(
            f"region: has the shape {tuple(regions.shape)}, the masks {tuple(masks.shape)}. Give one region, or one "
            "for each mask, of the masks' size."
        )
    if not 0 <= share <= 1:
        raise InputError(f"share inside: {share} is not in 0 to 1. Give for example 1.")
    searches = [_Search(region) for region in regions[:, 0].numpy() > 0]
    moved, placements = [], []
    for number, mask in enumerate(masks[:, 0].numpy() > 0):
        search = searches[number % len(searches)]
        new, entry = search.place(mask, share, np.random.default_rng(seed + number), keep_inside)
        moved.append(new)
        placements.append(Placement(number, *entry))
        if on_done is not None:
            on_done(number + 1)
    return PlacedMasks(torch.from_numpy(np.stack(moved).astype(np.float32))[:, None], tuple(placements))


def with_others(
    placed: PlacedMasks, masks: Tensor, regions: Tensor, share: float, seed: int, on_done: OnDone | None = None
) -> PlacedMasks:
    """In the place of each mask that fits nowhere the next of ``masks`` that fits there, at a place of its own.

    The other arguments are those that ``place_masks`` was called with; on_done is called after every try. Masks for
    which no other fits are not in ``used_instead``.
    """
    result, instead = placed.masks.clone(), {}
    count, failed = len(masks), set(placed.failed)
    for number in placed.failed:
        region = regions[number % len(regions)][None]
        following = [(number + step) % count for step in range(1, count)]
        # What fits nowhere in the only region need not be tried in it again.
        for other in following if len(regions) > 1 else [x for x in following if x not in failed]:
            tried = place_masks(masks[other][None], region, share, seed + number)
            if on_done is not None:
                on_done(number)
            if not tried.failed:
                result[number], instead[number] = tried.masks[0], other
                break
    return PlacedMasks(result, placed.placements, instead)


class _Search:
    """Places in one region, bool [H, W]."""

    def __init__(self, region: Array) -> None:
        self.region = region
        self._spectrum: Array | None = None

    def place(
        self, mask: Array, share: float, rng: np.random.Generator, keep: bool
    ) -> tuple[Array, tuple[bool, float, tuple[int, int]]]:
        """The mask at its new place, and the fields of its Placement but for the number."""
        shape, top, left = cropped(mask)
        rows, columns = shape.nonzero()
        # Ten pixels of which 0.7 shall be inside are seven, not the eight that rounding up 7.000000001 makes.
        need = max(1, int(np.ceil(share * len(rows) - 1e-9)))
        if keep and int(self.region[rows + top, columns + left].sum()) >= need:
            return mask, (True, float(self.region[mask].mean()), (0, 0))
        room = np.array(mask.shape) - shape.shape + 1
        start = self._guess(rows, columns, room, need, rng)
        most = need
        if start is None:
            start, most = self._search(shape, rows, columns, room, need, rng)
        if start is None:
            return mask, (False, most / len(rows), (0, 0))
        result = np.zeros_like(mask)
        result[rows + start[0], columns + start[1]] = True
        inside = float(self.region[result].mean())
        return result, (True, inside, (start[0] - top, start[1] - left))

    def _guess(
        self, rows: Array, columns: Array, room: Array, need: int, rng: np.random.Generator
    ) -> tuple[int, int] | None:
        downs, rights = rng.integers(room[0], size=TRIES), rng.integers(room[1], size=TRIES)
        # Some of the pixels rule most places out: more of them outside than all of them may be.
        some = slice(None, None, max(1, len(rows) // SAMPLED_PIXELS))
        hits = self.region[rows[some] + downs[:, None], columns[some] + rights[:, None]]
        possible = (~hits).sum(axis=1) <= len(rows) - need
        for down, right in zip(downs[possible], rights[possible], strict=True):
            if np.count_nonzero(self.region[rows + down, columns + right]) >= need:
                return int(down), int(right)
        return None

    def _search(
        self, shape: Array, rows: Array, columns: Array, room: Array, need: int, rng: np.random.Generator
    ) -> tuple[tuple[int, int] | None, int]:
        """A random one of all places that fit, else None with the largest number of pixels inside."""
        counts = self._inside_counts(shape)[: room[0], : room[1]]
        places = np.flatnonzero(counts >= need)
        if not len(places):
            return None, int(counts.max())
        down, right = divmod(int(rng.choice(places)), counts.shape[1])
        return (down, right), need

    def _inside_counts(self, shape: Array) -> Array:
        """Pixels of the shape inside the region, for every place of its upper left corner, by correlation."""
        from scipy.fft import irfft2, rfft2

        # A circular correlation of the region's own size: places where the shape would wrap around are not used.
        if self._spectrum is None:
            self._spectrum = rfft2(self.region.astype(np.float32))
        spectrum = rfft2(shape.astype(np.float32), s=self.region.shape)
        counts: Array = np.rint(irfft2(self._spectrum * spectrum.conj(), s=self.region.shape)).astype(np.int64)
        return counts
