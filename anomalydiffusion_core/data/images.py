"""Reading and writing single images and masks.

What a factory camera or an annotation tool writes is not always 8-bit RGB: images may be rotated by an EXIF tag,
hold 10 to 16 bits, be grey or carry alpha; masks may be coloured, indexed, or use 236 or 1 where 255 is expected.
Everything becomes one form here, images [3,H,W] float32 in [0,1] and masks [1,H,W] float32 exactly {0,1}.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import DatasetError, InputError
from ..figures import require_finite, to_bytes
from ..files import replacing
from ..lazy_imports import imported
from .mask_resizing import target_size

BIT_DEPTHS = (8, 10, 12, 14, 16)
LABEL_MAP_VALUES = 16
_LOSSY_FORMATS = {"JPEG", "WEBP", "MPO"}
_DEEP_MODES = ("I", "F")
_ORIENTATION = 0x0112


def read_image(path: Path, bits: int | None = None) -> Tensor:
    """Read an image as [3,H,W] float32 in [0,1]: EXIF rotation applied, grey repeated, alpha dropped.

    Samples wider than 8 bits are divided by 2**bits - 1. Cameras often store 10 or 12 bits in 16, so without `bits`
    the smallest of 8, 10, 12, 14 and 16 that holds the largest sample of this image is taken. Pass the `bits` of
    the whole data set (see `stored_bits`) where images have to keep their brightness relative to each other.
    Floating point samples in 0..1 are taken as they are, larger ones by the same rule.

    Raises:
        DatasetError: the file cannot be decoded, or has negative or more than 16-bit samples.
        InputError: `bits` is too small for this image.
    """
    path = Path(path)
    samples = _decode(path)
    if samples.dtype == np.uint8:
        scaled = samples.astype(np.float32) / 255.0
    else:
        own_bits = _bits_needed(samples, path)
        if bits is not None and own_bits > bits:
            raise InputError(f"bits: {path} needs {own_bits}, given {bits}. Use the depth of the deepest image.")
        full_scale = 2 ** (bits or own_bits) - 1 if own_bits else 1
        scaled = (samples.astype(np.float64) / full_scale).astype(np.float32)
    if scaled.ndim == 2:
        scaled = np.repeat(scaled[:, :, None], 3, axis=2)
    return torch.from_numpy(np.ascontiguousarray(scaled[:, :, :3].transpose(2, 0, 1)))


def stored_bits(path: Path) -> int:
    """The bits per sample that this image uses: 8, 10, 12, 14 or 16; 0 for floating point samples in 0..1."""
    path = Path(path)
    with _opened(path) as image:
        if not _is_deep(image):
            return 8
    return _bits_needed(_decode(path), path)


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) after the EXIF rotation, read from the header alone.

    Raises:
        DatasetError: the file is not a readable image.
    """
    with _opened(Path(path)) as image:
        width, height = image.size
        turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def read_mask(path: Path) -> Tensor:
    """Read a mask of any mode as [1,H,W] float32 with the values 0 and 1 only.

    Channels are reduced by their maximum; a mask drawn into the alpha channel of an image of one colour is found.
    A lossless mask of at most 16 different values is a label map: everything that is not 0 is defect. Otherwise
    (soft edges, JPEG) a pixel is defect above half of the largest value in the file, whatever that is. So a mask
    comes out empty only if it holds nothing but 0.

    Raises:
        DatasetError: the file cannot be decoded.
    """
    path = Path(path)
    with _opened(path) as image:
        lossy = image.format in _LOSSY_FORMATS
        indices = np.asarray(ImageOps.exif_transpose(image)) if image.mode == "P" else None
    samples = _decode(path, keep_alpha=True)
    values = _mask_values(samples)
    if indices is not None and not values.any():
        values = indices.astype(np.float64)  # every palette entry is black: the index itself carries the mask
    largest = float(values.max(initial=0.0))
    if largest <= 0:
        inside = np.zeros(values.shape, dtype=bool)
    elif not lossy and len(np.unique(values)) <= LABEL_MAP_VALUES:
        inside = values > 0
    else:
        inside = values > largest / 2
    return torch.from_numpy(inside.astype(np.float32))[None]


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


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path}: not a readable image ({error}). Replace or remove the file.") from error


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith(_DEEP_MODES) or _is_deep_colour(image)


