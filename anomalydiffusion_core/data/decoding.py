"""Image files as arrays, by Pillow: whatever it reads, upright, in full depth, and never half a file.

Damage is an error that names the file: `structure.py` finds half a file by its structure, decoding finds the rest.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import DatasetError, InputError
from .structure import PngChunks, is_complete, png_chunks

LIMIT_VARIABLE = "ANOMALYDIFFUSION_MAX_MEGAPIXELS"
DEFAULT_MEGAPIXELS = 256
"""Largest image that is read, in millions of pixels, unless the environment variable says otherwise."""
LOSSY_FORMATS = frozenset({"JPEG", "MPO"})
"""Formats that never keep values exactly; those that may are judged by what is in them."""
_ORIENTATION = 0x0112
_DEEP_MODES = ("I", "F")
_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "La", "RGBa"})
_DAMAGE = (OSError, SyntaxError, ValueError, IndexError, KeyError, TypeError, EOFError, RuntimeError, struct.error)
_OPENING = threading.Lock()


@dataclass(frozen=True)
class Header:
    """What an image file says of itself. height and width are those of the upright image.

    orientation: the EXIF tag, 1 to 8. deep: more than 8 bits a sample. frames: at least so many (pages, animation).
    mark: of a PNG its own checksums, see `content_mark`.
    """

    height: int
    width: int
    orientation: int
    deep: bool
    alpha: bool
    frames: int
    format: str
    mark: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    @property
    def stored_size(self) -> tuple[int, int]:
        """(height, width) of the pixels as they are stored, before the rotation by the tag."""
        return (self.width, self.height) if self.orientation in (5, 6, 7, 8) else self.size


@dataclass(frozen=True, eq=False)
class Indices:
    """A palette image: indices [H, W] and the colours [n, 3] of 0..255 that they stand for."""

    codes: np.ndarray
    colours: np.ndarray


def read_header(path: Path, verify: bool = False) -> Header:
    """Size, rotation, depth and kind of an image, without decoding it where its format allows.

    verify: compare the checksums of a PNG.

    Raises:
        DatasetError: no image, cut off, above the limit of pixels, or a wrong checksum.
    """
    path = Path(path)
    with _opened(path) as image:
        chunks = png_chunks(path, verify) if image.format == "PNG" else None
        if chunks is None and not is_complete(path, image):
            image.load()
        orientation = _orientation(image, chunks)
        width, height = image.size
        if orientation in (5, 6, 7, 8):
            width, height = height, width
        alpha = image.mode in _ALPHA_MODES or "transparency" in image.info
        deep, name = _is_deep(image), str(image.format or "unknown")
        return Header(height, width, orientation, deep, alpha, _frames(image), name, chunks.digest if chunks else "")


def decode(path: Path, keep_alpha: bool = False) -> np.ndarray:
    """[H,W] or [H,W,C], upright; uint8, or the wider samples as they are stored.

    Without keep_alpha there are 1 or 3 channels, and what is transparent is black: its colour means nothing. An alpha
    channel of one value is dropped.

    Raises:
        DatasetError: as `read_header`, cannot be decoded, or nothing in it is visible.
    """
    path = Path(path)
    with _opened(path) as image:
        chunks = png_chunks(path) if image.format == "PNG" else None
        if chunks is None:
            is_complete(path, image)
        if _is_deep_colour(image):
            orientation = _orientation(image, chunks)
            pixels = turned(_deep_colour(path, image), orientation)
        else:
            upright = _upright(image)
            if upright.mode.startswith(_DEEP_MODES):
                return np.asarray(upright)
            has_alpha = upright.mode in _ALPHA_MODES or "transparency" in upright.info
            if upright.mode in ("L", "1") and not has_alpha:
                return np.asarray(upright.convert("L"))
            pixels = np.asarray(upright.convert("RGBA" if has_alpha else "RGB"))
    return pixels if keep_alpha else _visible(path, pixels)


def decode_indices(path: Path) -> Indices | None:
    """The indices of a palette image, upright, with the colours of its palette; None for other images.

    A palette with transparency is none: its alpha has to be looked at. Raises DatasetError as `decode`.
    """
    path = Path(path)
    with _opened(path) as image:
        if image.mode != "P" or "transparency" in image.info:
            return None
        upright = _upright(image)
        palette = upright.getpalette() or []
        colours = np.zeros((256, 3), np.uint8)
        colours[: len(palette) // 3] = np.asarray(palette, np.uint8).reshape(-1, 3)[:256]
        return Indices(np.asarray(upright), colours)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels [H, W, ...] made upright by an orientation of EXIF (2.3, tag 0x0112)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def pixel_limit() -> int:
    """The largest number of pixels that is read. Raises InputError for a variable that is no positive number."""
    text = os.environ.get(LIMIT_VARIABLE, "").strip() or str(DEFAULT_MEGAPIXELS)
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not 0 < limit < 1e6:
        raise InputError(f"{LIMIT_VARIABLE}: {text} is not a number of megapixels. Give one such as 512.")
    return int(limit * 1e6)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file as an image of Pillow; whatever goes wrong while it is open is a DatasetError that names it."""
    try:
        with _unlimited_open(path) as image:
            if image.width * image.height > pixel_limit():
                raise DatasetError(
                    f"{path}: {image.width}x{image.height} px are above the limit of {pixel_limit() / 1e6:g} "
                    f"megapixels. Scale it down, or set the environment variable {LIMIT_VARIABLE} to a larger number."
                )
            yield image
    except (DatasetError, InputError):
        raise
    except UnidentifiedImageError as error:
        state = "is empty" if path.is_file() and not path.stat().st_size else "no known image format"
        raise DatasetError(f"{path}: not a readable image ({state}). Replace or remove the file.") from error
    except MemoryError as error:
        raise DatasetError(f"{path}: does not fit into memory. Scale it down.") from error
    except _DAMAGE as error:
        raise DatasetError(f"{path}: not a readable image ({error}). Replace or remove the file.") from error


