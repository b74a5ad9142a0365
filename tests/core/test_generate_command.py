"""The command generate: from a bundle and a data set to a folder of pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from anomalydiffusion_core.backends.ldm import LdmDenoiser
from anomalydiffusion_core.backends.ldm_files import EPSILON
from anomalydiffusion_core.bundles.bundle import AnomalyBundle
from anomalydiffusion_core.cli.app import app
from anomalydiffusion_core.conditioning.spatial_encoder import build_spatial_encoder
from anomalydiffusion_core.data.images import read_image, write_image, write_mask
from anomalydiffusion_core.data.mask_files import read_mask
from anomalydiffusion_core.data.pairs import load_exported
from anomalydiffusion_core.demo_prior.storing import store

pytestmark = pytest.mark.core
SMALL = ["--count", "2", "--steps", "2", "--cfg", "1", "--size", "64", "--crop", "off", "--retries", "0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny prior, a bundle of two types, and a category with their real pairs."""
    root = tmp_path_factory.mktemp("generate")
    tiny = LdmDenoiser.random(0, context_dim=32)
    store(root / "prior.safetensors", tiny.autoencoder, tiny.unet, tiny.words, {}, EPSILON)
    rows = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(1))
    bundle = AnomalyBundle(
        "anomaly",
        {"part/bar": rows[0], "part/dot": rows[1]},
        build_spatial_encoder("light", 2, 32, seed=5),
        {"resolution": 64},
    )
    bundle.save(root / "bundle.safetensors")
    for number in range(3):
        pixels = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(number))
        write_image(root / "data" / "part" / "train" / "good" / f"{number}.png", pixels)
        for defect, top in (("bar", 6), ("dot", 30)):
            mask = torch.zeros(1, 64, 64)
            mask[:, top : top + 16, 10 + number : 34] = 1
            write_image(root / "data" / "part" / "test" / defect / f"{number}.png", pixels)
            write_mask(root / "data" / "part" / "ground_truth" / defect / f"{number}_mask.png", mask)
    return root


def _run(folder: Path, out: Path, *more: str) -> tuple[int, str]:
    arguments = ["generate", "--model", folder / "prior.safetensors", "--bundle", folder / "bundle.safetensors"]
    arguments += ["--data", folder / "data", "--category", "part", "--out", out, *SMALL, *more]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.output


def test_pairs_of_all_types_with_control_and_report(folder: Path, tmp_path: Path) -> None:
    code, output = _run(folder, tmp_path / "a", "--control", "good", "--control-samples", "1")
    assert code == 0, output
    pairs = load_exported(tmp_path / "a")
    assert [pair.key for pair in pairs] == ["part/bar"] * 2 + ["part/dot"] * 2
    assert [pair.record["settings"]["control_score"] is None for pair in pairs] == [False, True] * 2
    assert {pair.record["settings"]["sampler_name"] for pair in pairs} == {"euler"}
    assert all(pair.record["outside_max_abs_diff"] == 0 for pair in pairs)
    report = (tmp_path / "a" / "report.txt").read_text()
    assert "part/dot: control, 1 samples" in report and "part/bar: 2 masks from 1 real ones" in report
    manifest = (tmp_path / "a" / "manifest.jsonl").read_text()
    code, output = _run(folder, tmp_path / "a", "--control", "good", "--control-samples", "1", "--batch-size", "1")
    assert code == 0 and report in output
    assert (tmp_path / "a" / "manifest.jsonl").read_text() == manifest
    code, output = _run(folder, tmp_path / "a", "--control", "good", "--control-samples", "1", "--feather", "3")
    assert code == 1 and "error: out:" in output and "finish" in output


def test_masks_from_a_folder_and_one_type(folder: Path, tmp_path: Path) -> None:
    mask = torch.zeros(1, 32, 32)
    mask[:, 3:9, 20:30] = 1
    write_mask(tmp_path / "masks" / "dot" / "1.png", mask)
    given = ["--masks", str(tmp_path / "masks"), "--types", "part/dot", "--feather", "0"]
    code, output = _run(folder, tmp_path / "b", *given)
    assert code == 0, output
    pairs = load_exported(tmp_path / "b")
    assert [pair.key for pair in pairs] == ["part/dot"] * 2
    assert all(int(read_mask(pair.mask).sum()) == 6 * 10 * 4 for pair in pairs)


