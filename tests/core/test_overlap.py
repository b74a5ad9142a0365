"""Splits that leak are refused: marks of what was learned from travel with bundles, pairs and results."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from anomalydiffusion_core.backends.ldm import LdmDenoiser
from anomalydiffusion_core.backends.ldm_files import EPSILON
from anomalydiffusion_core.baselines import CropPaste, make_pairs, training_sources
from anomalydiffusion_core.bundles.bundle import load_bundle
from anomalydiffusion_core.cli.app import app
from anomalydiffusion_core.data.export import export_pairs
from anomalydiffusion_core.data.images import read_image
from anomalydiffusion_core.data.mvtec import load_dataset, load_images
from anomalydiffusion_core.data.pairs import load_exported
from anomalydiffusion_core.data.provenance import (
    Mark,
    file_marks,
    held_out_marks,
    look_of,
    marks_of,
    overlaps,
    plain_marks,
    training_marks,
)
from anomalydiffusion_core.data.splits import SplitSettings
from anomalydiffusion_core.demo_prior.storing import store
from anomalydiffusion_core.evaluation.tables.records import read_records

PART = ("--category", "part")
DETECTOR = ("--size", 32, "--width", 1, "--steps", 1, "--batch-size", 2, "--runs", 1, "--device", "cpu")


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A category of 9 scratches, and a tiny prior."""
    root, rng = tmp_path_factory.mktemp("overlap"), np.random.default_rng(0)
    for part, count in (("train/good", 3), ("test/good", 2)):
        for number in range(count):
            _save(root / "data" / "part" / part / f"{number}.png", rng.normal(120, 40, (64, 64, 3)))
    for number in range(9):
        pixels, mask = rng.normal(120, 40, (64, 64, 3)), np.zeros((64, 64))
        mask[20:36, 8 + 4 * number : 20 + 4 * number] = 255
        pixels[mask > 0] = 250
        _save(root / "data" / "part" / "test" / "scratch" / f"{number:03d}.png", pixels)
        _save(root / "data" / "part" / "ground_truth" / "scratch" / f"{number:03d}_mask.png", mask)
    tiny = LdmDenoiser.random(0, context_dim=32)
    store(root / "prior.safetensors", tiny.autoencoder, tiny.unet, tiny.words, {}, EPSILON)
    return root


def _run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.output


@pytest.fixture(scope="module")
def pairs(root: Path) -> Path:
    """Pairs of a bundle that was trained on a random split."""
    data = ("--data", root / "data", *PART, "--split", "random", "--train-count", 3, "--split-seed", 3)
    prior = ("--model", root / "prior.safetensors")
    small = ("--steps", 2, "--resolution", 64, "--augmented-copies", 0, "--encoder", "light")
    code, output = _run("train", *prior, *data, "--out", root / "bundles", *small)
    assert code == 0, output
    bundle = root / "bundles" / "anomaly_embedding_00001.safetensors"
    sampling = ("--count", 2, "--steps", 1, "--cfg", 1, "--size", 64, "--crop", "off", "--retries", 0)
    code, output = _run("generate", *prior, "--bundle", bundle, *data, "--out", root / "pairs", *sampling)
    assert code == 0, output
    return root / "pairs"


def test_pairs_of_another_split_are_refused_with_a_list_of_the_files(root: Path, pairs: Path) -> None:
    data = load_dataset(root / "data", "part", SplitSettings("random", 3, 3))
    learned = {pair.name for pair in data.types[0].train}
    # The lowest third of 9 names, 000 to 002, trains; all others test.
    leaked = sorted(learned - {"000", "001", "002"})
    assert leaked, "this split seed draws from the other two thirds"
    own = load_bundle(root / "bundles" / "anomaly_embedding_00001.safetensors")
    assert {name for name in marks_of(own.metadata) if "/test/" in name} == {
        f"part/test/scratch/{name}.png" for name in learned
    }
    given = ("evaluate", "--pairs", pairs, "--data", root / "data", *PART, *DETECTOR)
    code, output = _run(*given, "--out", root / "lowest")
    assert code == 1 and not (root / "lowest").exists(), output
    assert "error: pairs: something was learned from images of the test set" in output
    assert f"learned from {len(leaked)} of the 8 test images ({len(leaked)} the same file)" in output
    assert all(f"part/test/scratch/{name}.png" in output for name in leaked)
    # The split that they were made with is not refused.
    code, output = _run(*given, "--out", root / "fit", "--split", "random", "--train-count", 3, "--split-seed", 3)
    assert code == 0 and "LEAK" not in output, output
    record = next(one for one in read_records(root / "fit" / "results.json") if one.method)
    assert f"part/test/scratch/{min(learned)}.png" in record.learned_from and not record.leaks


