"""Reading single images, writing images and masks, and resizing both.

What a factory camera writes is not always 8-bit RGB: images may be rotated by an EXIF tag, hold 10 to 16 bits, be grey
or carry alpha. Everything becomes one form here, [3,H,W] float32 in [0,1]. Masks are read by `mask_files.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import DatasetError, InputError
from ..figures import require_finite, to_bytes
from ..files import replacing
from .decoding import decode, read_header
from .mask_resizing import target_size

BIT_DEPTHS = (8, 10, 12, 14, 16)
HOT_PIXELS = 4
HOT_SHARE = 1e-4
LARGEST_HOT_SHARE = 5e-3
"""Samples that may lie above the depth of an image: so many, or this share if it is more; of a tiny image fewer."""


def read_image(path: Path, bits: int | None = None) -> Tensor:
    """Read an image as [3,H,W] float32 in [0,1]: EXIF rotation applied, grey repeated, transparent parts black.

    Samples wider than 8 bits are divided by 2**bits - 1. Cameras often store 10 or 12 bits in 16, so without `bits`
    the smallest of 8, 10, 12, 14 and 16 that holds the samples of this image is taken. Pass the `bits` of the whole
    data set (see `stored_bits`) where images have to keep their brightness relative to each other. A few hot pixels
    do not count; they become 1. Floating point samples in 0..1 are taken as they are, larger ones by the same rule.

    Raises:
        DatasetError: the file cannot be decoded, or has negative or more than 16-bit samples.
        InputError: `bits` is too small for this image.
    """
    path = Path(path)
    samples = decode(path)
    channels = [samples] if samples.ndim == 2 else [samples[:, :, place] for place in range(3)]
    if samples.dtype == np.uint8:
        image = torch.empty(len(channels), *samples.shape[:2])
        for place, channel in enumerate(channels):  # one after the other: large images hardly fit into memory twice
            image[place] = torch.from_numpy(channel.copy())
        image.div_(255)
    else:
        own_bits, _ = _depth(samples, path)
        if bits is not None and own_bits > bits:
            raise InputError(f"bits: {path} needs {own_bits}, given {bits}. Use the depth of the deepest image.")
        full_scale = 2 ** (bits or own_bits) - 1 if own_bits else 1
        image = torch.from_numpy(np.stack([(channel / full_scale).astype(np.float32) for channel in channels])).clamp_(
            max=1
        )
    return image.repeat(3, 1, 1) if len(image) == 1 else image


def stored_bits(path: Path) -> int:
    """The bits per sample that this image uses: 8, 10, 12, 14 or 16; 0 for floating point samples in 0..1."""
    return measured_depth(path)[0]


def measured_depth(path: Path) -> tuple[int, int]:
    """`stored_bits` and the number of samples above them: hot pixels, at most one of 10,000 or 4 of a small image."""
    if not read_header(path).deep:
        return 8, 0
    return _depth(decode(path), Path(path))


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) after the EXIF rotation, read from the header alone.

    Raises:
        DatasetError: the file is not a readable image, or is cut off.
    """
    return read_header(path).size


def write_image(path: Path, image: Tensor) -> None:
    """Write [3,H,W] in [0,1] as an 8-bit RGB PNG (nearest value), atomically; an existing file is never replaced.

    Raises:
        InputError: wrong shape, non-finite values, a suffix other than .png, or the file exists.
    """
    if image.ndim != 3 or image.shape[0] != 3:
        raise InputError(f"image: shape {tuple(image.shape)} for {path}. Expected [3,H,W].")
    _write_png(Path(path), to_bytes(image).transpose(1, 2, 0))


def write_mask(path: Path, mask: Tensor) -> None:
    """Write [1,H,W] as an 8-bit grey PNG that holds 0 and 255 only (above 0.5 is 255), atomically, never replacing.

    Raises:
        InputError: wrong shape, non-finite values, a suffix other than .png, or the file exists.
    """
    if mask.ndim != 3 or mask.shape[0] != 1:
        raise InputError(f"mask: shape {tuple(mask.shape)} for {path}. Expected [1,H,W].")
    require_finite(mask)
    inside = (mask[0].detach().cpu() > 0.5).numpy()
    _write_png(Path(path), inside.astype(np.uint8) * 255)


def resize_image(image: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Bilinear with antialiasing, [B,3,H,W] -> [B,3,size,size] (or (height, width)); the aspect is not kept."""
    target = target_size(size)
    if tuple(image.shape[-2:]) == target:
        return image
    resized = F.interpolate(image, size=target, mode="bilinear", antialias=True, align_corners=False)
    return resized.clamp(0, 1)


def _depth(samples: np.ndarray, path: Path) -> tuple[int, int]:
    if samples.dtype == np.uint8:
        return 8, 0
    if not np.isfinite(samples).all() or samples.min() < 0:
        raise DatasetError(f"{path}: has negative or non-finite samples. Store images with values from 0 up.")
    largest = samples.max()
    if np.issubdtype(samples.dtype, np.floating) and largest <= 1:
        return 0, 0
    if largest >= 2 ** BIT_DEPTHS[-1]:
        raise DatasetError(f"{path}: has samples up to {largest}. Store images with at most 16 bits.")
    allowed = min(max(HOT_PIXELS, int(samples.size * HOT_SHARE)), int(samples.size * LARGEST_HOT_SHARE))
    for bits in BIT_DEPTHS:
        hot = int((samples >= 2**bits).sum())
        if hot <= allowed:
            return bits, hot
    raise AssertionError("unreachable")


def _write_png(path: Path, pixels: np.ndarray) -> None:
    if path.suffix.lower() != ".png":
        raise InputError(f"path: {path} would not be lossless. Use the suffix .png.")
    if path.exists():
        raise InputError(f"path: {path} exists and is never overwritten. Choose another name.")
    with replacing(path) as partial:
        Image.fromarray(pixels).save(partial, format="PNG")
