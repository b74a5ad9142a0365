"""Latent masks, padding to the model's grid, and the final pixel composite.

Paper, Eq. 1: the anomaly lives inside the mask, everything else stays the normal image. Three details decide whether
that holds in practice: a latent cell counts as soon as one mask pixel touches it (else thin defects vanish), any
image size is padded to the model's grid and cropped back, and the last step happens in pixels, where what lies
outside the mask is copied bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.mask_resizing import resize_mask
from ..errors import InputError


def check_mask(mask: Tensor, name: str = "mask", allow_empty: bool = False) -> None:
    """Refuse a mask that is not float [B, 1, H, W] holding exactly 0 and 1, or (unless allowed) has an empty entry.

    Raises InputError that names ``name``, and for an empty mask its place in the batch.
    """
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise InputError(f"{name}: has the shape {tuple(mask.shape)}. Give masks as [B, 1, height, width].")
    if not bool(((mask == 0) | (mask == 1)).all()):
        low, high = float(mask.min()), float(mask.max())
        raise InputError(f"{name}: holds values other than 0 and 1 ({low:g} to {high:g}). Threshold it first.")
    if not allow_empty:
        empty = (mask.flatten(1).amax(dim=1) == 0).nonzero().flatten().tolist()
        if empty:
            raise InputError(f"{name}: entry {empty[0]} of {len(mask)} is empty. Give a mask with a marked region.")


def fit_masks(
    masks: Tensor, size: Sequence[int], notices: list[str], name: str = "mask", fitted_to: str = "image"
) -> Tensor:
    """Masks [B, 1, H, W] of {0, 1} at the size (height, width) of images; the same aspect is resized with a notice.

    name, fitted_to: what the masks and what has the size, for the messages. Raises InputError with both sizes for
    another aspect.
    """
    height, width = masks.shape[-2:]
    if (height, width) == tuple(size):
        return masks
    sizes = f"{width}x{height} px, the {fitted_to} {size[1]}x{size[0]} px"
    # One pixel of rounding on the shorter side is no other aspect.
    if abs(width * size[0] - height * size[1]) > max(*size, height, width):
        raise InputError(f"{name}: is {sizes}. Give a mask of the {fitted_to}'s size, or at least of its aspect.")
    notices.append(f"the {name} is {sizes}: it was resized")
    resized = resize_mask(masks, (int(size[0]), int(size[1])))
    check_mask(resized)
    return resized


def latent_mask(mask: Tensor, downscale: int) -> Tensor:
    """Pixel mask [B, 1, H, W] to latent mask [B, 1, ceil(H / downscale), ceil(W / downscale)], both exactly {0, 1}.

    Max-pooled: every latent cell that a mask pixel touches is 1, so a non-empty mask is never empty in latent space.
    """
    return F.max_pool2d(mask, downscale, ceil_mode=True)


@dataclass(frozen=True)
class Padding:
    """The size before padding, for :func:`crop_back`."""

    height: int
    width: int


def _missing(side: int, multiple: int, smallest: int) -> int:
    return max(side + -side % multiple, smallest) - side


def pad_to_multiple(images: Tensor, multiple: int, smallest: int = 0) -> tuple[Tensor, Padding]:
    """Pad [B, C, H, W] at the right and the bottom to multiples of ``multiple`` by mirroring.

    Mirrored where the image is large enough, else the border is repeated. ``smallest``: least length of a side in
    pixels, itself a multiple. Masks are padded with :func:`pad_mask_to_multiple`, which marks nothing in the padding.
    """
    height, width = images.shape[-2:]
    below, right = _missing(height, multiple, smallest), _missing(width, multiple, smallest)
    if below or right:
        mode = "reflect" if below < height and right < width else "replicate"
        images = F.pad(images, (0, right, 0, below), mode=mode)
    return images, Padding(height, width)


def pad_mask_to_multiple(mask: Tensor, multiple: int, smallest: int = 0) -> Tensor:
    """Pad a mask [B, 1, H, W] as :func:`pad_to_multiple` pads its image, with zeros."""
    height, width = mask.shape[-2:]
    return F.pad(mask, (0, _missing(width, multiple, smallest), 0, _missing(height, multiple, smallest)))


def crop_back(images: Tensor, padding: Padding) -> Tensor:
    """Undo :func:`pad_to_multiple`: the very pixels that went in, at the size that went in."""
    return images[..., : padding.height, : padding.width]


def marked_part(mask: Tensor) -> tuple[slice, slice]:
    """Rows and columns of a mask [B, 1, H, W] with all that is marked, and one pixel around it inside the image.

    What depends on the distance to the edge of the mask is the same there as in the whole image, which may be huge.
    """
    parts = []
    for axis in (3, 2):  # what is left when the other axis is reduced
        marked = mask.amax(dim=(0, 1, axis)).nonzero().flatten()
        first, last = (int(marked[0]), int(marked[-1])) if len(marked) else (0, 0)
        parts.append(slice(max(first - 1, 0), last + 2))
    return parts[0], parts[1]


def eroded(mask: Tensor, pixels: int) -> Tensor:
    """The mask [B, 1, H, W] without its outer ``pixels``; the image's border is no edge."""
    rows, columns = marked_part(mask)
    inside = mask[..., rows, columns]
    for _ in range(pixels):
        inside = _shrunk(inside)
    whole = torch.zeros_like(mask)
    whole[..., rows, columns] = inside
    return whole


def _shrunk(mask: Tensor) -> Tensor:
    return 1 - F.max_pool2d(1 - mask, 3, stride=1, padding=1)


def inward_feather(mask: Tensor, feather: int) -> Tensor:
    """Blend weights [B, 1, H, W]: 0 outside the mask, rising to 1 over ``feather`` pixels inwards, never 0 inside.

    A pixel ``i`` steps (in the chessboard metric) from the outside gets i / (feather + 1). Where the region is thinner
    than that, its thickest pixels nearby get 1, so that a line one pixel wide is not faded. The image's border is no
    edge: a region that touches it is not feathered there.
    """
    if feather < 0:
        raise InputError(f"feather: {feather} is negative. Give 0 or more pixels.")
    rows, columns = marked_part(mask)
    part = mask[..., rows, columns]
    depth, inside = part.clone(), part
    for _ in range(feather):
        inside = _shrunk(inside)
        depth = depth + inside
    window = 2 * feather + 1
    reach = F.max_pool2d(depth, window, stride=1, padding=feather)
    whole = torch.zeros_like(mask)
    whole[..., rows, columns] = torch.where(part > 0, depth / reach.clamp_min(1), part)
    return whole


def composite(generated: Tensor, normal: Tensor, mask: Tensor, feather: int = 2) -> Tensor:
    """The generated image inside the mask, the normal image bit for bit outside it; [B, 3, H, W] in [0, 1].

    The transition lies inside the mask (:func:`inward_feather`), so every changed pixel is a mask pixel, also after
    rounding to 8 bits. Raises InputError when sizes disagree.
    """
    if generated.shape != normal.shape or generated.shape[-2:] != mask.shape[-2:]:
        shapes = f"{tuple(generated.shape)}, {tuple(normal.shape)} and {tuple(mask.shape)}"
        raise InputError(f"composite: generated, normal and mask have the shapes {shapes}. They must agree.")
    weight = inward_feather(mask, feather)
    blended = normal + weight * (generated - normal)
    blended = torch.where(weight >= 1, generated, blended)
    return torch.where(mask > 0, blended.clamp(0, 1), normal)
