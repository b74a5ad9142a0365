"""The MVTec layout with everything that real folders get wrong."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from real_data import REAL
from scipy import ndimage

from anomalydiffusion_core.data.images import write_image, write_mask
from anomalydiffusion_core.data.mvtec import load_dataset, load_images, load_pairs
from anomalydiffusion_core.data.selection import dataset_sheet
from anomalydiffusion_core.data.splits import SplitSettings
from anomalydiffusion_core.errors import DatasetError, InputError

pytestmark = pytest.mark.core

needs_real_data = pytest.mark.skipif(not (REAL / "bottle").is_dir(), reason=f"no real images at {REAL}")


def _image(path: Path, seed: int, size: tuple[int, int] = (12, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def _mask(path: Path, filled: int = 3, size: tuple[int, int] = (12, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(size, np.uint8)
    pixels[:filled, :filled] = 255
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """`part` with 3 normals, 2 test normals, scratch x 6 and dent x 4."""
    base = tmp_path / "d a t \u00e4" / "part"
    for index in range(3):
        _image(base / "train" / "good" / f"{index}.png", index)
    for index in range(2):
        _image(base / "test" / "good" / f"{index}.png", 50 + index)
    for defect, count in (("scratch", 6), ("dent", 4)):
        for index in range(count):
            _image(base / "test" / defect / f"{index:03d}.png", 100 * len(defect) + index)
            _mask(base / "ground_truth" / defect / f"{index:03d}_mask.png")
    return base.parent


def test_a_plain_folder(root: Path) -> None:
    dataset = load_dataset(root, "part")
    assert [kind.key for kind in dataset.types] == ["part/dent", "part/scratch"]
    scratch = dataset.defect_type("part/scratch")
    assert [pair.name for pair in scratch.train] == ["000", "001"]
    assert [pair.name for pair in scratch.test] == ["002", "003", "004", "005"]
    assert scratch is dataset.defect_type("scratch")
    assert len(dataset.normals) == 3
    assert len(dataset.test_normals) == 2
    assert dataset.notices == ()
    assert "part/dent: 1 training pairs, 3 for testing" in dataset.describe()
    with pytest.raises(InputError, match="part/dent, part/scratch"):
        dataset.defect_type("part/hole")


def test_pairs_and_images_are_read(root: Path) -> None:
    dataset = load_dataset(root, "part", SplitSettings("first n", 4, defects="scratch"))
    images, masks = load_pairs(dataset.types[0].train, None)
    assert images.shape == (4, 3, 12, 16)
    assert masks.sum(dim=(1, 2, 3)).tolist() == [9.0] * 4
    images, masks = load_pairs(dataset.types[0].train, 8)
    assert images.shape == (4, 3, 8, 8)
    assert masks.shape == (4, 1, 8, 8)
    assert load_images(dataset.normals, 8).shape == (3, 3, 8, 8)
    with pytest.raises(InputError, match="none given"):
        load_pairs(dataset.types[0].train[:0], 8)
    _image(dataset.normals[1], 1, (10, 10))
    with pytest.raises(DatasetError, match="10x10 px, but 0.png has 16x12 px"):
        load_images(dataset.normals, None)


def test_pairing_is_by_name_whatever_the_suffix(root: Path) -> None:
    truth = root / "part" / "ground_truth" / "dent"
    images = root / "part" / "test" / "dent"
    Image.open(truth / "000_mask.png").save(truth / "000_mask.bmp")
    (truth / "000_mask.png").unlink()
    (truth / "001_mask.png").rename(truth / "001.png")
    Image.open(images / "002.png").save(images / "002.JPEG")
    (images / "002.png").unlink()
    (images / "003.png").rename(images / (unicodedata.normalize("NFD", "\u00e9") + ".png"))
    (truth / "003_mask.png").rename(truth / (unicodedata.normalize("NFC", "\u00e9") + "_mask.png"))
    pairs = load_dataset(root, "part", SplitSettings("first n", 4)).defect_type("dent").train
    found = [(pair.image_path.suffix, pair.mask_path.suffix, pair.mask_path.stem[:3]) for pair in pairs]
    assert found == [
        (".png", ".bmp", "000"),
        (".png", ".png", "001"),
        (".JPEG", ".png", "002"),
        (".png", ".png", "\u00e9_m"),
    ]


def test_junk_is_ignored(root: Path) -> None:
    for folder in ("train/good", "test/good", "test/dent", "ground_truth/dent"):
        for name in ("Thumbs.db", ".DS_Store", "._000.png", "list.txt"):
            (root / "part" / folder / name).write_bytes(b"\0\1")
    (root / "part" / "test" / "__MACOSX").mkdir()
    (root / "part" / "test" / ".cache").mkdir()
    (root / "part" / "test" / "nothing").mkdir()
    dataset = load_dataset(root, "part")
    assert len(dataset.types) == 2
    assert "test/nothing holds no images and is ignored" in dataset.notices
    assert "train/good: 1 skipped, no images: list.txt" in dataset.notices
    assert len(dataset.notices) == 5


def test_all_problems_are_in_one_error(root: Path) -> None:
    part = root / "part"
    (part / "ground_truth" / "dent" / "001_mask.png").unlink()
    _mask(part / "ground_truth" / "dent" / "017_mask.png")
    _mask(part / "ground_truth" / "scratch" / "003_mask.png", filled=0)
    _mask(part / "ground_truth" / "scratch" / "004_mask.png", size=(6, 8))
    (part / "test" / "scratch" / "005.png").write_bytes(b"broken")
    _image(part / "test" / "scratch" / "000.jpg", 1)
    (part / "train" / "good" / "1.png").write_bytes(b"")
    with pytest.raises(DatasetError) as caught:
        load_dataset(root, "part")
    text = str(caught.value)
    assert len(caught.value.problems) == 7
    assert "001.png: image without mask" in text
    assert "017_mask.png: mask without image" in text
    assert "003_mask.png: the mask is empty" in text
    assert "004_mask.png: the mask is 8x6 px, its image 004.png is 16x12 px" in text
    assert "005.png: not a readable image" in text
    assert "same name" in text
    assert "1.png: not a readable image" in text


def test_a_long_list_of_problems_is_cut(root: Path) -> None:
    for index in range(60):
        _mask(root / "part" / "ground_truth" / "dent" / f"x{index}_mask.png")
    with pytest.raises(DatasetError, match="60 problems") as caught:
        load_dataset(root, "part")
    assert "and 40 more" in str(caught.value)
    assert len(caught.value.problems) == 60


def test_missing_folders_say_what_to_do(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="absent does not exist"):
        load_dataset(tmp_path / "absent", "part")
    with pytest.raises(DatasetError, match="one of: part"):
        load_dataset(root, "prat")
    with pytest.raises(DatasetError, match="category 'part'"):
        load_dataset(root / "part", "part")
    for path in ("../part", "a/b", "", "a\\b"):
        with pytest.raises(InputError, match="category"):
            load_dataset(root, path)
    with pytest.raises(InputError, match="Choose from: dent, scratch"):
        load_dataset(root, "part", SplitSettings(defects="hole"))
    (root / "empty").mkdir()
    with pytest.raises(DatasetError, match="MVTec layout"):
        load_dataset(root, "empty")


def test_no_normals_and_no_ground_truth_are_both_named(root: Path) -> None:
    for path in list((root / "part" / "train" / "good").iterdir()):
        path.unlink()
    (root / "part" / "ground_truth").rename(root / "part" / "labels")
    with pytest.raises(DatasetError) as caught:
        load_dataset(root, "part")
    assert "good: holds no images" in str(caught.value)
    assert "ground_truth: missing. Put the masks of dent, scratch" in str(caught.value)


def test_good_images_alone_are_usable_as_normals(tmp_path: Path) -> None:
    _image(tmp_path / "part" / "train" / "good" / "0.png", 0)
    dataset = load_dataset(tmp_path, "part")
    assert dataset.types == ()
    assert any("no defect images" in notice for notice in dataset.notices)
    with pytest.raises(InputError, match="normal images only"):
        dataset.defect_type("part/dent")


def test_too_few_for_the_rule_and_none_left_for_testing(root: Path) -> None:
    for index in (2, 3):
        (root / "part" / "test" / "dent" / f"00{index}.png").unlink()
        (root / "part" / "ground_truth" / "dent" / f"00{index}_mask.png").unlink()
    with pytest.raises(DatasetError, match="'lowest third' leaves no training pair of the 2 of dent"):
        load_dataset(root, "part")
    dataset = load_dataset(root, "part", SplitSettings("first n", 2))
    assert any("none is left for testing" in notice for notice in dataset.notices)


def test_the_same_image_in_two_roles_is_noticed(root: Path) -> None:
    part = root / "part"
    (part / "train" / "good" / "9.png").write_bytes((part / "test" / "dent" / "003.png").read_bytes())
    (part / "test" / "scratch" / "005.png").write_bytes((part / "test" / "scratch" / "000.png").read_bytes())
    notices = load_dataset(root, "part").notices
    assert "the same image twice: train/good/9.png = test/dent/003.png" in notices
    assert "the same image twice: test/scratch/000.png = test/scratch/005.png" in notices
    assert len(notices) == 2


def test_a_full_mask_is_refused_and_a_nearly_full_one_noticed(root: Path) -> None:
    path = root / "part" / "ground_truth" / "dent" / "000_mask.png"
    _mask(path, filled=16)
    with pytest.raises(DatasetError, match=r"000_mask\.png: the mask covers the whole image"):
        load_dataset(root, "part")
    pixels = np.full((12, 16), 255, np.uint8)
    pixels[0, :] = 0
    Image.fromarray(pixels).save(path)
    assert "000_mask.png: covers 92% of its image: is it inverted?" in load_dataset(root, "part").notices


def test_deep_images_of_one_set_share_their_scale(root: Path) -> None:
    good = root / "part" / "train" / "good"
    Image.fromarray(np.full((12, 16), 500, np.uint16)).save(good / "0.png")
    Image.fromarray(np.full((12, 16), 4000, np.uint16)).save(root / "part" / "test" / "dent" / "000.png")
    dataset = load_dataset(root, "part")
    assert dataset.bits == 12
    assert any("12 bits" in notice for notice in dataset.notices)
    normal = load_images(dataset.normals, None, dataset.bits)
    assert normal[0].max().item() == pytest.approx(500 / 4095, abs=1e-6)
    image, _ = load_pairs(dataset.defect_type("dent").train, None)
    assert image.max().item() == pytest.approx(4000 / 4095, abs=1e-6)


def test_the_fingerprint_follows_files_and_split(root: Path) -> None:
    first = load_dataset(root, "part").fingerprint()
    assert load_dataset(root, "part").fingerprint() == first
    assert load_dataset(root, "part", SplitSettings("first n", 3)).fingerprint() != first
    _mask(root / "part" / "ground_truth" / "dent" / "000_mask.png", filled=5)
    assert load_dataset(root, "part").fingerprint() != first


@needs_real_data
def test_bottle_split_of_the_paper() -> None:
    dataset = load_dataset(REAL, "bottle")
    assert {kind.defect: (len(kind.train), len(kind.test)) for kind in dataset.types} == {
        "broken_large": (6, 14),
        "broken_small": (7, 15),
        "contamination": (7, 14),
    }
    assert (len(dataset.normals), len(dataset.test_normals)) == (209, 20)
    assert dataset.notices == ()


@needs_real_data
def test_magnetic_tile_of_odd_sizes() -> None:
    dataset = load_dataset(REAL, "magnetic_tile")
    crack = dataset.defect_type("crack")
    with pytest.raises(DatasetError, match="Give a size"):
        load_pairs(crack.train, None)
    images, masks = load_pairs(crack.train, 64)
    assert torch.equal(images[:, 0], images[:, 2])
    assert (masks.amax(dim=(1, 2, 3)) == 1).all()


def test_split_is_printed_and_kept(root: Path) -> None:
    dataset = load_dataset(root, "part", SplitSettings("random", 2, split_seed=3))
    assert dataset.split_options == {"count": 2, "seed": 3}
    text = dataset.describe()
    assert "split 'random', count 2, seed 3" in text
    for kind in dataset.types:
        names = kind.split_names
        assert len(names["train"]) == 2 and not set(names["train"]) & set(names["test"])
    plain = load_dataset(root, "part").describe()
    assert "part/scratch: 2 training pairs, 4 for testing; train 000 to 001; test 002 to 005" in plain


def test_split_by_a_list_of_pairs(root: Path) -> None:
    dataset = load_dataset(root, "part", SplitSettings("list", train_list="dent/002, scratch/001, scratch/004, 000"))
    assert {kind.defect: kind.split_names["train"] for kind in dataset.types} == {
        "dent": ["000", "002"],
        "scratch": ["000", "001", "004"],
    }
    with pytest.raises(DatasetError, match=r"train_list: unknown pair dent/9, 77\. "):
        load_dataset(root, "part", SplitSettings("list", train_list="dent/9, 77, 000"))
    with pytest.raises(DatasetError, match="train_list: is empty"):
        load_dataset(root, "part", SplitSettings("list"))
    with pytest.raises(DatasetError, match="'list' leaves no training pair of the 6 of scratch"):
        load_dataset(root, "part", SplitSettings("list", train_list="dent/001"))


def test_one_image_of_a_type_trains_or_tests(root: Path) -> None:
    base = root / "part"
    _image(base / "test" / "hole" / "0.png", 7)
    _mask(base / "ground_truth" / "hole" / "0_mask.png")
    with pytest.raises(DatasetError, match="'lowest third' leaves no training pair of the 1 of hole"):
        load_dataset(root, "part", SplitSettings(defects="hole"))
    dataset = load_dataset(root, "part", SplitSettings("first n", 1, defects="hole"))
    assert "hole: all 1 pairs are used for training, none is left for testing" in dataset.notices


def test_a_validation_split_leaves_the_test_set_out(shared_data: Path) -> None:
    """Bottle: 6, 7 and 7 training pairs; half of each, rounded up, and half of 209 normal images are held out."""
    whole, held = (load_dataset(shared_data, "bottle", SplitSettings(validation_rate=rate)) for rate in (0, 50))
    assert [(len(kind.train), len(kind.test)) for kind in held.types] == [(3, 3), (3, 4), (3, 4)]
    assert (len(held.normals), len(held.test_normals)) == (104, 105)
    tested = {pair.image_path for kind in whole.types for pair in kind.test} | set(whole.test_normals)
    used = {pair.image_path for kind in held.types for pair in (*kind.train, *kind.test)}
    assert not tested & (used | set(held.normals) | set(held.test_normals))
    assert any("no figures of the test set" in notice for notice in held.notices)
    with pytest.raises(InputError, match="validation_rate: 50, but no type has two training pairs"):
        load_dataset(shared_data, "bottle", SplitSettings("first n", 1, validation_rate=50))


def test_the_sheet_keeps_the_aspect_of_oblong_images(tmp_path: Path) -> None:
    pixels = torch.zeros(3, 60, 180)
    pixels[:, :, :60] = 1  # a white square, which stays one
    for name in ("train/good/0", "train/good/1", "test/dent/0", "test/dent/1"):
        write_image(tmp_path / "part" / f"{name}.png", pixels)
    for number in range(2):
        write_mask(tmp_path / "part" / "ground_truth" / "dent" / f"{number}_mask.png", pixels[:1])
    sheet = dataset_sheet(load_dataset(tmp_path, "part", SplitSettings("first n", 1)))
    white = (sheet.amin(0) > 0.95).numpy()
    labels, count = ndimage.label(white)
    sides = [(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in ndimage.find_objects(labels)]
    squares = [(height, width) for height, width in sides if height > 40]
    assert len(squares) >= 2 and all(abs(height - width) <= 2 and width <= 54 for height, width in squares), sides