def test_a_plan_says_types_masks_and_normal_images(folder: Path, tmp_path: Path) -> None:
    """Three pairs of one type and one of the other, on the normal images that the plan names."""
    pairs = []
    for number, (key, normal) in enumerate((("dot", 2), ("dot", 2), ("bar", 0), ("dot", 1))):
        mask = torch.zeros(1, 64, 64)
        mask[:, 8 + 8 * number : 16 + 8 * number, 20:40] = 1
        write_mask(tmp_path / "plan" / "masks" / f"{number}.png", mask)
        entry = {"type": f"part/{key}", "normal": f"train/good/{normal}.png", "mask": f"masks/{number}.png"}
        pairs.append(entry)
    content = {"format": "anomalydiffusion pair plan", "version": 1, "pairs": pairs}
    (tmp_path / "plan" / "plan.json").write_text(json.dumps(content))
    given = ["--plan", str(tmp_path / "plan")]
    code, output = _run(folder, tmp_path / "e", *given, "--feather", "0")
    assert code == 0, output
    made = load_exported(tmp_path / "e")
    assert [pair.key for pair in made] == ["part/dot"] * 3 + ["part/bar"]
    for pair, number, normal in zip(made, (0, 1, 3, 2), (2, 2, 1, 0), strict=True):
        rows = read_mask(pair.mask)[0].any(dim=1).nonzero().flatten()
        assert (int(rows.min()), int(rows.max())) == (8 + 8 * number, 15 + 8 * number)
        assert pair.normal is not None
        real = folder / "data" / "part" / "train" / "good" / f"{normal}.png"
        assert torch.equal(read_image(pair.normal), read_image(real))
    code, output = _run(folder, tmp_path / "f", *given, "--masks", str(tmp_path / "plan"))
    assert code == 1 and "error: plan: has masks of its own" in output


def test_masks_of_a_mask_bundle(folder: Path, tmp_path: Path) -> None:
    rows = torch.randn(2, 32, generator=torch.Generator().manual_seed(2))
    AnomalyBundle("mask", {"part/dot": rows}, None, {}).save(tmp_path / "mask.safetensors")
    given = ["--mask-bundle", str(tmp_path / "mask.safetensors"), "--types", "part/dot", "--mask-steps", "2"]
    loose = ["--threshold", "0.1", "--no-border-rule", "--largest-area", "1", "--smallest-area", "0"]
    code, output = _run(folder, tmp_path / "c", *given, *loose)
    assert code == 0, output
    assert "part/dot: 2 of 2 sampled masks kept" in output and len(load_exported(tmp_path / "c")) == 2
    code, output = _run(folder, tmp_path / "d", *given, "--largest-area", "0.001", "--tries", "1")
    assert code == 1 and "error: mask:" in output


def test_only_pairs_with_enough_effect_are_written(folder: Path, tmp_path: Path) -> None:
    assert _run(folder, tmp_path / "all", "--mask-source", "procedural")[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "all" / "manifest.jsonl").read_text().splitlines()]
    limit = sorted(line["effect_score"] for line in lines)[2]
    code, output = _run(folder, tmp_path / "some", "--mask-source", "procedural", "--export-min-effect", str(limit))
    assert code == 0, output
    assert len(load_exported(tmp_path / "some")) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--mask-source", "moon"], "error: mask_source: unknown value 'moon'"),
        (["--types", "part/rust"], "part/rust"),
        (["--sampler-name", "moon"], "error: sampler_name: unknown value 'moon'"),
        (["--masks", "nowhere"], "error: masks: nowhere holds no masks"),
        (["--cfg", "2", "--negative", "moon"], "error: caption: 'moon'"),
    ],
)
def test_mistakes_are_one_line(folder: Path, tmp_path: Path, more: list[str], message: str) -> None:
    code, output = _run(folder, tmp_path / "out", *more)
    assert code == 1 and message in output and "Traceback" not in output
    assert not (tmp_path / "out" / "manifest.jsonl").exists()