def test_the_override_marks_every_table(root: Path, pairs: Path) -> None:
    given = ("evaluate", "--pairs", pairs, "--data", root / "data", *PART, *DETECTOR)
    code, output = _run(*given, "--out", root / "marked", "--allow-overlap")
    assert code == 0, output
    assert "| few real + generated pairs (LEAK) |" in output and "| few real pairs |" in output
    assert "LEAK: learned from" in output
    assert "(LEAK)" in (root / "marked" / "results.csv").read_text()
    figures = json.loads((root / "marked" / "evaluation.json").read_text())
    assert [bool(row["leaks"]) for row in figures["rows"]] == [False, True]
    code, output = _run("tables", root / "marked", "--out", root / "tables", "--table", 10)
    assert code == 0 and "(LEAK, reduced)" in output
    assert "LEAK: few real + Ours of part was learned from" in output
    # Classification follows the same rule.
    classify = ("classify", "--pairs", pairs, "--data", root / "data", *PART, "--size", 32, "--width", 1, "--steps", 1)
    code, output = _run(*classify, "--runs", 1, "--device", "cpu", "--out", root / "classes")
    assert code == 1 and "learned from images of the test set" in output


def test_test_images_that_are_exported_a_grey_level_darker_are_found(root: Path, tmp_path: Path) -> None:
    base = root / "data" / "part"
    images = torch.stack([read_image(base / "test" / "scratch" / f"{n:03d}.png") for n in (5, 6)])
    masks = torch.zeros(2, 1, 64, 64)
    masks[:, :, 20:36, 20:40] = 1
    export_pairs(tmp_path / "dark", "part", "scratch", (images - 1 / 255).clamp(0, 1), masks, images, [{}] * 2)
    given = ("evaluate", "--pairs", tmp_path / "dark", "--data", root / "data", *PART, *DETECTOR)
    code, output = _run(*given, "--out", tmp_path / "out")
    assert code == 1 and "2 the same image" in output and "part/test/scratch/005.png is the same image as" in output


def test_pairs_of_another_object_or_an_unknown_type_are_refused(root: Path, tmp_path: Path) -> None:
    image, mask = torch.rand(1, 3, 64, 64), torch.zeros(1, 1, 64, 64)
    mask[..., 4:20, 4:20] = 1
    for number, (kind, defect) in enumerate((("bottle", "scratch"), ("part", "hole"))):
        folder = tmp_path / str(number)
        export_pairs(folder, kind, defect, image, mask, image, [{}])
        given = ("evaluate", "--pairs", folder, "--data", root / "data", *PART, *DETECTOR)
        code, output = _run(*given, "--out", tmp_path / "out")
        assert code == 1 and f"1 pairs of {kind}/{defect}" in output and "part/scratch" in output, output


def test_a_test_image_among_the_normal_images_is_found(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "data", tmp_path / "data")
    base = tmp_path / "data" / "part"
    shutil.copy(base / "test" / "scratch" / "008.png", base / "train" / "good" / "9.png")
    given = ("evaluate", "--pairs", base, "--data", tmp_path / "data", *PART, *DETECTOR)
    code, output = _run(*given, "--training-sets", "few real", "--out", tmp_path / "out")
    assert code == 1 and "part/test/scratch/008.png is the same file as part/train/good/9.png" in output