def _unlimited_open(path: Path) -> Image.Image:
    # Pillow's own limit speaks of attacks and is not ours; where it is switched off already, it stays so
    with _OPENING:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    turned_by_tag = image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    return ImageOps.exif_transpose(image) if turned_by_tag else image  # which copies, turned or not


def _visible(path: Path, pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim == 2 or pixels.shape[2] < 4:
        return pixels
    colour, alpha = pixels[:, :, :3], pixels[:, :, 3]
    if not alpha.any():
        raise DatasetError(f"{path}: is wholly transparent. Save it without its alpha channel.")
    if alpha.min() == alpha.max():
        return colour
    full = np.iinfo(pixels.dtype).max
    return np.rint(colour * (alpha[:, :, None] / np.float64(full))).astype(pixels.dtype)


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith(_DEEP_MODES) or _is_deep_colour(image)


def _is_deep_colour(image: Image.Image) -> bool:
    # Pillow keeps the upper 8 of the 16 bits of colour images, which makes 12-bit data nearly black
    tiles = getattr(image, "tile", ())
    return image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile[3]) for tile in tiles)


def _deep_colour(path: Path, image: Image.Image) -> np.ndarray:
    """uint16 samples of a colour image: Pillow decodes it twice, for the upper and for the lower bytes.

    Which of two bytes it keeps depends on the byte order that it is told; told the wrong one, it keeps the lower.
    """
    raw = str(_raw_mode(image))
    if raw == "LA;16B":  # four bytes a pixel, like RGBA: both bytes of grey, both of alpha
        pixels = _as_raw(path, "RGBA").astype(np.uint16)
        grey, alpha = pixels[:, :, 0] << 8 | pixels[:, :, 1], pixels[:, :, 2] << 8 | pixels[:, :, 3]
        return np.stack([grey, grey, grey, alpha], axis=2)
    name, order = raw.rsplit(";16", 1)
    swapped = {"B": "L", "L": "B", "N": "B" if np.little_endian else "L"}[order]
    upper, lower = _as_raw(path, raw), _as_raw(path, f"{name};16{swapped}")
    return upper.astype(np.uint16) << 8 | lower


def _raw_mode(image: Image.Image) -> object:
    arguments = image.tile[0][3]  # type: ignore[attr-defined]
    return arguments if isinstance(arguments, str) else arguments[0]


def _as_raw(path: Path, raw: str) -> np.ndarray:
    with _unlimited_open(path) as image:
        tiles = image.tile  # type: ignore[attr-defined]
        image.tile = [  # type: ignore[attr-defined]
            tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:])) for tile in tiles
        ]
        image.load()
        return np.asarray(image)


def _frames(image: Image.Image) -> int:
    if getattr(image, "is_animated", False):
        return 2 if image.format != "TIFF" else int(getattr(image, "n_frames", 2))
    return 1


def _orientation(image: Image.Image, chunks: PngChunks | None) -> int:
    # PngImageFile.getexif decodes the image, since EXIF may follow it; the base class reads what came before
    early = chunks is not None and not chunks.exif_after_pixels
    exif = Image.Image.getexif(image) if early else image.getexif()
    orientation = exif.get(_ORIENTATION, 1)
    return orientation if orientation in range(1, 9) else 1
