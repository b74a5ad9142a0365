"""What masks of labelling tools mean: decided by where their values are, not by how many there are."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from anomalydiffusion_core.data.mask_files import MaskReading, inspect_mask, read_mask
from anomalydiffusion_core.errors import DatasetError

Pixels = np.ndarray[Any, Any]


def blob(side: int = 256, radius: int = 40) -> Pixels:
    """A star with five soft points."""
    y, x = np.mgrid[:side, :side] - side / 2
    return (y**2 / 1.5 + x**2 + radius**2 * 0.4 * np.sin(np.arctan2(y, x) * 5)) < radius**2


def read(path: Path, image: Image.Image | Pixels, **options: Any) -> tuple[Pixels, MaskReading]:
    """The mask [H, W] of bool that is read from an image stored as PNG."""
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path / "m.png")
    found = inspect_mask(path / "m.png", **options)
    return found.mask[0].numpy() > 0, found


def overlap(a: Pixels, b: Pixels) -> float:
    """Intersection over union."""
    return float((a & b).sum() / (a | b).sum())


def through_jpeg(pixels: Pixels, quality: int) -> Image.Image:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return Image.open(stream).copy()


@pytest.mark.parametrize("quality", [100, 95, 75, 50])
@pytest.mark.parametrize(("side", "radius"), [(256, 40), (64, 9)])
def test_a_mask_that_went_through_jpeg_is_the_same_in_a_png(
    tmp_path: Path, quality: int, side: int, radius: int
) -> None:
    truth = blob(side, radius)
    mask, found = read(tmp_path, through_jpeg(truth.astype(np.uint8) * 255, quality))
    assert overlap(mask, truth) > 0.99
    assert found.notices == ()
    colour = np.stack([truth * 200, truth * 0, truth * 30], -1).astype(np.uint8)
    assert overlap(read(tmp_path, through_jpeg(colour, quality))[0], truth) > 0.9


@pytest.mark.parametrize("largest", [1, 2, 12])
@pytest.mark.parametrize("width", [3, 16])
def test_noise_along_the_edges_is_not_defect(tmp_path: Path, largest: int, width: int) -> None:
    truth = blob()
    ring = np.asarray(Image.fromarray(truth).convert("L").filter(ImageFilter.MaxFilter(2 * width + 1))) > 0
    pixels = truth.astype(np.uint8) * 255
    pixels[ring & ~truth] = np.random.default_rng(0).integers(0, largest + 1, int((ring & ~truth).sum()))
    mask, found = read(tmp_path, pixels)
    assert np.array_equal(mask, truth)
    assert found.values == (("255", int(truth.sum())),)


def test_noise_all_over_the_background_is_not_defect(tmp_path: Path) -> None:
    truth = blob()
    noise = np.random.default_rng(0).integers(0, 13, truth.shape)
    assert np.array_equal(read(tmp_path, np.where(truth, 255, noise).astype(np.uint8))[0], truth)


@pytest.mark.parametrize("count", [20, 60, 300])
def test_instance_ids_of_any_number_are_kept_whole(tmp_path: Path, count: int) -> None:
    random = np.random.default_rng(1)
    ids = np.zeros((300, 300), np.uint16 if count > 255 else np.uint8)
    for number in range(1, count + 1):
        y, x = random.integers(0, 290, 2)
        height, width = random.integers(1, 12, 2)
        ids[y : y + height, x : x + width] = number
    mask, found = read(tmp_path, ids)
    assert np.array_equal(mask, ids > 0)
    assert dict(found.values) == {str(i): int((ids == i).sum()) for i in range(1, count + 1) if (ids == i).any()}


@pytest.mark.parametrize("width", [1.5, 2, 3, 6])
def test_antialiased_thin_lines_are_cut_at_half(tmp_path: Path, width: float) -> None:
    scale = 8
    fine = Image.new("L", (256 * scale, 256 * scale))
    line = [(20, 30), (90, 110), (200, 130), (240, 230)]
    ImageDraw.Draw(fine).line([(x * scale, y * scale) for x, y in line], fill=255, width=int(width * scale))
    cover = np.asarray(fine, np.float64).reshape(256, scale, 256, scale).mean((1, 3))
    mask, _ = read(tmp_path, np.rint(cover).astype(np.uint8))
    assert np.array_equal(mask, np.rint(cover) > 127)


def test_thin_lines_of_small_ids_are_labels(tmp_path: Path) -> None:
    ids = np.zeros((120, 120), np.uint8)
    for number in range(1, 9):
        ids[number * 12, 10:110] = number
    assert np.array_equal(read(tmp_path, ids)[0], ids > 0)


def test_the_value_along_the_border_is_the_background(tmp_path: Path) -> None:
    truth = np.zeros((200, 200), bool)
    truth[50:90, 60:120] = True
    colour = np.full((200, 200, 3), (128, 96, 64), np.uint8)
    colour[truth] = (255, 0, 0)
    mask, found = read(tmp_path, colour)
    assert np.array_equal(mask, truth)
    assert "#806040" in found.notices[0]
    truth[:] = False
    truth[20:149, 30:160] = True
    mask, found = read(tmp_path, np.where(truth, 0, 255).astype(np.uint8))  # 58 % are white
    assert np.array_equal(mask, truth)
    assert "the background is 255" in found.notices[0]


def test_an_inverted_mask_has_a_background_of_255_and_no_void(tmp_path: Path) -> None:
    pixels = np.full((40, 50), 255, np.uint8)
    pixels[10:30, 5:40] = 0
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    found = inspect_mask(tmp_path / "mask.png")
    assert found.mask.sum() == 20 * 35 and found.mask[0, 10:30, 5:40].all()
    assert (found.background, found.void, len(found.notices)) == ("255", 0, 1)


def test_a_region_reaches_the_border_and_stays_what_it_is(tmp_path: Path) -> None:
    allowed = np.full((60, 80), 255, np.uint8)
    allowed[20:40, 30:50] = 0
    Image.fromarray(allowed).save(tmp_path / "allowed.png")
    assert np.array_equal(read_mask(tmp_path / "allowed.png")[0].numpy() > 0, allowed > 0)
    Image.fromarray(allowed | 255).save(tmp_path / "all.png")
    assert read_mask(tmp_path / "all.png").all()
    assert np.array_equal(inspect_mask(tmp_path / "allowed.png").mask[0].numpy() > 0, allowed == 0)


@pytest.mark.parametrize("suffix", ["webp", "jp2", "avif", "tif", "bmp", "gif", "tga"])
def test_masks_in_other_formats(tmp_path: Path, suffix: str) -> None:
    truth = blob()
    options: dict[str, Any] = {"quality": 80} if suffix in ("webp", "avif") else {}
    Image.fromarray(truth.astype(np.uint8) * 255).save(tmp_path / f"m.{suffix}", **options)
    assert overlap(inspect_mask(tmp_path / f"m.{suffix}").mask[0].numpy() > 0, truth) > 0.99


def test_a_defect_across_the_border_does_not_become_background(tmp_path: Path) -> None:
    pixels = np.zeros((100, 100), np.uint8)
    pixels[:, :60] = 255
    mask, found = read(tmp_path, pixels)
    assert np.array_equal(mask, pixels > 0)
    assert found.notices == ()


def test_a_mask_of_one_value_is_full_or_empty(tmp_path: Path) -> None:
    assert read(tmp_path, np.full((9, 9), 255, np.uint8))[0].all()
    assert not read(tmp_path, np.zeros((9, 9), np.uint8))[0].any()


def _photograph(seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(30, 220, (9, 9, 3), dtype=np.uint8)).resize(
        (200, 200), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(coarse, np.int16) + random.integers(-6, 7, (200, 200, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("opacity", [0.0, 0.4, 1.0])
def test_a_photograph_with_or_without_overlay_is_no_mask(tmp_path: Path, grey: bool, opacity: float) -> None:
    photograph = _photograph(3).convert("L").convert("RGB") if grey else _photograph(3)
    marked = photograph.copy()
    ImageDraw.Draw(marked).ellipse((40, 40, 110, 110), fill=(255, 0, 0))
    Image.blend(photograph, marked, opacity).save(tmp_path / "over.png")
    with pytest.raises(DatasetError, match=r"over\.png: is a photograph or an overlay, not a mask"):
        inspect_mask(tmp_path / "over.png")


@pytest.mark.parametrize("kind", ["palette", "grey", "class 15"])
def test_the_void_ring_of_voc_is_left_out(tmp_path: Path, kind: str) -> None:
    ids = np.zeros((100, 100), np.uint8)
    ids[30:60, 30:60] = 255
    ids[35:55, 35:55] = 15 if kind == "class 15" else 1
    image = Image.fromarray(ids)
    if kind == "palette":
        image = image.convert("P")
        palette = [0] * 768
        palette[3:6], palette[765:] = [128, 0, 0], [224, 224, 192]
        image.putpalette(palette)
    mask, found = read(tmp_path, image)
    assert np.array_equal(mask, (ids > 0) & (ids < 255))
    assert int(mask.sum()) == 400
    assert (found.void, "500 pixels of value 255" in found.notices[0]) == (500, True)


def test_a_grey_of_two_grades_has_no_void(tmp_path: Path) -> None:
    ids = np.zeros((100, 100), np.uint8)
    ids[30:60, 30:60] = 255
    ids[35:55, 35:55] = 128
    mask, found = read(tmp_path, ids)
    assert np.array_equal(mask, ids > 0)
    assert found.values == (("255", 500), ("128", 400))


def test_classes_are_chosen_by_value(tmp_path: Path) -> None:
    ids = np.zeros((100, 100), np.uint8)
    ids[10:30, 10:30], ids[50:80, 50:90] = 1, 2
    assert np.array_equal(read(tmp_path, ids, values=("1",))[0], ids == 1)
    assert np.array_equal(read(tmp_path, ids, values=("2",))[0], ids == 2)
    assert np.array_equal(read(tmp_path, ids, values=("1", "2"))[0], ids > 0)
    assert not read(tmp_path, ids, values=("3",))[0].any()
    colour = np.zeros((100, 100, 3), np.uint8)
    colour[ids == 1], colour[ids == 2] = (255, 0, 0), (0, 0, 255)
    assert np.array_equal(read(tmp_path, colour, values=("#0000FF",))[0], ids == 2)


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (35, 164, 54)])
def test_a_soft_shape_in_the_alpha_channel_of_a_palette(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    shape = Image.fromarray(blob().astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(1))
    alpha = np.asarray(shape)
    indexed = Image.fromarray(alpha).convert("P")  # the index is the alpha, all colours are one
    indexed.putpalette(list(colour) * 256)
    indexed.save(tmp_path / "soft.png", transparency=bytes(range(256)))
    assert np.array_equal(read_mask(tmp_path / "soft.png")[0].numpy() > 0, alpha > 127)


def test_real_masks_of_all_kinds(shared_data: Path) -> None:
    masks = [path for name in ("bottle", "magnetic_tile", "cookie") for path in (shared_data / name).rglob("*_mask.*")]
    masks += list((shared_data / "magnetic_tile" / "ground_truth").rglob("*.png"))
    assert len(masks) > 90
    for path in masks:
        found = inspect_mask(path)
        assert np.array_equal(found.mask[0].numpy() > 0, np.asarray(Image.open(path).convert("L")) > 127), path
        assert found.notices == (), path


def test_masks_of_cookies_as_their_owner_stored_them(shared_data: Path) -> None:
    for path in sorted((shared_data / "cookie_labels_as_stored").glob("*.png")):
        alpha = np.asarray(Image.open(path).convert("RGBA"))[:, :, 3]
        found = inspect_mask(path)
        assert np.array_equal(found.mask[0].numpy() > 0, alpha > 127)
        assert found.notices == ()


def test_real_photographs_are_no_masks(shared_data: Path) -> None:
    for name in ("bottle/test/contamination", "magnetic_tile/test/crack", "cookie/test/cracked", "ball_screw/pitting"):
        path = sorted((shared_data / name).iterdir())[0]
        with pytest.raises(DatasetError, match="not a mask"):
            inspect_mask(path)
