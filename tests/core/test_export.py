"""What Export Pairs leaves on disk, also when it fails half-way."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from anomalydiffusion_core.data.export import (
    ExportSettings,
    export_batch,
    export_batches,
    export_pairs,
    pair_batches,
    remove_unlisted,
)
from anomalydiffusion_core.data.mvtec import load_dataset
from anomalydiffusion_core.data.pairs import MANIFEST, load_exported, load_exported_tensors
from anomalydiffusion_core.errors import DatasetError, InputError
from anomalydiffusion_core.files import new_numbered_folder

pytestmark = pytest.mark.core


def _batch(count: int, seed: int = 0, size: tuple[int, int] = (10, 14)) -> tuple[Tensor, Tensor, Tensor]:
    """Normals of whole bytes, masks of a 4x5 box, images that differ inside the box only."""
    generator = torch.Generator().manual_seed(seed)
    normals = torch.randint(0, 256, (count, 3, *size), generator=generator).float() / 255
    masks = torch.zeros(count, 1, *size)
    masks[:, :, 2:6, 3:8] = 1
    return torch.where(masks > 0, 1 - normals, normals), masks, normals


def _records(count: int) -> list[dict[str, object]]:
    return [{"seed": 7 + i, "effect_score": 21.5, "fill_share": 0.75, "settings": {"steps": 25}} for i in range(count)]


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_layout_bytes_and_lines(tmp_path: Path) -> None:
    images, masks, normals = _batch(2)
    lines = export_pairs(tmp_path, "leather", "scratch", images, masks, normals, _records(2))
    assert _files(tmp_path) == [
        "leather/ground_truth/scratch/000_mask.png",
        "leather/ground_truth/scratch/001_mask.png",
        "leather/normal/scratch/000.png",
        "leather/normal/scratch/001.png",
        "leather/test/scratch/000.png",
        "leather/test/scratch/001.png",
        MANIFEST,
    ]
    written = [json.loads(line) for line in (tmp_path / MANIFEST).read_text(encoding="utf-8").splitlines()]
    assert written == lines
    assert set(written[1].pop("sha256")) == {"image", "mask", "normal"}
    assert written[1] == {
        "version": 2,
        "image": "leather/test/scratch/001.png",
        "mask": "leather/ground_truth/scratch/001_mask.png",
        "normal": "leather/normal/scratch/001.png",
        "object": "leather",
        "defect": "scratch",
        "seed": 8,
        "effect_score": 21.5,
        "fill_share": 0.75,
        "settings": {"steps": 25},
        "outside_max_abs_diff": 0,
    }
    mask = np.asarray(Image.open(tmp_path / written[1]["mask"]))
    assert sorted(np.unique(mask)) == [0, 255]
    assert (mask == 255).sum() == 20
    image = np.asarray(Image.open(tmp_path / written[1]["image"])).astype(int)
    normal = np.asarray(Image.open(tmp_path / written[1]["normal"])).astype(int)
    assert np.array_equal(image[mask == 0], normal[mask == 0])
    assert np.array_equal(image[mask == 255], 255 - normal[mask == 255])


def test_the_difference_outside_is_that_of_the_files(tmp_path: Path) -> None:
    images, masks, normals = _batch(3)
    images[0, 1, 9, 13] = normals[0, 1, 9, 13] + (-9 / 255 if normals[0, 1, 9, 13] > 0.5 else 9 / 255)
    images[1, 0, 0, 0] += 0.2 / 255 if normals[1, 0, 0, 0] < 1 else -0.2 / 255
    lines = export_pairs(tmp_path, "a", "b", images, masks, normals, _records(3))
    assert [line["outside_max_abs_diff"] for line in lines] == [9, 0, 0]


def test_numbering_continues_and_nothing_is_overwritten(tmp_path: Path) -> None:
    images, masks, normals = _batch(2)
    export_pairs(tmp_path, "a", "b", images, masks, normals, _records(2))
    before = {name: (tmp_path / name).read_bytes() for name in _files(tmp_path) if name != MANIFEST}
    (tmp_path / "a" / "normal" / "b" / "0041.png").write_bytes(b"somebody's")
    lines = export_pairs(tmp_path, "a", "b", *_batch(1, seed=5), _records(1))
    assert lines[0]["image"] == "a/test/b/042.png"
    assert export_pairs(tmp_path, "a", "c", *_batch(1), _records(1))[0]["image"] == "a/test/c/000.png"
    assert all((tmp_path / name).read_bytes() == content for name, content in before.items())
    assert len((tmp_path / MANIFEST).read_text(encoding="utf-8").splitlines()) == 4


def test_the_last_partial_batch_is_written(tmp_path: Path) -> None:
    assert len(export_pairs(tmp_path, "a", "b", *_batch(3), _records(3))) == 3
    with pytest.raises(InputError, match="0 pairs"):
        export_pairs(tmp_path, "a", "b", *_batch(0), [])


def test_a_failure_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    export_pairs(tmp_path, "a", "b", *_batch(1), _records(1))
    before = {name: (tmp_path / name).read_bytes() for name in _files(tmp_path)}
    images, masks, normals = _batch(3)
    normals[2, 0, 0, 0] = float("inf")  # found only when the last of nine images is written
    for object_name in ("a", "new"):
        with pytest.raises(InputError, match="infinite"):
            export_pairs(tmp_path, object_name, "b", images, masks, normals, _records(3))
    assert {name: (tmp_path / name).read_bytes() for name in _files(tmp_path)} == before
    assert not (tmp_path / "new").exists()


def test_a_manifest_that_cannot_be_written_takes_the_images_back(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(OSError):
        export_pairs(tmp_path, "a", "b", *_batch(3), _records(3))
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_bad_input_writes_nothing(tmp_path: Path) -> None:
    images, masks, normals = _batch(2)
    target = tmp_path / "out"
    empty = masks.clone()
    empty[1] = 0
    broken = images.clone()
    broken[1, 0, 0, 0] = float("nan")
    cases = [
        (("a", "b", images, masks[:1], normals, _records(2)), "2 images, 1 masks, 2 normals, 2 records"),
        (("a", "b", images, empty, normals, _records(2)), "number 1 of the batch is empty"),
        (("a", "b", broken, masks, normals, _records(2)), "NaN"),
        (("a", "b", images, masks, normals[..., :9], _records(2)), "different sizes"),
        (("a", "../b", images, masks, normals, _records(2)), "cannot be a name"),
        (("..", "b", images, masks, normals, _records(2)), "cannot be a name"),
        (("a", "good", images, masks, normals, _records(2)), "means no defect"),
        (
            ("a", "b", images, masks, normals, [{"seed": 1}, {"settings": {"x": object()}}]),
            "cannot be written as JSON",
        ),
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            export_pairs(target, *arguments)  # type: ignore[arg-type]
        assert not target.exists()


def test_records_become_plain_json(tmp_path: Path) -> None:
    record = {"seed": torch.tensor(3), "effect_score": float("nan"), "fill_share": np.float32(0.5), "cfg": 2.5}
    line = export_pairs(tmp_path, "a", "b", *_batch(1), [record])[0]
    assert (line["seed"], line["effect_score"], line["fill_share"], line["settings"]) == (3, None, 0.5, {"cfg": 2.5})


def test_reading_back_gives_the_same_pairs(tmp_path: Path) -> None:
    images, masks, normals = _batch(2)
    export_pairs(tmp_path, "teil \u00e4", "b", images, masks, normals, _records(2))
    pairs = load_exported(tmp_path)
    assert [pair.key for pair in pairs] == ["teil \u00e4/b"] * 2
    assert pairs[0].record["seed"] == 7
    assert pairs[0].normal is not None
    small = load_exported_tensors(pairs, 7)["teil \u00e4/b"]
    assert small[0].shape == (2, 3, 7, 7)
    square = _batch(2, size=(8, 8))
    export_pairs(tmp_path / "square", "a", "b", *square, _records(2))
    back_images, back_masks = load_exported_tensors(load_exported(tmp_path / "square"), 8)["a/b"]
    assert torch.allclose(back_images, square[0], atol=1e-6)
    assert torch.equal(back_masks, square[1])


def test_an_export_is_a_data_set_beside_normals(tmp_path: Path) -> None:
    images, masks, normals = _batch(3)
    export_pairs(tmp_path, "a", "b", images, masks, normals, _records(3))
    (tmp_path / "a" / "normal" / "b").rename(tmp_path / "a" / "good")
    (tmp_path / "a" / "train").mkdir()
    (tmp_path / "a" / "good").rename(tmp_path / "a" / "train" / "good")
    dataset = load_dataset(tmp_path, "a")
    assert [len(kind.train) + len(kind.test) for kind in dataset.types] == [3]


def test_folders_of_other_methods(tmp_path: Path) -> None:
    images, masks, normals = _batch(2)
    export_pairs(tmp_path / "one", "a", "b", images, masks, normals, _records(2))
    (tmp_path / "one" / MANIFEST).unlink()
    plain = load_exported(tmp_path / "one")
    assert [(pair.key, pair.image.name, dict(pair.record)) for pair in plain] == [
        ("a/b", "000.png", {}),
        ("a/b", "001.png", {}),
    ]
    assert [pair.key for pair in load_exported(tmp_path / "one" / "a")] == ["a/b"] * 2
    for part in ("image", "mask"):
        (tmp_path / "two" / "bottle" / "broken" / part).mkdir(parents=True)
    image = Image.fromarray(np.full((8, 8, 3), 90, np.uint8))
    for number in (0, 1, 10):
        image.save(tmp_path / "two" / "bottle" / "broken" / "image" / f"{number}.jpg")
        image.save(tmp_path / "two" / "bottle" / "broken" / "mask" / f"{number}.jpg")
    published = load_exported(tmp_path / "two")
    assert [(pair.key, pair.image.stem, pair.mask.parent.name) for pair in published] == [
        ("bottle/broken", "0", "mask"),
        ("bottle/broken", "1", "mask"),
        ("bottle/broken", "10", "mask"),
    ]
    (tmp_path / "two" / "bottle" / "broken" / "mask" / "10.jpg").unlink()
    with pytest.raises(DatasetError, match="10.jpg: image without mask"):
        load_exported(tmp_path / "two")


def test_damaged_export_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        load_exported(tmp_path / "absent")
    with pytest.raises(DatasetError, match="holds no pairs"):
        load_exported(tmp_path)
    export_pairs(tmp_path, "a", "b", *_batch(2), _records(2))
    manifest = tmp_path / MANIFEST
    good = manifest.read_text(encoding="utf-8")
    manifest.write_text("\r\n" + good.replace("\n", "\r\n"), encoding="utf-8", newline="")
    assert len(load_exported(tmp_path)) == 2
    manifest.write_text(good + "{oops\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="line 3: not a record"):
        load_exported(tmp_path)
    manifest.write_text(good.replace("a/test/b/001.png", "../001.png"), encoding="utf-8")
    with pytest.raises(DatasetError, match="line 2: ../001.png lies outside"):
        load_exported(tmp_path)
    manifest.write_text(good, encoding="utf-8")
    (tmp_path / "a" / "ground_truth" / "b" / "000_mask.png").unlink()
    with pytest.raises(DatasetError, match="line 1: a/ground_truth/b/000_mask.png is missing"):
        load_exported(tmp_path)


def test_batches_of_types_share_a_folder_and_weak_pairs_are_left_out(tmp_path: Path) -> None:
    images, masks, normals = _batch(3)
    records = [
        {**record, "effect_score": effect} for record, effect in zip(_records(3), (3.0, 9.0, 30.0), strict=True)
    ]
    batches = pair_batches(["part/dot", "part/bar"], [images] * 2, [masks], [normals[:1]], [records] * 2)
    done = export_batches(tmp_path, batches, ExportSettings(min_effect=9))
    assert [(line["defect"], line["seed"]) for line in done.lines] == [("dot", 8), ("dot", 9), ("bar", 8), ("bar", 9)]
    assert done.counts == {"part/dot": 2, "part/bar": 2}
    assert done.report("here").startswith("4 pairs in here (2 part/dot, 2 part/bar)")
    with pytest.raises(InputError, match="min_effect: no pair reaches 31"):
        export_batches(tmp_path, batches, ExportSettings(min_effect=31))
    with pytest.raises(InputError, match="min_effect: is 1"):
        export_batch(tmp_path, replace(batches[0], records=None), ExportSettings(min_effect=1))


def test_what_a_killed_export_left_is_removed(tmp_path: Path) -> None:
    images, masks, normals = _batch(2)
    export_pairs(tmp_path, "a", "b", images, masks, normals, _records(2))
    before = _files(tmp_path)
    for left in ("a/test/b/002.png", "a/ground_truth/b/.000_mask.0f.png", "a/normal/b/002.png"):
        (tmp_path / left).write_bytes(b"")
    remove_unlisted(tmp_path)
    assert _files(tmp_path) == before


def test_two_exports_into_one_prefix_at_the_same_time_both_finish(tmp_path: Path) -> None:
    together = threading.Barrier(2)

    def export(seed: int) -> Path:
        images, masks, normals = _batch(2, seed)
        with new_numbered_folder(tmp_path, "pairs") as made:
            together.wait()
            export_pairs(made.path, "leather", "scratch", images, masks, normals, _records(2))
            together.wait()
        return made.final

    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(export, range(2)))
    assert sorted(folder.name for folder in folders) == ["pairs_00001", "pairs_00002"]
    for seed, folder in enumerate(folders):
        with Image.open(folder / "leather" / "test" / "scratch" / "001.png") as stored:
            expected = (_batch(2, seed)[0][1].permute(1, 2, 0) * 255).round().byte().numpy()
            assert np.array_equal(np.asarray(stored), expected)
        assert len((folder / MANIFEST).read_text(encoding="utf-8").splitlines()) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs_00001", "pairs_00002"]
