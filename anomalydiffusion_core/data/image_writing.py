"""Image files written as their sources are: same bits, same channels, or all through the same JPEG codec."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError
from ..files import replacing
from ..lazy_imports import imported
from .decoding import decode, read_header

COPIED = frozenset({"PNG", "JPEG", "BMP", "TIFF", "WEBP"})
"""Formats that every reader of data sets knows."""
JPEG_HELP = (
    "Write images as JPEG of this quality, 1 to 100; masks always stay lossless. All images pass through the same "
    "codec, so that nothing can tell them apart by their file. 0 keeps them lossless."
)


def write_samples(path: Path, samples: np.ndarray, quality: int = 0) -> Path:
    """Write [H, W] or [H, W, C] of uint8 or uint16; the suffix is chosen and the path returned.

    PNG, or TIFF for colours of 16 bits, or JPEG of ``quality``. An existing file is never replaced.

    Raises InputError for a file that exists, and for deep samples or alpha as JPEG.
    """
    deep, channels = samples.dtype != np.uint8, 1 if samples.ndim == 2 else samples.shape[2]
    if quality and (deep or channels in (2, 4)):
        kept = "16 bits" if deep else "transparency"
        raise InputError(f"jpeg_quality: {path.name} has {kept}, which JPEG cannot hold. Use 0.")
    suffix = ".jpg" if quality else ".tif" if deep and channels > 1 else ".png"
    final = path.with_name(path.name + suffix)
    if final.exists():
        raise InputError(f"path: {final} exists and is never overwritten. Choose another name.")
    with replacing(final) as partial:
        if suffix == ".tif":
            with partial.open("wb") as stream:
                imported("tifffile", "imwrite")(stream, samples, photometric="rgb", compression=None)
        elif quality:
            Image.fromarray(samples).save(partial, format="JPEG", quality=quality)
        else:
            Image.fromarray(samples).save(partial, format="PNG")
    return final


def copy_image(source: Path, path: Path, quality: int = 0) -> Path:
    """Copy an image to ``path`` with the suffix that fits, which is returned.

    The bytes are copied where the file is upright and of a common format, so bits and channels stay; others are
    written anew, upright. Raises DatasetError for a damaged source, InputError as `write_samples`.
    """
    header = read_header(source)
    if quality or header.orientation != 1 or header.format not in COPIED:
        return write_samples(path, decode(source, keep_alpha=True), quality)
    final = path.with_name(path.name + source.suffix.lower())
    if final.exists():
        raise InputError(f"path: {final} exists and is never overwritten. Choose another name.")
    with replacing(final) as partial:
        shutil.copyfile(source, partial)
    return final
