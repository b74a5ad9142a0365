"""Forms of exported files: other labels, codec, bits, hashes, and the check of a folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor
from typer.testing import CliRunner

from anomalydiffusion_core.cli import app
from anomalydiffusion_core.data.camera import measure
from anomalydiffusion_core.data.checking import check_pairs
from anomalydiffusion_core.data.export import ExportSettings, PairBatch, export_batch, export_batches, write_also
from anomalydiffusion_core.data.image_form import ImageForm, form_of
from anomalydiffusion_core.data.mvtec import load_dataset
from anomalydiffusion_core.data.pairs import MANIFEST, load_exported, load_exported_tensors, update_manifest
from anomalydiffusion_core.errors import InputError

pytestmark = pytest.mark.core


def _batch(key: str = "cup/crack", count: int = 2, levels: int = 255, grey: bool = False, **more: Any) -> PairBatch:
    """Normal images of whole samples, and images that differ inside a box with a hole."""
    generator = torch.Generator().manual_seed(len(key))
    normals = torch.randint(0, levels + 1, (count, 1 if grey else 3, 24, 32), generator=generator) / levels
    normals = normals.expand(-1, 3, -1, -1)
    masks = torch.zeros(count, 1, 24, 32)
    masks[:, :, 4:16, 6:20] = 1
    masks[:, :, 8:10, 10:12] = 0
    return PairBatch(key, torch.where(masks > 0, 1 - normals, normals), masks, normals, **more)


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / MANIFEST).read_text(encoding="utf-8").splitlines()]


def test_every_line_has_a_version_and_the_hashes_of_its_files(tmp_path: Path) -> None:
    export_batch(tmp_path, _batch(), ExportSettings())
    for line in _lines(tmp_path):
        assert line["version"] == 2 and set(line["sha256"]) == {"image", "mask", "normal"}
        for key, digest in line["sha256"].items():
            assert hashlib.sha256((tmp_path / line[key]).read_bytes()).hexdigest() == digest
    first = _lines(tmp_path)[0]
    Image.new("L", (32, 24), 255).save(tmp_path / first["mask"])
    update_manifest(tmp_path, {first["image"]: {"mask": first["mask"]}})  # told of its new file
    changed = hashlib.sha256((tmp_path / first["mask"]).read_bytes()).hexdigest()
    assert _lines(tmp_path)[0]["sha256"]["mask"] == changed and check_pairs(tmp_path).problems == []


def test_coco_yolo_anomalib_and_class_maps_beside_the_pairs(tmp_path: Path) -> None:
    settings = ExportSettings(also="coco, yolo, anomalib, classes")
    export_batches(tmp_path, [_batch(), _batch("cup/hole", 1)], settings)
    text = write_also(tmp_path, settings)
    assert text == "also: coco_instances.json, yolo.yaml, classes.txt, cup/anomalib_folder.json"
    content = json.loads((tmp_path / "coco_instances.json").read_text())
    assert [entry["name"] for entry in content["categories"]] == ["crack", "hole"]
    assert [entry["file_name"] for entry in content["images"]][:3] == [
        "cup/test/crack/000.png",
        "cup/test/crack/001.png",
        "cup/test/hole/000.png",
    ]
    assert len(content["images"]) == 6, "normal images are listed without annotations"
    assert [(e["image_id"], e["category_id"], e["area"], e["bbox"]) for e in content["annotations"]] == [
        (1, 1, 164, [6, 4, 14, 12]),
        (2, 1, 164, [6, 4, 14, 12]),
        (3, 2, 164, [6, 4, 14, 12]),
    ]
    assert all(isinstance(entry["segmentation"], dict) for entry in content["annotations"]), "the hole is kept"
    config = yaml.safe_load((tmp_path / "yolo.yaml").read_text())
    assert config["names"] == {0: "crack", 1: "hole"}
    assert config["train"] == ["cup/normal/crack", "cup/normal/hole", "cup/test/crack", "cup/test/hole"]
    assert (tmp_path / "cup/test/hole/000.txt").read_text().startswith("1 0.1875 0.1666667")
    arguments = json.loads((tmp_path / "cup" / "anomalib_folder.json").read_text())
    assert arguments["normal_dir"] == ["normal/crack", "normal/hole"]
    assert arguments["mask_dir"] == ["ground_truth/crack", "ground_truth/hole"]
    classes = np.asarray(Image.open(tmp_path / "cup/class_map/hole/000.png"))
    assert (tmp_path / "classes.txt").read_text() == "crack\nhole\n"
    assert np.bincount(classes.ravel()).tolist() == [24 * 32 - 164, 0, 164]
    assert len(load_exported(tmp_path)) == 3 and check_pairs(tmp_path).problems == []


def test_pycocotools_reads_the_labels_beside_the_pairs(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    settings = ExportSettings(also="coco")
    export_batches(tmp_path, [_batch()], settings)
    write_also(tmp_path, settings)
    read = coco.COCO(str(tmp_path / "coco_instances.json"))
    for entry in read.loadAnns(read.getAnnIds()):
        name = read.loadImgs(entry["image_id"])[0]["file_name"]
        mask = np.asarray(Image.open(tmp_path / name.replace("/test/", "/ground_truth/").replace(".png", "_mask.png")))
        assert np.array_equal(read.annToMask(entry) > 0, mask > 0)


def test_jpeg_for_images_and_normals_alike_and_never_for_masks(tmp_path: Path) -> None:
    lines = export_batch(tmp_path, _batch(), ExportSettings(jpeg_quality=80))
    tables = []
    for key in ("image", "normal"):
        assert lines[0][key].endswith(".jpg")
        with Image.open(tmp_path / lines[0][key]) as image:
            assert isinstance(image, JpegImageFile)
            tables.append({place: list(table) for place, table in image.quantization.items()})
    assert tables[0] == tables[1]
    mask = np.asarray(Image.open(tmp_path / lines[0]["mask"]))
    assert lines[0]["mask"].endswith(".png") and sorted(np.unique(mask)) == [0, 255] and (mask > 0).sum() == 164
    assert lines[0]["outside_max_abs_diff"] > 0, "measured on the files: JPEG spreads the defect over its blocks"
    more = export_batch(tmp_path, _batch(), ExportSettings(jpeg_quality=80))
    assert more[0]["image"] == "cup/test/crack/002.jpg"
    with pytest.raises(InputError, match="jpeg_quality: the images have 12 bits"):
        export_batch(tmp_path, _batch(form=ImageForm(12)), ExportSettings(jpeg_quality=80))


@pytest.mark.parametrize(("bits", "grey", "suffix", "mode"), [(8, True, "png", "L"), (12, True, "png", "I;16")])
def test_bits_and_channels_of_the_source_are_kept(
    bits: int, grey: bool, suffix: str, mode: str, tmp_path: Path
) -> None:
    batch = _batch(levels=2**bits - 1, grey=grey, form=ImageForm(bits, grey))
    line = export_batch(tmp_path, batch, ExportSettings())[0]
    with Image.open(tmp_path / line["normal"]) as image:
        assert (image.mode, line["normal"].rpartition(".")[2]) == (mode, suffix)
        stored = np.asarray(image)
    assert np.array_equal(stored, (batch.normals[0, 0] * (2**bits - 1)).round().numpy())
    assert line["outside_max_abs_diff"] == 0
    read = load_exported_tensors(load_exported(tmp_path), 32)["cup/crack"][0]
    assert read.shape == (2, 3, 32, 32)
    assert load_exported(tmp_path)[0].bits == (None if bits == 8 else bits)
    assert check_pairs(tmp_path).problems == []


def test_sixteen_bit_colours_are_kept(tmp_path: Path) -> None:
    from anomalydiffusion_core.data.images import read_image

    batch = _batch(levels=4095, form=ImageForm(12))
    line = export_batch(tmp_path, batch, ExportSettings())[0]
    assert line["normal"].endswith(".tif") and line["outside_max_abs_diff"] == 0 and line["bits"] == 12
    assert torch.equal((read_image(tmp_path / line["normal"], 12) * 4095).round(), (batch.normals[0] * 4095).round())


def test_the_form_of_a_data_set_is_that_of_its_images(tmp_path: Path) -> None:
    folder = tmp_path / "part" / "train" / "good"
    folder.mkdir(parents=True)
    Image.fromarray(np.full((8, 8), 3000, np.uint16)).save(folder / "0.png")
    assert form_of(load_dataset(tmp_path, "part")) == ImageForm(12, True)
    Image.new("RGB", (8, 8), "red").save(folder / "0.png")
    assert form_of(load_dataset(tmp_path, "part")) == ImageForm(8, False)


def _camera_batch() -> tuple[PairBatch, Tensor]:
    generator = torch.Generator().manual_seed(0)
    smooth = torch.full((2, 3, 64, 64), 0.5)
    normals = (smooth + torch.randn(smooth.shape, generator=generator) * 5 / 255).clamp(0, 1)
    masks = torch.zeros(2, 1, 64, 64)
    masks[:, :, 8:56, 8:56] = 1
    images = torch.where(masks > 0, smooth - 0.2, normals)
    return PairBatch("cup/crack", images, masks, normals, [{"seed": 4}, {"seed": 5}]), masks


def test_noise_of_the_normal_images_is_given_to_the_defects(tmp_path: Path) -> None:
    batch, masks = _camera_batch()
    plain = export_batch(tmp_path / "plain", batch, ExportSettings())
    matched = export_batch(tmp_path / "matched", batch, ExportSettings(match_camera=True))
    assert [line["outside_max_abs_diff"] for line in (*plain, *matched)] == [0, 0, 0, 0]
    assert matched[0]["settings"]["camera"]["noise_added"] == pytest.approx(5, rel=0.2)
    read = {
        name: load_exported_tensors(load_exported(tmp_path / name), 64)["cup/crack"][0]
        for name in ("plain", "matched")
    }
    assert measure(read["plain"], masks).noise < 1e-6
    assert measure(read["matched"], masks).noise * 255 == pytest.approx(5, rel=0.2)


def test_a_check_names_everything_that_is_wrong(tmp_path: Path) -> None:
    export_batches(tmp_path, [_batch("cup/crack", 6), _batch("cup/hole", 2)], ExportSettings())
    run = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert run.exit_code == 0 and "8 pairs, 0 problems" in run.output
    lines = _lines(tmp_path)
    Image.new("RGB", (32, 24)).save(tmp_path / lines[0]["image"])  # edited
    (tmp_path / lines[1]["mask"]).unlink()
    lines[2]["defect"] = "hole"
    lines.append(lines[3])
    del lines[4]["sha256"]
    lines[5]["version"] = 9
    del lines[6]
    text = "\n".join(json.dumps(line) for line in lines)
    (tmp_path / MANIFEST).write_text(text + "\n{broken\n[1]\n", encoding="utf-8")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    found = check_pairs(tmp_path)
    wanted = [
        "line 1: cup/test/crack/000.png has changed since it was written",
        "line 2: the file: cup/ground_truth/crack/001_mask.png is missing",
        "line 3: says cup/hole, but cup/test/crack/002.png is of cup/crack",
        "line 6: version 9 is newer than this program",
        "line 8: cup/test/crack/003.png is also in line 4",
        "line 9: is not a record of a pair",
        "line 10: is not a record of a pair",
        "cup/test/hole/000.png: is in no line of manifest.jsonl",
    ]
    for text in wanted:
        assert any(problem.startswith(text) for problem in found.problems), text
    assert any("outside the mask" in problem for problem in found.problems)
    assert found.notices == ["1 lines have no hashes: they were written by an earlier version"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    run = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert run.exit_code == 1 and "line 1: cup/test/crack/000.png has changed" in run.output


def test_a_check_of_a_data_set_says_what_loading_finds(tmp_path: Path) -> None:
    folder = tmp_path / "part" / "train" / "good"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(folder / "0.png")
    run = CliRunner().invoke(app, ["check", str(tmp_path / "part")])
    assert run.exit_code == 0 and "part: 1 normal images" in run.output and "read as MVTec AD" in run.output
    (folder / "1.png").write_bytes(b"nothing")
    run = CliRunner().invoke(app, ["check", str(tmp_path / "part")])
    assert run.exit_code == 1 and "1.png" in run.output


def test_unknown_label_files_are_refused() -> None:
    with pytest.raises(InputError, match="also: unknown label file 'voc'. Choose from: coco, yolo, anomalib, classes"):
        ExportSettings(also="coco, voc")
