"""Time and memory to check a data set of 500 images of 4000 x 3000, and to read 16 of its normal images.

`python benchmarks/loading.py`. Four images are encoded and stored again and again, each file with a comment of its
own, so that all have one size and differ in content: 460 normal images, 20 for testing, 20 defects with masks.
The peer is Pillow decoding one of the images, as a check of all pixels would. One thread. Memory is the rise of the
largest resident set over that of the process with torch imported.

Prints a table and as the last line a JSON object: `load_seconds` of the process alone (at most 5 is the aim),
`load_over_decoding_all`, `load_rise_mb`, `normals_rise_mb`.
"""

from __future__ import annotations

import io
import struct
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import psutil
import torch
import typer
from common import finish, peak_while, table
from PIL import Image, ImageDraw

from anomalydiffusion_core.data.mvtec import AnomalyDataset, load_dataset
from anomalydiffusion_core.data.selection import NormalSettings, pick_normals

SIZE = (4000, 3000)
DEFECTS = TESTS = 20


def encoded(seed: int) -> bytes:
    """A smooth image with a little noise as PNG, about 9 MB."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(60, 200, (30, 40, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize(SIZE, Image.Resampling.BICUBIC)).copy()
    pixels[::4, ::4] += random.integers(0, 3, pixels[::4, ::4].shape, dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def write(path: Path, png: bytes, number: int) -> None:
    """The image with a comment behind its header."""
    body = f"Comment\0{number:08d}".encode()
    chunk = struct.pack(">I", len(body)) + b"tEXt" + body + struct.pack(">I", zlib.crc32(b"tEXt" + body))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png[:33] + chunk + png[33:])


def write_category(base: Path, images: int) -> bytes:
    """A category in the layout of MVTec AD; returns one of its images."""
    pngs = [encoded(seed) for seed in range(4)]
    parts = ["train/good"] * (images - DEFECTS - TESTS) + ["test/good"] * TESTS + ["test/spot"] * DEFECTS
    for number, part in enumerate(parts):
        write(base / part / f"{number:03d}.png", pngs[number % 4], number)
        if part == "test/spot":
            mask = Image.new("L", SIZE)
            ImageDraw.Draw(mask).ellipse((number, 800, number + 400, 1300), fill=255)
            (base / "ground_truth" / "spot").mkdir(parents=True, exist_ok=True)
            mask.save(base / "ground_truth" / "spot" / f"{number:03d}_mask.png")
    return pngs[0]


def main(images: int = 500, normals: int = 16, side: int = 512) -> None:
    """Load the set once, then read some normal images at a moderate size."""
    torch.set_num_threads(1)
    loaded: list[AnomalyDataset] = []
    with tempfile.TemporaryDirectory() as folder:
        png = write_category(Path(folder) / "part", images)
        started = time.process_time()
        Image.open(io.BytesIO(png)).load()
        decoding = (time.process_time() - started) * images
        before = psutil.Process().memory_info().rss
        started = time.process_time()
        load_peak = peak_while(lambda: loaded.append(load_dataset(Path(folder), "part")))
        seconds = time.process_time() - started
        picked = NormalSettings(normals, 0, side)
        normals_peak = peak_while(lambda: pick_normals(loaded[0], picked))
    rises = [(peak - before) / 1e6 for peak in (load_peak, normals_peak)]
    table(
        ["work", "seconds of the process", "rise of memory"],
        [
            [f"decode {images} images", f"{decoding:.1f}", ""],
            [f"load {images} images", f"{seconds:.1f}", f"{rises[0]:.0f} MB"],
            [f"read {normals} normal images at {side} px", "", f"{rises[1]:.0f} MB"],
        ],
    )
    finish(
        {
            "load_seconds": seconds,
            "load_over_decoding_all": seconds / decoding,
            "load_rise_mb": rises[0],
            "normals_rise_mb": rises[1],
        }
    )


if __name__ == "__main__":
    typer.run(main)
