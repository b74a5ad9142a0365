"""Folders as people have them: what is meant is read, what is not read is named, and nothing is read wrongly."""

from __future__ import annotations

import os
import unicodedata
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anomalydiffusion_core.data.mvtec import AnomalyDataset, load_dataset, load_images, load_pairs
from anomalydiffusion_core.data.splits import SplitSettings
from anomalydiffusion_core.errors import DatasetError, InputError

Pixels = np.ndarray[Any, Any]


def _save(path: Path, pixels: Pixels, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def _noise(seed: int, size: tuple[int, int] = (24, 32)) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def _dot(size: tuple[int, int] = (24, 32), value: int = 255) -> Pixels:
    mask = np.zeros(size, np.uint8)
    mask[6:12, 8:15] = value
    return mask


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """Category `part` with 4 normal images, 2 for testing and 6 pairs of the type crack."""
    base = tmp_path / "part"
    for number in range(4):
        _save(base / "train" / "good" / f"{number}.png", _noise(number))
    for number in range(2):
        _save(base / "test" / "good" / f"{number}.png", _noise(10 + number))
    for number in range(6):
        _save(base / "test" / "crack" / f"{number:03d}.png", _noise(20 + number))
        _save(base / "ground_truth" / "crack" / f"{number:03d}_mask.png", _dot())
    return base


def _load(base: Path, **split: Any) -> AnomalyDataset:
    return load_dataset(base.parent, base.name, SplitSettings(**split))


def _notice(dataset: AnomalyDataset, *words: str) -> str:
    found = [notice for notice in dataset.notices if all(word in notice for word in words)]
    assert len(found) == 1, dataset.notices
    return found[0]


# Rotation


def _tagged(path: Path, pixels: Pixels, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    _save(path, pixels, exif=exif)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_mask_on_stored_pixels_is_turned_with_its_image(part: Path, suffix: str) -> None:
    (part / "test" / "crack" / "000.png").unlink()
    _tagged(part / "test" / "crack" / f"000{suffix}", _noise(1), 6)  # displayed: 32 rows, 24 columns
    dataset = _load(part)
    pair = dataset.types[0].train[0]
    assert np.array_equal(pair.read_mask()[0].numpy() > 0, np.rot90(_dot() > 0, -1))
    images, masks = load_pairs([pair], None)
    assert images.shape[2:] == masks.shape[2:] == (32, 24)
    assert "000" in _notice(dataset, "lies on the pixels as stored")


def test_a_square_image_with_a_tag_is_decided_by_the_others_or_named(part: Path) -> None:
    crack, truth = part / "test" / "crack", part / "ground_truth" / "crack"
    _tagged(crack / "000.png", _noise(1, (32, 32)), 6)
    _save(truth / "000_mask.png", _dot((32, 32)))
    turned = np.rot90(_dot((32, 32)) > 0, -1)
    dataset = _load(part)
    assert np.array_equal(dataset.types[0].train[0].read_mask()[0].numpy() > 0, _dot((32, 32)) > 0)
    assert "000.png" in _notice(dataset, "turned by its EXIF tag", "mask_rotation")
    assert np.array_equal(_load(part, mask_rotation="as stored").types[0].train[0].read_mask()[0] > 0, turned)
    _tagged(crack / "001.png", _noise(2), 8)  # not square: its mask shows how they lie
    dataset = _load(part)
    assert np.array_equal(dataset.types[0].train[0].read_mask()[0].numpy() > 0, turned)
    _save(truth / "001_mask.png", _dot((32, 24)))
    dataset = _load(part)
    assert np.array_equal(dataset.types[0].train[0].read_mask()[0].numpy() > 0, _dot((32, 32)) > 0)
    assert not any("EXIF" in notice or "stored" in notice for notice in dataset.notices)


def test_a_size_that_fits_neither_way_names_the_rotation(part: Path) -> None:
    _tagged(part / "test" / "crack" / "000.png", _noise(1), 6)
    _save(part / "ground_truth" / "crack" / "000_mask.png", _dot((10, 10)))
    with pytest.raises(DatasetError, match="is 24x32 px, turned by its EXIF tag from 32x24"):
        _load(part)


# Class maps


def _class_map() -> Pixels:
    classes = _dot(value=1)
    classes[16:20, 18:30] = 2
    return classes


def test_classes_of_a_map_become_types(part: Path) -> None:
    for number in range(6):
        pixels = _class_map()
        if number == 5:
            pixels[pixels == 2] = 0
        _save(part / "ground_truth" / "crack" / f"{number:03d}_mask.png", pixels)
    assert "1, 2" in _notice(_load(part), "crack: masks hold several values", "mask_values")
    assert _load(part).types[0].train[0].read_mask().sum() == 42 + 48
    dataset = _load(part, mask_values="scratch=1, hole=2")
    assert [kind.key for kind in dataset.types] == ["part/scratch", "part/hole"]
    assert [len(kind.train) + len(kind.test) for kind in dataset.types] == [6, 5]
    assert {int(pair.read_mask().sum()) for pair in dataset.types[0].train} == {42}
    assert {int(pair.read_mask().sum()) for pair in dataset.types[1].test} == {48}
    assert "divided into 6 scratch, 5 hole" in _notice(dataset, "class maps")
    assert dataset.fingerprint() != _load(part, mask_values="scratch=2, hole=1").fingerprint()
    with pytest.raises(InputError, match="mask_values: no mask holds dent=7"):
        _load(part, mask_values="dent=7")
    with pytest.raises(InputError, match="mask_values: 'crack' is not of the form"):
        SplitSettings(mask_values="crack")


def test_the_same_map_in_two_types_needs_values_and_never_leaks(part: Path) -> None:
    for number in range(6):
        _save(part / "ground_truth" / "crack" / f"{number:03d}_mask.png", _class_map())
        _save(part / "test" / "hole" / f"{10 - number:03d}.png", _noise(20 + number))
        _save(part / "ground_truth" / "hole" / f"{10 - number:03d}_mask.png", _class_map())
    with pytest.raises(DatasetError, match="mask_values") as caught:
        _load(part)
    assert len(caught.value.problems) == 6
    dataset = _load(part, mask_values="crack=1, hole=2")
    crack, hole = dataset.defect_type("crack"), dataset.defect_type("hole")
    assert {int(pair.read_mask().sum()) for pair in (*crack.train, *crack.test)} == {42}
    assert {int(pair.read_mask().sum()) for pair in (*hole.train, *hole.test)} == {48}
    trained = {pair.image_path.read_bytes() for pair in (*crack.train, *hole.train)}
    assert not trained & {pair.image_path.read_bytes() for pair in (*crack.test, *hole.test)}
    assert "train too" in _notice(dataset, "hole: ", "010")


# Damage


@pytest.mark.parametrize("name", ["x.jpg", "x.bmp", "x.tif", "x.png", "x.webp"])
@pytest.mark.parametrize("place", ["train/good", "test/good", "test/crack", "ground_truth/crack"])
def test_half_a_file_is_named_at_load(part: Path, name: str, place: str) -> None:
    whole = _save(part.parent / name, _dot() if place.startswith("ground") else _noise(9)).read_bytes()
    stem = "0_mask" if place.startswith("ground") else "0"
    if "crack" in place:
        for path in (part / "test" / "crack" / "000.png", part / "ground_truth" / "crack" / "000_mask.png"):
            path.unlink()
        _save(part / "test" / "crack" / "0.png", _noise(8))
        _save(part / "ground_truth" / "crack" / "0_mask.png", _dot())
        (part / place / f"{stem}.png").unlink()
    else:
        (part / place / "0.png").unlink()
    target = part / place / f"{stem}{Path(name).suffix}"
    target.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(DatasetError, match=target.name) as caught:
        _load(part)
    assert len(caught.value.problems) == 1


def test_a_flipped_bit_of_a_png_is_found_at_load(part: Path) -> None:
    path = part / "train" / "good" / "2.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))
    with pytest.raises(DatasetError, match=r"2\.png: is damaged, a checksum is wrong"):
        _load(part)


def test_a_folder_that_cannot_be_read_is_named(part: Path) -> None:
    folder = part / "train" / "good"
    folder.chmod(0)
    try:
        if os.access(folder, os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(DatasetError, match="good: cannot be read"):
            _load(part)
    finally:
        folder.chmod(0o755)


# What is read and what is skipped


@pytest.mark.parametrize("suffix", ["avif", "jp2", "pgm", "ppm", "tga", "jfif", "gif", "webp", "JPG"])
def test_whatever_pillow_reads_is_read(part: Path, suffix: str) -> None:
    before = len(_load(part).normals)
    _save(part / "train" / "good" / f"more.{suffix}", _noise(30)[..., 0] if suffix == "pgm" else _noise(30))
    dataset = _load(part)
    assert len(dataset.normals) == before + 1
    assert load_images(dataset.normals, 16).shape == (5, 3, 16, 16)


def test_what_is_skipped_is_counted_and_named(part: Path) -> None:
    good = part / "train" / "good"
    _save(good / "more" / "0.png", _noise(31))
    _save(good / "more" / "1.png", _noise(32))
    for name in ("a.heic", "notes.txt", "Thumbs.db", ".hidden.png", "b.raw", "c.raw", "d.raw", "e.raw"):
        (good / name).write_bytes(b"x")
    _save(part / "train" / "odd" / "0.png", _noise(33))
    dataset = _load(part)
    assert _notice(dataset, "train/good:") == (
        "train/good: 7 skipped, no images: a.heic, b.raw, c.raw, d.raw, e.raw and 2 more"
    )
    assert _notice(dataset, "train:") == "train: 1 skipped, no images: odd/ (1 image)"


def test_several_frames_alpha_and_odd_shapes_are_noticed(part: Path) -> None:
    good = part / "train" / "good"
    frames = [Image.fromarray(_noise(i)) for i in (40, 41)]
    frames[0].save(good / "pages.tif", save_all=True, append_images=frames[1:])
    _save(good / "clear.png", np.dstack([_noise(42), np.full((24, 32), 255, np.uint8)]))
    _save(good / "strip.png", _noise(43, (3, 200)))
    dataset = _load(part)
    assert "pages.tif" in _notice(dataset, "the first is read")
    assert "clear.png" in _notice(dataset, "alpha channel")
    assert "strip.png has 200x3 px" in _notice(dataset, "squashes")


def test_one_hot_pixel_leaves_the_brightness_of_the_set(part: Path) -> None:
    good = part / "train" / "good"
    for number in range(4):
        pixels = np.random.default_rng(number).integers(1000, 3000, (48, 64)).astype(np.uint16)
        if number == 2:
            pixels[3, 3] = 65535
        _save(good / f"{number}.png", pixels)
    dataset = _load(part)
    assert dataset.bits == 12
    assert "2.png" in _notice(dataset, "hot pixels above 12 bits")
    images = load_images(dataset.normals, None, dataset.bits)
    assert images.mean().item() == pytest.approx(2000 / 4095, abs=0.005)
    assert images.max() == 1


# Names


@pytest.mark.parametrize("name", ["crack?", "part: A", "trailing "])
def test_names_that_could_not_be_exported_are_refused_at_load(part: Path, name: str) -> None:
    (part / "test" / "crack").rename(part / "test" / name)
    (part / "ground_truth" / "crack").rename(part / "ground_truth" / name)
    with pytest.raises(DatasetError, match="defect type: .*cannot be a name"):
        _load(part)
    (part / "test" / name).rename(part / "test" / "crack")
    (part / "ground_truth" / name).rename(part / "ground_truth" / "crack")
    part.rename(part.parent / name)
    with pytest.raises(InputError, match="category: .*cannot be a name"):
        load_dataset(part.parent, name)


@pytest.mark.parametrize("category", ["..", ".", "../part", "a/b", "a\\b", ""])
def test_a_category_is_the_name_of_a_folder(part: Path, category: str) -> None:
    with pytest.raises(InputError, match="category"):
        load_dataset(part.parent, category)


def test_a_folder_whose_name_cannot_be_exported_is_to_be_renamed_and_never_proposed(part: Path) -> None:
    part.rename(part.parent / "part: A")
    with pytest.raises(InputError, match=r"'part: A'.*Rename the folder\."):
        load_dataset(part.parent, "part: A")
    (part.parent / "other" / "train").mkdir(parents=True)
    with pytest.raises(InputError, match=r"Choose one of: other\.$"):
        load_dataset(part.parent, "a?")


def test_case_and_accents_do_not_part_what_belongs_together(part: Path) -> None:
    (part / "ground_truth" / "crack").rename(part / "ground_truth" / "Crack")
    (part / "test" / "crack" / "000.png").rename(part / "test" / "crack" / "A0.PNG")
    (part / "ground_truth" / "Crack" / "000_mask.png").rename(part / "ground_truth" / "Crack" / "a0_MASK.png")
    dataset = _load(part)
    assert [kind.key for kind in dataset.types] == ["part/crack"]
    assert "ground_truth/Crack" in _notice(dataset, "taken as one type, 'crack'")
    assert len(dataset.types[0].train) + len(dataset.types[0].test) == 6
    decomposed, composed = (unicodedata.normalize(form, "f\u00eal\u00e9") for form in ("NFD", "NFC"))
    (part / "test" / "crack").rename(part / "test" / decomposed)
    (part / "ground_truth" / "Crack").rename(part / "ground_truth" / composed)
    part.rename(part.parent / decomposed)
    dataset = load_dataset(part.parent, composed)
    assert [kind.key for kind in dataset.types] == [f"{composed}/{composed}"]
    assert dataset.fingerprint()
    assert dataset.defect_type(composed).train


def test_two_folders_that_differ_in_case_alone_are_named(part: Path) -> None:
    _save(part / "test" / "Crack" / "9.png", _noise(50))
    if len(list((part / "test").iterdir())) < 3:
        pytest.skip("this file system does not tell them apart")
    with pytest.raises(DatasetError, match="test/Crack, test/crack.* have the same name but for case"):
        _load(part)


# Size


def test_a_notice_of_many_equal_images_stays_short(part: Path) -> None:
    for number in range(60):
        _save(part / "train" / "good" / f"copy_{number}.png", _noise(20 + number % 6))
    dataset = _load(part)
    same = [notice for notice in dataset.notices if "the same image twice" in notice]
    assert 0 < sum(map(len, same)) < 1000
    assert "more" in same[0]


def test_each_image_is_resized_before_the_next_is_read(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anomalydiffusion_core.data import mvtec

    read: list[weakref.ref[torch.Tensor]] = []
    original = mvtec.read_image

    def watched(path: Path, bits: int | None = None) -> torch.Tensor:
        assert all(image() is None for image in read)
        image = original(path, bits)
        read.append(weakref.ref(image))
        return image

    monkeypatch.setattr(mvtec, "read_image", watched)
    assert load_images(_load(part).normals, 8).shape == (4, 3, 8, 8)
    assert load_pairs(_load(part, split="first n").types[0].train, 8)[0].shape == (6, 3, 8, 8)
    assert len(read) == 10
