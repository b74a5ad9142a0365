"""Masks are moved to random places where a given share of each lies inside a region.

The shape of a mask never changes, and it stays inside the image. Random places are tried first; every place that fits
is then equally likely. When none of the tries fits, a correlation counts the inside pixels at all places at once, so a
mask is reported as impossible only when no place exists.
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
from ..options import LARGEST_SEED, Settings, option
from ..progress import Progress
from ..sampling.blending import check_mask
from .foreground import WHOLE, ForegroundSettings, estimate_foreground
from .variation import OnDone, cropped

USE_ANOTHER, LEAVE_OUT, ERROR = "use another", "leave out", "error"
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
    """masks [N, 1, H, W] of {0, 1}, those that could not be placed unchanged; the placement of each.

    used_instead: number of a mask that could not be placed -> number of the mask that replaces it.
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
                note = "" if instead is None else f"; mask {instead} replaces it"
                lines.append(f"mask {entry.number} fits nowhere: at most {entry.share:.1%} of it can be inside{note}")
        return "\n".join(lines)


@dataclass(frozen=True)
class PlacementSettings(Settings):
    """Where masks go and what happens to those that fit nowhere."""

    share_inside: float = option(
        1.0,
        "Share of a mask that must lie inside. 0 takes any place where it touches.",
        min=0,
        max=1,
        step=0.01,
    )
    keep_inside: bool = option(False, "Leave masks where they are when enough of them lies inside already.")
    impossible: str = option(
        USE_ANOTHER,
        "What replaces a mask that fits nowhere: the next mask that fits, nothing, or an error.",
        choices=(USE_ANOTHER, LEAVE_OUT, ERROR),
    )
    seed: int = option(0, "Mask i uses seed + i. Another seed finds other places.", min=0, max=LARGEST_SEED)


def placed_inside(
    masks: Tensor, region: Tensor, settings: PlacementSettings, progress: Progress
) -> tuple[Tensor, PlacedMasks]:
    """Masks [K, 1, H, W] moved into ``region`` [1 or N, 1, H, W], and the placement of each of the N given ones.

    Raises InputError as ``place_masks``, for none that fits, and for one that fits nowhere where that is an error.
    """
    share, seed = settings.share_inside, settings.seed
    placed = place_masks(masks, region, share, seed, settings.keep_inside, progress.at)
    if settings.impossible == USE_ANOTHER:
        # The bar is full by now; this checks whether the user interrupted.
        placed = with_others(placed, masks, region, share, seed, lambda _: progress.at(len(masks)))
    without = [number for number in placed.failed if number not in placed.used_instead]
    kept = [entry.number for entry in placed.placements if entry.number not in without]
    if not kept or (without and settings.impossible != LEAVE_OUT):
        raise InputError(f"mask: {placed.describe()}. Lower share_inside, use smaller masks, or enlarge the region.")
    return placed.masks[kept], placed


def on_objects(masks: Tensor, images: Tensor, seed: int) -> Tensor:
    """Masks [N, 1, H, W] moved to random places on the objects of their images [N, 3, H, W].

    A mask stays where it is if it lies on the object already, if it fits nowhere on it, and where no object stands out
    from a plain background. Mask i depends on ``seed + i`` alone.
    """
    grounds = estimate_foreground(images, ForegroundSettings(unclear=WHOLE))
    return place_masks(masks, grounds, 1.0, seed, keep_inside=True).masks


def common_region(regions: Mapping[str, Tensor | None], count: int) -> Tensor:
    """The intersection of named regions [1 or count, 1, H, W] of {0, 1}, [1 or count, 1, H, W].

    Raises InputError for none, for another number and for regions that have nothing in common.
    """
    given = {name: region for name, region in regions.items() if region is not None}
    if not given:
        raise InputError(f"{', '.join(regions)}: none is connected. Connect at least one of them.")
    common = torch.ones(1)
    for name, region in given.items():
        if len(region) not in (1, count):
            raise InputError(f"{name}: {len(region)} for {count} masks. Give one, or one for each mask.")
        common = common * region
    empty = (common.flatten(1).amax(dim=1) == 0).nonzero().flatten().tolist()
    if empty:
        names = " and ".join(given)
        raise InputError(f"{list(given)[-1]}: entry {empty[0]} of {names} has no pixel in common. Change one of them.")
    return common


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
    """Replace each mask that fits nowhere by the next of ``masks`` that fits there, at a random place.

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
        """The mask at its new place, and the fields of its Placement after the number."""
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
