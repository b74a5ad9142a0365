"""Whether an image file is whole, by its structure, without decoding it, and what tells two files apart.

PNG, JPEG, TIFF, BMP and WebP say how long they are, or have an end that can be found.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, TiffImagePlugin

from ..errors import DatasetError
from ..files import file_digest

PNG_START = b"\x89PNG\r\n\x1a\n"
_EXIF_IN_TEXT = (b"Raw profile type", b"XML:com.adobe.xmp")
_STRIPS, _TILES = (273, 279), (324, 325)
"""Tags of a TIFF: the places of its strips or tiles, and their lengths."""


@dataclass(frozen=True)
class PngChunks:
    """digest: of all kinds, lengths and checksums. exif_after_pixels: whether the rotation may come late."""

    digest: str
    exif_after_pixels: bool


def png_chunks(path: Path, verify: bool = False) -> PngChunks:
    """Walk the chunks of a PNG, reading little more than their heads.

    verify: compare the checksums, for which the whole file is read. Raises DatasetError when the file ends before
    IEND, or for a wrong checksum.
    """
    pixels = late = False
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        place, size = len(PNG_START), os.fstat(stream.fileno()).st_size
        stream.seek(place)
        head = stream.read(8)
        while place + 12 <= size:
            length, kind = struct.unpack(">I4s", head)
            if place + 12 + length > size:
                break
            if kind == b"IDAT":
                pixels = True
            elif pixels:
                text = stream.read(min(length, 18)) if kind in (b"tEXt", b"zTXt", b"iTXt") else b""
                late |= kind == b"eXIf" or text.startswith(_EXIF_IN_TEXT)
            stream.seek(place + 8)
            content = stream.read(length) if verify else b""
            stream.seek(place + 8 + length)
            tail = stream.read(12)  # its checksum, and the head of the next one
            digest.update(head)
            digest.update(tail[:4])
            if verify and zlib.crc32(content, zlib.crc32(kind)).to_bytes(4, "big") != tail[:4]:
                raise DatasetError(f"{path}: is damaged, a checksum is wrong. Copy the file again, or remove it.")
            if kind == b"IEND":
                return PngChunks(digest.hexdigest(), late)
            place, head = place + 12 + length, tail[4:]
    raise DatasetError(_cut(path, size, max(place + 12, size + 1)))


def content_mark(path: Path) -> str:
    """The same for files of the same content: of a PNG its own checksums, which is fast, else a hash of all of it."""
    with path.open("rb") as stream:
        is_png = stream.read(len(PNG_START)) == PNG_START
    return png_chunks(path).digest if is_png else file_digest(path)


def is_complete(path: Path, image: Image.Image) -> bool:
    """Raise DatasetError for a file that is cut off; False where only decoding can tell.

    image: the opened file, no PNG, for which there is `png_chunks`.
    """
    size = path.stat().st_size
    if image.format in ("JPEG", "MPO"):
        _check_jpeg(path)
        return True
    if image.format == "TIFF" and isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        for places, lengths in (_STRIPS, _TILES):
            if places in tags and lengths in tags:
                ends = [a + b for a, b in zip(_numbers(tags[places]), _numbers(tags[lengths]), strict=False)]
                _need(path, size, max(ends, default=0))
                return True
    if image.format in ("BMP", "DIB"):
        tile = image.tile[0]  # type: ignore[attr-defined]
        if tile[0] == "raw" and tile[3][1]:
            _need(path, size, tile[2] + tile[3][1] * image.height)
            return True
    if image.format == "WEBP":
        with path.open("rb") as stream:
            _need(path, size, 8 + struct.unpack("<4xI", stream.read(8))[0])
        return True
    return False


def _check_jpeg(path: Path) -> None:
    """Look for the end marker behind the first scan. In a scan 0xFF is followed by 0, so no data looks like it."""
    with _mapped(path) as content:
        place, size = 2, len(content)
        while place + 4 <= size and content[place] == 0xFF and content[place + 1] != 0xDA:
            if content[place + 1] == 0xFF:  # fill bytes
                place += 1
            elif content[place + 1] in (0x01, *range(0xD0, 0xD9)):  # markers without a length
                place += 2
            else:
                place += 2 + struct.unpack_from(">H", content, place + 2)[0]
        if content.rfind(b"\xff\xd9", min(place, size)) < 0:
            raise DatasetError(f"{path}: is cut off, its end is missing. Copy the file again, or remove it.")


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


def _need(path: Path, size: int, needed: int) -> None:
    if needed > size:
        raise DatasetError(_cut(path, size, needed))


def _cut(path: Path, size: int, needed: int) -> str:
    return f"{path}: is cut off after {size} of at least {needed} bytes. Copy the file again, or remove it."


def _numbers(value: object) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple) else (int(value),)  # type: ignore[call-overload]
