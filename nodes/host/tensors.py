"""ComfyUI's IMAGE and MASK tensors to the core's and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...anomalydiffusion_core.errors import InputError


def to_core_images(image: Tensor, name: str = "image") -> Tensor:
    """IMAGE [B, H, W, C] to float32 [B, 3, H, W] in [0, 1], a copy on the CPU; alpha is dropped, grey is tripled."""
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or not len(image):
        raise InputError(f"{name}: has the shape {tuple(image.shape)}. Connect images [B, height, width, 3].")
    pixels = image[..., :3].movedim(-1, 1).expand(-1, 3, -1, -1)
    # Cloned outside inference mode: tensors made inside it cannot be trained on.
    with torch.inference_mode(False):
        return pixels.detach().clone().to("cpu", torch.float32).clamp(0, 1)


def alpha_notices(images: Sequence[Tensor]) -> list[str]:
    """A notice where one of these IMAGEs [B, H, W, C] has an alpha channel, which nothing here uses."""
    dropped = any(image.ndim == 4 and image.shape[-1] == 4 for image in images)
    return ["notice: the images have an alpha channel, which was dropped"] if dropped else []


def to_host_images(images: Tensor) -> Tensor:
    """[B, 3, H, W] or [3, H, W] to IMAGE [B, H, W, 3]."""
    images = images[None] if images.ndim == 3 else images
    return images.detach().movedim(1, -1).contiguous().to("cpu", torch.float32)


def to_core_masks(mask: Tensor, name: str = "mask") -> Tensor:
    """MASK [B, H, W] or [H, W] to float32 [B, 1, H, W] of exactly {0, 1}, thresholded at one half.

    Raises InputError for an empty entry: it says whether the threshold made it empty.
    """
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3 or not len(mask):
        raise InputError(f"{name}: has the shape {tuple(mask.shape)}. Connect masks [B, height, width].")
    binary = (mask.detach() > 0.5).to("cpu", torch.float32)[:, None]
    empty = (binary.flatten(1).amax(dim=1) == 0).nonzero().flatten().tolist()
    if empty:
        largest = float(mask[empty[0]].max())
        hint = f"its largest value is {largest:.2f}, a region counts above 0.5" if largest > 0 else "nothing is marked"
        raise InputError(f"{name}: entry {empty[0]} of {len(mask)} is empty ({hint}). Connect a mask with a region.")
    return binary


def to_core_pairs(
    images: Sequence[Tensor], masks: Sequence[Tensor], normals: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Lists of IMAGE, MASK and IMAGE, one entry for each type, for the core."""
    made = [to_core_images(one) for one in images], [to_core_masks(one) for one in masks]
    return *made, [to_core_images(one, "normals") for one in normals]


def given_masks(**masks: Tensor | None) -> list[Tensor | None]:
    """Optional MASK inputs by name, as `to_core_masks`; None stays None."""
    return [None if mask is None else to_core_masks(mask, name) for name, mask in masks.items()]


def to_host_masks(masks: Tensor) -> Tensor:
    """[B, 1, H, W] to MASK [B, H, W]."""
    return masks.detach()[:, 0].contiguous().to("cpu", torch.float32)
