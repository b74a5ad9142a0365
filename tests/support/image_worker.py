"""Reads mutated images and masks in a process of its own, and says after each what became of it.

    python image_worker.py FOLDER FIRST COUNT

A crash of the process is then seen from outside, together with the number of the file.
"""

from __future__ import annotations

import io
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from attacks import damaged
from PIL import Image

from anomalydiffusion_core.data.images import image_size, read_image
from anomalydiffusion_core.data.mask_files import read_mask
from anomalydiffusion_core.errors import AnomalyDiffusionError

FORMATS: list[tuple[str, str, dict[str, Any]]] = [
    *(("png", mode, {}) for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")),
    *(("jpg", mode, {"quality": 90}) for mode in ("RGB", "L", "CMYK")),
    *(("bmp", mode, {}) for mode in ("RGB", "L", "1")),
    *(("tif", mode, {"compression": how}) for mode in ("RGB", "L", "I;16") for how in ("raw", "tiff_lzw")),
    *(("webp", mode, {}) for mode in ("RGB", "RGBA")),
    *(("gif", mode, {}) for mode in ("P", "L")),
]


def image(rng: random.Random) -> tuple[str, bytes]:
    """The suffix and the content of a small image in one of the formats."""
    suffix, mode, options = rng.choice(FORMATS)
    side = rng.choice([1, 3, 16, 33])
    pixels = np.random.default_rng(rng.randrange(1000)).integers(0, 256, (side, side, 3), np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()), **options)
    return suffix, buffer.getvalue()


def deep_png() -> bytes:
    """A 16-bit RGB PNG of one pixel, which Pillow cannot write."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(7))) + chunk(b"IEND", b"")


def main(folder: Path, first: int, count: int) -> None:
    """Read the images ``first`` to ``count - 1``."""
    for number in range(first, count):
        rng = random.Random(number)
        suffix, content = ("png", deep_png()) if number % 6 == 0 else image(rng)
        path = folder / f"x.{suffix}"
        path.write_bytes(damaged(content, rng))
        said = []
        for read in (read_image, read_mask, image_size):
            try:
                read(path)
                said.append("read")
            except AnomalyDiffusionError as error:
                said.append("refused" if path.name in str(error) else f"unnamed: {error}")
            except Exception as error:
                said.append(f"{type(error).__name__}: {error}")
        path.unlink()
        print(number, "|".join(said).replace("\n", " "), flush=True)  # noqa: T201 - this is its answer


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