def _is_deep_colour(image: Image.Image) -> bool:
    # Pillow keeps the upper 8 of the 16 bits of colour images, which makes 12-bit data nearly black
    tiles = getattr(image, "tile", ())
    return image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile[3]) for tile in tiles)


def _decode(path: Path, keep_alpha: bool = False) -> np.ndarray:
    """[H,W] or [H,W,C]; uint8, or the wider samples as they are stored."""
    try:
        with _opened(path) as image:
            if _is_deep_colour(image):
                pixels = _turned(_decode_deep_colour(path, image.format), image.getexif().get(_ORIENTATION, 1))
                return pixels if keep_alpha else pixels[:, :, :3]
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith(_DEEP_MODES):
                return np.asarray(upright)
            has_alpha = upright.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in upright.info
            return np.asarray(upright.convert("RGBA" if keep_alpha and has_alpha else "RGB"))
    except (OSError, SyntaxError, RuntimeError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path}: cannot be decoded ({error}). Replace or remove the file.") from error


def _decode_deep_colour(path: Path, file_format: str | None) -> np.ndarray:
    if file_format == "PNG":
        try:
            from torchvision.io import ImageReadMode, decode_png
        except ImportError as error:  # torchvision announced the removal of its decoders
            raise DatasetError(f"{path}: 16-bit colour PNG. Store it as 16-bit TIFF or as 8-bit PNG.") from error

        encoded = torch.from_numpy(np.frombuffer(path.read_bytes(), dtype=np.uint8).copy())
        pixels = decode_png(encoded, mode=ImageReadMode.UNCHANGED).numpy().transpose(1, 2, 0)
    else:
        pixels = imported("skimage.io", "imread")(path)
    if pixels.shape[2] == 2:
        pixels = pixels[:, :, [0, 0, 0, 1]]
    return pixels


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    # EXIF 2.3, tag 0x0112; Pillow's own exif_transpose cannot hold 16-bit colour
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _mask_values(samples: np.ndarray) -> np.ndarray:
    values = np.abs(np.nan_to_num(samples.astype(np.float64)))
    if values.ndim == 2:
        return values
    colour = values[:, :, :3].max(axis=2)
    if values.shape[2] < 4:
        return colour
    alpha = values[:, :, 3]
    if alpha.min() == alpha.max():
        return colour
    visible = colour * alpha
    # drawn in black, or in white on transparent white: only the alpha channel tells the shape
    return alpha if colour.min() == colour.max() or not visible.any() else visible


def _bits_needed(samples: np.ndarray, path: Path) -> int:
    if samples.dtype == np.uint8:
        return 8
    if not np.isfinite(samples).all() or samples.min() < 0:
        raise DatasetError(f"{path}: has negative or non-finite samples. Store images with values from 0 up.")
    largest = samples.max()
    if np.issubdtype(samples.dtype, np.floating) and largest <= 1:
        return 0
    for bits in BIT_DEPTHS:
        if largest < 2**bits:
            return bits
    raise DatasetError(f"{path}: has samples up to {largest}. Store images with at most 16 bits.")


def _write_png(path: Path, pixels: np.ndarray) -> None:
    if path.suffix.lower() != ".png":
        raise InputError(f"path: {path} would not be lossless. Use the suffix .png.")
    if path.exists():
        raise InputError(f"path: {path} exists and is never overwritten. Choose another name.")
    with replacing(path) as partial:
        Image.fromarray(pixels).save(partial, format="PNG")
