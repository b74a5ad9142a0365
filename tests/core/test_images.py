"""Files as cameras and annotation tools write them, and the one form they must come in."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anomalydiffusion_core.data.images import (
    image_size,
    read_image,
    resize_image,
    stored_bits,
    write_image,
    write_mask,
)
from anomalydiffusion_core.data.mask_files import read_mask
from anomalydiffusion_core.errors import DatasetError, InputError

pytestmark = pytest.mark.core


def _save(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def _png16(path: Path, pixels: np.ndarray) -> Path:
    """A 16-bit colour PNG written chunk by chunk, because Pillow cannot write one."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    return path


def test_colour_values_survive_exactly(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = read_image(_save(tmp_path / "a.png", pixels))
    assert image.shape == (3, 5, 7)
    assert image.dtype == torch.float32
    assert np.array_equal((image.numpy() * 255).round().astype(np.uint8), pixels.transpose(2, 0, 1))


def test_grey_is_repeated_and_alpha_dropped(tmp_path: Path) -> None:
    grey = read_image(_save(tmp_path / "g.png", np.full((3, 4), 51, np.uint8)))
    assert torch.equal(grey, torch.full((3, 3, 4), 0.2))
    rgba = np.zeros((3, 4, 4), np.uint8)
    rgba[..., 0] = 255
    rgba[..., 3] = 10
    image = read_image(_save(tmp_path / "t.png", rgba))
    assert torch.equal(image[0], torch.ones(3, 4))
    assert image[1:].abs().max() == 0


@pytest.mark.parametrize(("largest", "bits"), [(200, 8), (1023, 10), (4095, 12), (4096, 14), (65535, 16)])
def test_deep_grey_is_scaled_by_the_depth_in_use(tmp_path: Path, largest: int, bits: int) -> None:
    pixels = np.array([[0, largest // 2], [largest, 1]], np.uint16)
    path = _save(tmp_path / "deep.png", pixels)
    assert stored_bits(path) == bits
    assert np.allclose(read_image(path)[1].numpy(), pixels / (2**bits - 1), atol=1e-6)


def test_the_depth_of_the_set_overrules_that_of_a_dark_image(tmp_path: Path) -> None:
    path = _save(tmp_path / "dark.png", np.full((2, 2), 400, np.uint16))
    assert read_image(path, bits=12).max().item() == pytest.approx(400 / 4095, abs=1e-6)
    with pytest.raises(InputError, match="needs 10, given 8"):
        read_image(path, bits=8)


def test_twelve_bits_in_a_sixteen_bit_colour_png(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 4096, (4, 5, 3)).astype(np.uint16)
    pixels[0, 0, 0] = 4095
    image = read_image(_png16(tmp_path / "c.png", pixels))
    assert np.allclose(image.numpy(), pixels.transpose(2, 0, 1) / 4095, atol=1e-6)


def test_sixteen_bit_colour_tiff(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = np.random.default_rng(2).integers(0, 65536, (4, 5, 3)).astype(np.uint16)
    pixels[0, 0, 0] = 65535
    tifffile.imwrite(tmp_path / "c.tif", pixels, photometric="rgb")
    assert np.allclose(read_image(tmp_path / "c.tif").numpy(), pixels.transpose(2, 0, 1) / 65535, atol=1e-6)


def test_floating_point_images(tmp_path: Path) -> None:
    pixels = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
    path = _save(tmp_path / "f.tif", pixels)
    assert np.allclose(read_image(path)[0].numpy(), pixels)
    assert np.allclose(read_image(path, bits=12)[0].numpy(), pixels)
    bad = pixels.copy()
    bad[0, 0] = np.nan
    with pytest.raises(DatasetError, match="bad.tif"):
        read_image(_save(tmp_path / "bad.tif", bad))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_to_images_and_masks(tmp_path: Path, orientation: int) -> None:
    # EXIF 2.3 table: where the first row and the first column of the stored image belong
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40 + 10
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright.T[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = _save(tmp_path / "r.png", np.ascontiguousarray(stored), exif=exif)
    assert image_size(path) == (2, 3)
    assert np.array_equal((read_image(path)[0].numpy() * 255).round().astype(np.uint8), upright)
    mask = _save(tmp_path / "m.png", np.ascontiguousarray(stored > 100).astype(np.uint8) * 255, exif=exif)
    assert np.array_equal(read_mask(mask)[0].numpy(), (upright > 100).astype(np.float32))


def _disc() -> np.ndarray:
    rows, columns = np.mgrid[:32, :32]
    return (rows - 14) ** 2 + (columns - 17) ** 2 < 64


@pytest.mark.parametrize(
    "name", ["grey255", "grey236", "grey1", "colour", "indexed", "bilevel", "deep", "alpha", "alpha_black", "labels"]
)
def test_masks_of_every_mode_give_the_same_disc(tmp_path: Path, name: str) -> None:
    disc = _disc()
    image = {
        "grey255": lambda: Image.fromarray(disc.astype(np.uint8) * 255),
        "grey236": lambda: Image.fromarray(disc.astype(np.uint8) * 236),
        "grey1": lambda: Image.fromarray(disc.astype(np.uint8)),
        "colour": lambda: Image.fromarray(np.stack([disc * 200, disc * 0, disc * 30], -1).astype(np.uint8)),
        "indexed": lambda: Image.fromarray(disc.astype(np.uint8)).convert("P"),
        "bilevel": lambda: Image.fromarray(disc),
        "deep": lambda: Image.fromarray(disc.astype(np.uint16) * 65535),
        "alpha": lambda: Image.fromarray(np.stack([disc * 0 + 255] * 3 + [disc * 255], -1).astype(np.uint8)),
        "alpha_black": lambda: Image.fromarray(np.stack([disc * 0] * 3 + [disc * 255], -1).astype(np.uint8)),
        "labels": lambda: Image.fromarray((disc * (1 + (np.arange(32) > 15) * 9)).astype(np.uint8)),
    }[name]()
    image.save(tmp_path / "m.png")
    mask = read_mask(tmp_path / "m.png")
    assert mask.shape == (1, 32, 32)
    assert np.array_equal(mask[0].numpy(), disc.astype(np.float32))


def test_an_index_of_black_palette_entries_still_counts(tmp_path: Path) -> None:
    indexed = Image.new("P", (32, 32))
    indexed.putpalette([0, 0, 0] * 256)
    indexed.putdata([int(inside) for inside in _disc().ravel()])
    indexed.save(tmp_path / "p.png")
    assert np.array_equal(read_mask(tmp_path / "p.png")[0].numpy(), _disc().astype(np.float32))


def test_jpeg_noise_around_a_mask_is_cut_at_half(tmp_path: Path) -> None:
    _save(tmp_path / "m.jpg", _disc().astype(np.uint8) * 255, quality=60)
    mask = read_mask(tmp_path / "m.jpg")[0].numpy()
    assert set(np.unique(mask)) == {0.0, 1.0}
    assert np.abs(mask - _disc()).sum() <= 4


def test_an_empty_mask_stays_empty(tmp_path: Path) -> None:
    assert read_mask(_save(tmp_path / "m.png", np.zeros((4, 4), np.uint8))).sum() == 0


def test_written_files_hold_the_nearest_byte_and_only_two_mask_values(tmp_path: Path) -> None:
    values = torch.arange(256, dtype=torch.float32).view(1, 16, 16).expand(3, 16, 16) / 255
    write_image(tmp_path / "sub" / "i.png", values)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "sub" / "i.png"))[..., 0].ravel(), np.arange(256))
    write_mask(tmp_path / "m.png", torch.tensor([[[0.0, 0.4, 0.6, 1.0]]]))
    assert np.asarray(Image.open(tmp_path / "m.png")).tolist() == [[0, 0, 255, 255]]


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path: Path) -> None:
    write_image(tmp_path / "i.png", torch.zeros(3, 2, 2))
    before = (tmp_path / "i.png").read_bytes()
    with pytest.raises(InputError, match="never overwritten"):
        write_image(tmp_path / "i.png", torch.ones(3, 2, 2))
    with pytest.raises(InputError, match="NaN"):
        write_image(tmp_path / "n.png", torch.full((3, 2, 2), float("nan")))
    with pytest.raises(InputError, match="lossless"):
        write_image(tmp_path / "i.jpg", torch.zeros(3, 2, 2))
    with pytest.raises(InputError, match="shape"):
        write_mask(tmp_path / "m.png", torch.zeros(3, 2, 2))
    assert (tmp_path / "i.png").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["i.png"]


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    _save(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:1500])
    for name in ("text.png", "cut.png", "absent.png"):
        with pytest.raises(DatasetError, match=name):
            read_image(tmp_path / name)
        with pytest.raises(DatasetError, match=name):
            read_mask(tmp_path / name)


def test_resize_image_keeps_means_and_range() -> None:
    image = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    small = resize_image(image, (16, 12))
    assert small.shape == (2, 3, 16, 12)
    assert torch.allclose(small.mean(), image.mean(), atol=0.01)
    assert resize_image(image, (64, 48)) is image


@pytest.mark.parametrize("channels", [3, 4])
def test_a_damaged_deep_png_raises_and_never_kills(tmp_path: Path, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (6, 5, channels)).astype(np.uint16)
    pixels[0, 0] = 65535
    whole = _png16(tmp_path / "whole.png", pixels).read_bytes()
    expected = read_image(tmp_path / "whole.png")
    random = np.random.default_rng(1)
    raised = 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[random.integers(8, len(whole))] ^= 1 << int(random.integers(8))
        path = tmp_path / "damaged.png"
        path.write_bytes(bytes(damaged))
        for reader in (read_image, read_mask):
            try:
                reader(path)
            except DatasetError as error:
                raised += 1
                assert "damaged.png" in str(error)
    assert raised >= 300  # a bit of a chunk that nobody reads does no harm
    assert torch.equal(read_image(tmp_path / "whole.png"), expected)
    with pytest.raises(DatasetError, match="cut off"):
        (tmp_path / "cut.png").write_bytes(whole[:75])
        read_image(tmp_path / "cut.png")


def test_one_hot_pixel_does_not_darken_twelve_bits(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(1000, 3000, (64, 64)).astype(np.uint16)
    pixels[5, 7] = 65535
    path = _save(tmp_path / "hot.png", pixels)
    assert stored_bits(path) == 12
    image = read_image(path)
    assert image.max() == 1
    assert image.mean().item() == pytest.approx((pixels.sum() - 65535 + 4095) / 4095 / pixels.size, abs=1e-6)


def test_what_is_transparent_has_no_colour(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[:] = (255, 0, 255, 0)
    pixels[:, 3:] = (10, 200, 30, 255)
    image = read_image(_save(tmp_path / "a.png", pixels))
    assert image[:, :, :3].abs().max() == 0
    assert (image[:, 0, 3] * 255).round().tolist() == [10, 200, 30]
    pixels[..., 3] = 0
    with pytest.raises(DatasetError, match="wholly transparent"):
        read_image(_save(tmp_path / "b.png", pixels))


@pytest.mark.parametrize("name", ["x.jpg", "x.bmp", "x.tif", "x.png", "x.webp", "x.gif", "x.pgm", "x.tga", "x.jp2"])
def test_half_a_file_is_found_by_its_header_check(tmp_path: Path, name: str) -> None:
    _save(tmp_path / name, np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
    assert image_size(tmp_path / name) == (64, 64)
    whole = (tmp_path / name).read_bytes()
    for share in (0.9, 0.6, 0.4):
        (tmp_path / f"cut_{name}").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DatasetError, match=f"cut_{name}"):
            image_size(tmp_path / f"cut_{name}")


def test_a_large_image_is_read_within_a_limit_that_can_be_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    Image.new("1", (16384, 12000)).save(tmp_path / "large.png")
    assert image_size(tmp_path / "large.png") == (12000, 16384)
    assert not len(recwarn)
    Image.new("1", (17000, 16000)).save(tmp_path / "larger.png")
    with pytest.raises(DatasetError, match="17000x16000 px are above the limit of 256 megapixels") as caught:
        image_size(tmp_path / "larger.png")
    assert "ANOMALYDIFFUSION_MAX_MEGAPIXELS" in str(caught.value)
    assert "attack" not in str(caught.value)
    monkeypatch.setenv("ANOMALYDIFFUSION_MAX_MEGAPIXELS", "300")
    assert image_size(tmp_path / "larger.png") == (16000, 17000)
    monkeypatch.setenv("ANOMALYDIFFUSION_MAX_MEGAPIXELS", "many")
    with pytest.raises(InputError, match="many is not a number"):
        image_size(tmp_path / "large.png")
