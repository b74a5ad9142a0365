"""Generated mask images become usable masks, or are rejected for a stated reason (paper, section 3.4).

The published code thresholds at 0.8 on the scale -1 to 1 and only knows the border rule, so empty masks pass there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..options import Settings, check_order, option
from .shape import ShapeLimits

AUTHORS_THRESHOLD = 0.9
"""0.8 on the scale -1 to 1, as the published code thresholds, on the scale 0 to 1."""


@dataclass(frozen=True)
class MaskRules(Settings):
    """What a mask must be. Parts are 8-connected; the border rule is that of the published code."""

    threshold: float = option(
        0.5,
        f"Brightness above which a pixel belongs to the mask; {AUTHORS_THRESHOLD} in the authors' code.",
        min=0.01,
        max=0.99,
        step=0.01,
    )
    smallest_area: float = option(
        0.0005, "Share of the image that a mask must cover at least.", min=0, max=1, step=0.0001, exact=True
    )
    largest_area: float = option(0.5, "Share of the image that a mask may cover at most.", min=0, max=1, step=0.01)
    most_components: int = option(0, "Largest number of separate parts of a mask. 0 allows any.", min=0, max=1000)
    speck_area: float = option(
        0.0002,
        "Parts smaller than this share of the image are removed before a mask is judged.",
        min=0,
        max=0.1,
        step=0.0001,
        exact=True,
    )
    fill_holes: bool = option(False, "Fill holes that a mask surrounds.")
    border_rule: bool = option(True, "Reject masks that cover more than a third of one border of the image.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self, "smallest_area", "largest_area")


@dataclass(frozen=True)
class MaskRegion:
    """Where masks may lie. name: used in reasons. pixels: bool [H, W]. share: smallest share of a mask inside, 0 to 1.

    With share 0 a mask must touch the region. What of an accepted mask lies outside is cut off.
    """

    name: str
    pixels: np.ndarray
    share: float = 0.0

    def __post_init__(self) -> None:
        if self.pixels.ndim != 2 or not self.pixels.any():
            raise InputError(f"{self.name}: marks nothing. Connect a mask with a region.")
        if not 0 <= self.share <= 1:
            raise InputError(f"{self.name} overlap: {self.share} is not in 0 to 1. Give for example 0.5.")


@dataclass(frozen=True)
class CleanedMasks:
    """Accepted masks [K, 1, H, W] of {0, 1}, none empty; their indices; index and reason of the others."""

    masks: Tensor
    accepted: tuple[int, ...]
    rejected: tuple[tuple[int, str], ...]


def binarise(images: Tensor, threshold: float = AUTHORS_THRESHOLD) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] to masks [B, 1, H, W] of {0, 1}: channel mean above ``threshold``."""
    return (images.mean(dim=1, keepdim=True) > threshold).float()


def clean_masks(
    images: Tensor,
    rules: MaskRules | None = None,
    regions: Sequence[MaskRegion] = (),
    limits: ShapeLimits | None = None,
) -> CleanedMasks:
    """Threshold images or masks [B, C, H, W] and keep those that obey ``rules`` and lie in all ``regions``.

    Areas, parts, borders and shapes (``limits``) are judged after what lies outside the regions is cut off.
    Raises InputError for another shape and for regions of another size.
    """
    rules = rules or MaskRules()
    if images.ndim != 4:
        raise InputError(f"mask images: have the shape {tuple(images.shape)}. Give [B, C, height, width].")
    for region in regions:
        if region.pixels.shape != tuple(images.shape[-2:]):
            sizes = f"{region.pixels.shape}, the masks {tuple(images.shape[-2:])}"
            raise InputError(f"{region.name}: has the size {sizes}. Give a region of the masks' size.")
    masks = binarise(images, rules.threshold).cpu()
    kept: list[Tensor] = []
    accepted: list[int] = []
    rejected: list[tuple[int, str]] = []
    for place, mask in enumerate(masks):
        pixels, reason = _judge(mask[0].numpy() > 0, rules, regions)
        if limits is not None and not reason:
            reason = limits.verdict(pixels)
        if reason:
            rejected.append((place, reason))
        else:
            accepted.append(place)
            kept.append(torch.from_numpy(pixels.astype(np.float32))[None])
    stacked = torch.stack(kept) if kept else masks.new_zeros((0, 1, *masks.shape[-2:]))
    return CleanedMasks(stacked, tuple(accepted), tuple(rejected))


def _judge(pixels: np.ndarray, rules: MaskRules, regions: Sequence[MaskRegion]) -> tuple[np.ndarray, str]:
    """The cleaned pixels and why they are rejected, "" when they are not."""
    from scipy import ndimage

    if not pixels.any():
        return pixels, f"empty: no pixel is above the threshold {rules.threshold:g}"
    if rules.fill_holes:
        pixels = ndimage.binary_fill_holes(pixels)
    pixels, parts = _without_specks(pixels, rules.speck_area)
    for region in regions:
        inside = pixels & region.pixels
        share = inside.sum() / max(pixels.sum(), 1)
        if parts and (share < region.share or not share):
            return pixels, f"off the {region.name}: {share:.0%} lies on it, at least {region.share:.0%} is required"
        # The cut may leave crumbs.
        pixels, parts = _without_specks(inside, rules.speck_area)
    if not parts:
        return pixels, f"specks only: no part covers {rules.speck_area:.2%} of the image"
    area = float(pixels.mean())
    if area < rules.smallest_area:
        return pixels, f"too small: covers {area:.3%}, at least {rules.smallest_area:.3%} is required"
    if area > rules.largest_area:
        return pixels, f"too large: covers {area:.1%}, at most {rules.largest_area:.1%} is allowed"
    if rules.most_components and parts > rules.most_components:
        return pixels, f"too many parts: {parts}, at most {rules.most_components} are allowed"
    if rules.border_rule:
        edges = {"top": pixels[0], "bottom": pixels[-1], "left": pixels[:, 0], "right": pixels[:, -1]}
        for name, edge in edges.items():
            if edge.sum() * 3 > edge.size:
                return pixels, f"border: covers {int(edge.sum())} of {edge.size} pixels of the {name} border"
    return pixels, ""


def _without_specks(pixels: np.ndarray, smallest: float) -> tuple[np.ndarray, int]:
    """What is left without parts below ``smallest`` (share of the image), and the number of parts left."""
    from scipy import ndimage

    labels, parts = ndimage.label(pixels, structure=np.ones((3, 3)))
    if smallest <= 0:
        return pixels, parts
    large = np.bincount(labels.ravel(), minlength=parts + 1) >= smallest * pixels.size
    large[0] = False
    return large[labels], int(large.sum())
