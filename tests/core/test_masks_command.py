"""The command masks: from a bundle, real masks or noise to a folder of masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from anomalydiffusion_core.backends.ldm import LdmDenoiser
from anomalydiffusion_core.backends.ldm_files import EPSILON
from anomalydiffusion_core.bundles.bundle import AnomalyBundle
from anomalydiffusion_core.cli.app import app
from anomalydiffusion_core.data.images import write_image, write_mask
from anomalydiffusion_core.data.mask_files import read_mask
from anomalydiffusion_core.data.mvtec import load_dataset
from anomalydiffusion_core.data.selection import masks_in
from anomalydiffusion_core.demo_prior.storing import store
from anomalydiffusion_core.masks.sources import training_masks
from anomalydiffusion_core.masks.variation import VariationSettings, vary_masks

pytestmark = pytest.mark.core
ALL_PASS = ["--smallest-area", "0", "--largest-area", "1", "--speck-area", "0", "--no-border-rule"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny prior, a bundle of masks of two types, and a category with their real masks."""
    root = tmp_path_factory.mktemp("masks")
    tiny = LdmDenoiser.random(0, context_dim=32)
    store(root / "prior.safetensors", tiny.autoencoder, tiny.unet, tiny.words, {}, EPSILON)
    rows = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(1))
    AnomalyBundle("mask", {"part/bar": rows[0], "part/dot": rows[1]}, None, {"resolution": 64}).save(
        root / "bundle.safetensors"
    )
    for number in range(3):
        pixels = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(number))
        write_image(root / "data" / "part" / "train" / "good" / f"{number}.png", pixels)
        mask = torch.zeros(1, 64, 64)
        mask[:, 6 : 12 + 2 * number, 10:34] = 1
        write_image(root / "data" / "part" / "test" / "bar" / f"{number}.png", pixels)
        write_mask(root / "data" / "part" / "ground_truth" / "bar" / f"{number}_mask.png", mask)
    half = torch.zeros(1, 64, 64)
    half[:, :, 32:] = 1
    write_mask(root / "half.png", half)
    return root


def run(out: Path, *options: Any) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(part) for part in ("masks", "--out", out, "--size", 64, *options)])
    return done.exit_code, done.output


def test_masks_of_an_embedding_resume_and_grow(folder: Path, tmp_path: Path) -> None:
    model = ["--model", folder / "prior.safetensors", "--bundle", folder / "bundle.safetensors", "--steps", 2]
    model += [*ALL_PASS, "--threshold", 0.4]
    code, output = run(tmp_path / "all", *model, "--count", 3)
    assert code == 0, output
    files = sorted(path.relative_to(tmp_path / "all").as_posix() for path in tmp_path.rglob("all/**/*.png"))
    assert files == [f"part/{defect}/00{i}.png" for defect in ("bar", "dot") for i in range(3)]
    summary = json.loads((tmp_path / "all" / "summary.json").read_text())
    assert summary["types"]["part/bar"]["masks"] == 3 and summary["plan"]["cfg"] == 5.0
    assert "part/dot: 3 of 3 sampled masks kept" in (tmp_path / "all" / "report.txt").read_text()
    # One mask, then more: the same as all at once, whatever the batches.
    only = ["--type", "part/dot"]
    assert run(tmp_path / "some", *model, *only, "--count", 1)[0] == 0
    first = tmp_path / "some" / "part" / "dot" / "000.png"
    written = first.stat().st_mtime_ns
    assert run(tmp_path / "some", *model, *only, "--count", 3, "--batch-size", 1)[0] == 0
    assert first.stat().st_mtime_ns == written
    for name in ("000.png", "001.png", "002.png"):
        dots = [read_mask(tmp_path / out / "part" / "dot" / name) for out in ("all", "some")]
        assert torch.equal(*dots)
    assert len(masks_in(tmp_path / "some", "part/dot", 3)) == 3
    code, output = run(tmp_path / "some", *model, *only, "--steps", 3)
    assert code == 1 and "out: " in output and "steps" in output


def test_a_sample_without_a_record_is_made_again(folder: Path, tmp_path: Path) -> None:
    options = ["--source", "procedural", "--kind", "blob", "--type", "part/spot", "--count", 2]
    assert run(tmp_path / "a", *options)[0] == 0
    samples = tmp_path / "a" / "part" / "spot" / "samples.jsonl"
    lines = samples.read_text().splitlines(keepends=True)
    assert [json.loads(line) for line in lines] == [{"sample": i, "file": f"00{i}.png"} for i in range(2)]
    samples.write_text(lines[0] + lines[1][:5])  # killed while it was written
    assert run(tmp_path / "a", *options)[0] == 0
    assert samples.read_text() == "".join(lines)


def test_varied_masks_are_those_of_the_node_and_move_into_the_region(folder: Path, tmp_path: Path) -> None:
    data = ["--source", "vary", "--data", folder / "data", "--category", "part", "--split", "first n"]
    data += ["--train-count", 2, "--seed", 7, "--count", 4]
    assert run(tmp_path / "free", *data)[0] == 0
    real = load_dataset(folder / "data", "part")
    assert real.types[0].key == "part/bar"
    made = torch.stack([read_mask(tmp_path / "free" / "part" / "bar" / f"00{i}.png") for i in range(4)])
    pairs = torch.stack(
        [read_mask(folder / "data" / "part" / "ground_truth" / "bar" / f"{i}_mask.png") for i in (0, 1)]
    )
    assert torch.equal(made, vary_masks(pairs, 4, 7, VariationSettings()))
    assert torch.equal(pairs[:1], training_masks(real.types, None)[:1])
    code, output = run(tmp_path / "right", *data, "--foreground", folder / "half.png", "--max-scale", 1)
    assert code == 0, output
    for i in range(4):
        mask = read_mask(tmp_path / "right" / "part" / "bar" / f"00{i}.png")
        assert mask.any() and not mask[:, :, :32].any()


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    for options, token in (
        ((), "model, bundle"),
        (("--source", "vary", "--type", "part/bar"), "data: "),
        (("--source", "procedural"), "type: "),
        (("--source", "stars"), "source: unknown value 'stars'"),
        (("--source", "procedural", "--type", "../bar"), "type: "),
    ):
        code, output = run(tmp_path / "none", *options)
        assert code == 1 and token in output, output


def test_size_zero_is_the_geometry_of_the_real_masks(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "data" / "long"
    for number in range(2):
        pixels = torch.rand(3, 40, 96, generator=torch.Generator().manual_seed(number))
        write_image(root / "train" / "good" / f"{number}.png", pixels)
        write_image(root / "test" / "bar" / f"{number}.png", pixels.flip(2))
        mask = torch.zeros(1, 40, 96)
        mask[:, 5 : 15 + number, 30:60] = 1
        write_mask(root / "ground_truth" / "bar" / f"{number}_mask.png", mask)
    data = ["--data", tmp_path / "data", "--category", "long", "--split", "first n", "--train-count", 2, "--size", 0]
    for source in ("vary", "procedural"):
        code, output = run(tmp_path / source, "--source", source, *data, "--count", 2)
        assert code == 0, output
        masks = [read_mask(tmp_path / source / "long" / "bar" / f"00{i}.png") for i in range(2)]
        assert {tuple(mask.shape) for mask in masks} == {(1, 40, 96)} and all(mask.any() for mask in masks)
    for options, token in ((("--source", "procedural", "--type", "a/b"), "size: is 0"), ((), "size: is 0")):
        code, output = run(tmp_path / "none", *options, "--size", 0)
        assert code == 1 and token in output, output