def test_export_keeps_the_marks_once_and_a_plain_image_is_not_recognised(tmp_path: Path) -> None:
    image, mask = torch.rand(2, 3, 32, 32), torch.ones(2, 1, 32, 32)
    marks = {"part/test/scratch/000.png": Mark("ab" * 8, "")}
    for _ in range(2):
        export_pairs(tmp_path, "part", "scratch", image, mask, image, [{"learned_from": plain_marks(marks)}] * 2)
    assert len(list((tmp_path / "learned_from").iterdir())) == 1
    names = {pair.record["learned_from"] for pair in load_exported(tmp_path)}
    assert len(names) == 1 and "settings" not in next(iter(names))
    flat = Mark.of_file(tmp_path / "part" / "ground_truth" / "scratch" / "000_mask.png")
    assert flat.values() is None and overlaps({"a": flat}, {"b": flat}) == []


def test_copies_are_recognised_and_other_parts_are_not(shared_data: Path) -> None:
    for category in ("bottle", "magnetic_tile", "cookie"):
        dataset = load_dataset(shared_data, category)
        tests = held_out_marks(dataset)
        assert overlaps(training_marks(dataset) | file_marks(dataset, dataset.normals), tests) == [], category
    path = shared_data / "bottle" / "test" / "contamination" / "015.png"
    original = Image.open(path).convert("RGB")
    pixels = np.asarray(original).astype(float)

    def changed(image: Image.Image) -> Mark:
        stream = io.BytesIO()
        image.save(stream, "PNG")
        array = np.asarray(Image.open(stream).convert("RGB")).copy()
        return Mark("", look_of(torch.from_numpy(array).permute(2, 0, 1) / 255))

    jpeg = io.BytesIO()
    original.save(jpeg, "JPEG", quality=60)
    copies = {
        "darker": changed(Image.fromarray((pixels - 1).clip(0, 255).astype(np.uint8))),
        "jpeg": changed(Image.open(jpeg)),
        "small": changed(original.resize((128, 128), Image.Resampling.LANCZOS)),
        "contrast": changed(Image.fromarray(((pixels - 128) * 0.9 + 128).astype(np.uint8))),
    }
    dataset = load_dataset(shared_data, "bottle")
    for name, mark in copies.items():
        assert [one.test for one in overlaps({name: mark}, held_out_marks(dataset))] == [
            "bottle/test/contamination/015.png"
        ], name


def test_a_random_split_of_bottle_meets_24_of_the_test_images_of_the_lowest_third(shared_data: Path) -> None:
    learned = training_marks(load_dataset(shared_data, "bottle", SplitSettings("random", 10, 3)))
    assert len(learned) == 30
    found = overlaps(learned, held_out_marks(load_dataset(shared_data, "bottle")))
    assert {one.how for one in found} == {"the same file"}
    names = [set(learned), set(training_marks(load_dataset(shared_data, "bottle")))]
    assert len(found) == len(names[0] - names[1]) == 24


def test_pasted_defects_of_test_images_are_refused(root: Path, tmp_path: Path) -> None:
    """The pasted images are others than the test images, but what was pasted comes from them."""
    data = load_dataset(root / "data", "part", SplitSettings("random", 3, 3))
    kind = data.types[0]
    normals = load_images(data.normals[:1], 64, data.bits)
    method = CropPaste(training_sources(kind, (64, 64)))
    learned = plain_marks(training_marks(data, [kind.key]))
    made = make_pairs(method, normals, 0, kind.key, learned_from=learned)
    export_pairs(tmp_path / "pasted", "part", "scratch", made.images, made.masks, normals, made.records)
    leaked = sorted({pair.name for pair in kind.train} - {"000", "001", "002"})
    given = ("evaluate", "--pairs", tmp_path / "pasted", "--data", root / "data", *PART, *DETECTOR)
    code, output = _run(*given, "--out", tmp_path / "out")
    assert code == 1 and all(f"part/test/scratch/{name}.png" in output for name in leaked), output
