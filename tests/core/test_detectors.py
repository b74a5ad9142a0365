"""Detectors of other libraries: score maps from files, measured as ours, in the same table."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from anomalydiffusion_core.cli.app import app
from anomalydiffusion_core.data.images import write_image, write_mask
from anomalydiffusion_core.data.mvtec import load_dataset
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.evaluation.localization.anomalib_detector import detector_rows
from anomalydiffusion_core.evaluation.localization.detectors import DetectorJob, score_map_files
from anomalydiffusion_core.evaluation.localization.rows import Row, rows_of
from anomalydiffusion_core.evaluation.localization.runs import RunStore
from anomalydiffusion_core.evaluation.localization.sources import held_out_tensors
from anomalydiffusion_core.evaluation.localization.table import evaluate_localization
from anomalydiffusion_core.evaluation.settings import DetectorSettings, LocalizerSettings
from anomalydiffusion_core.evaluation.tables.build import build_table

pytestmark = pytest.mark.core
SIZE = 32


class FarFromTheMean:
    """A real detector of one line: how far a pixel is from the mean of the normal images."""

    identity: Mapping[str, Any] = {"detector": "mean"}
    budget: Mapping[str, Any] = {"detector": "mean"}
    reduced = False

    def detect(self, job: DetectorJob, on_wait: Callable[[], None]) -> None:
        mean = np.load(job.folder / "normals.npy").mean(axis=0)
        for place, image in enumerate(np.load(job.folder / "tests.npy")):
            on_wait()
            np.save(job.maps / f"{place:05d}.npy", np.abs(image - mean).mean(axis=0))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A category with three normals of grey, and three images with one bright square each."""
    base = tmp_path / "data" / "bottle"
    for number in range(3):
        write_image(base / "train" / "good" / f"{number}.png", torch.full((3, SIZE, SIZE), 0.5))
        image, mask = torch.full((3, SIZE, SIZE), 0.5), torch.zeros(1, SIZE, SIZE)
        image[:, 4 : 12 + number, 6:14], mask[:, 4 : 12 + number, 6:14] = 0.9, 1
        write_image(base / "test" / "dent" / f"{number}.png", image)
        write_mask(base / "ground_truth" / "dent" / f"{number}_mask.png", mask)
    write_image(base / "test" / "good" / "0.png", torch.full((3, SIZE, SIZE), 0.5))
    return tmp_path


def test_maps_are_measured_by_hand(tmp_path: Path) -> None:
    """Four pixels an image, scores and labels known: AP by hand, maps of a quarter of the size brought up."""
    masks = torch.zeros(2, 1, 2, 2)
    masks[0, 0, 0, 0] = 1
    tests = held_out_tensors(torch.zeros(2, 3, 2, 2), masks, ["a/b"])
    np.save(tmp_path / "00000.npy", np.array([[0.8, 0.1], [0.1, 0.1]]))
    np.save(tmp_path / "00001.npy", np.array([[0.9, 0.2], [0.2, 0.2]]))
    result = score_map_files(tmp_path, tests, 2).measure()
    assert result.pixel_ap == pytest.approx(1 / 2)  # one normal pixel of the eight ranks before the only defect pixel
    assert result.pixel_auroc == pytest.approx(6 / 7)
    assert result.image_auroc == 0  # the means of the maps: .275 of the defect, .375 of the normal image
    np.save(tmp_path / "00001.npy", np.array([[0.05]]))
    scored = score_map_files(tmp_path, tests, 2)
    assert np.allclose(scored.maps[1], 0.05) and scored.measure().pixel_ap == 1


@pytest.mark.parametrize("wrong", [np.zeros((1, 2, 2)), np.full((2, 2), np.nan), np.zeros((0, 2))])
def test_maps_that_cannot_be_are_named(tmp_path: Path, wrong: Any) -> None:
    tests = held_out_tensors(torch.zeros(1, 3, 2, 2), torch.ones(1, 1, 2, 2), ["a/b"])
    with pytest.raises(InputError, match="maps: .*00000"):
        score_map_files(tmp_path, tests, 2)
    np.save(tmp_path / "00000.npy", wrong)
    with pytest.raises(InputError, match="maps: 00000"):
        score_map_files(tmp_path, tests, 2)


def test_a_detector_stands_beside_our_rows_and_in_table_5(root: Path) -> None:
    dataset = load_dataset(root / "data", "bottle")
    rows = [*rows_of(["few real"], {}), Row("mean", "Mean (normal images)", "PatchCore", detector=FarFromTheMean())]
    settings = LocalizerSettings(size=SIZE, width=2, steps=2, batch_size=2)
    store = RunStore(root / "runs")
    report = evaluate_localization(dataset, rows, settings, [0], None, store)
    found = (
        report.figures["sets"]["mean"]["mean"] if "sets" in report.figures else report.figures["rows"][1]["metrics"]
    )
    assert found["pixel_ap"] == found["pixel_auroc"] == found["image_auroc"] == 1
    assert "| Mean (normal images) | 1.000 |" in report.table
    assert [(one.method, one.training_set) for one in report.records] == [
        ("", "few real"),
        ("PatchCore", "normal images"),
    ]
    cell = build_table(report.records, 5).cells["bottle", "PatchCore", "pixel_ap"]
    assert (cell.published, cell.measured and cell.measured.mean) == (75.0, 100.0)
    generators = build_table(report.records, 3)
    assert "PatchCore" not in generators.columns, "no column of generators"
    assert not list((root / "runs").glob("detector_*")), "the files of the detector are removed"
    again = evaluate_localization(dataset, rows, settings, [0], None, store)
    assert again.figures["reused_runs"] == 2


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    python = tmp_path / "env" / "bin" / "python"
    with pytest.raises(InputError, match="environment: .*env holds no Python"):
        detector_rows(["patchcore"], DetectorSettings(environment=str(tmp_path / "env")))
    python.parent.mkdir(parents=True)
    python.touch()
    settings = DetectorSettings(environment=str(tmp_path / "env"), backbone_weights=str(tmp_path))
    with pytest.raises(InputError, match="backbone_weights: .*wide_resnet50_2-95faca4d.pth does not exist"):
        detector_rows(["patchcore"], settings)
    with pytest.raises(InputError, match="textures: ''"):
        detector_rows(["draem"], settings)
    with pytest.raises(InputError, match="models: unknown model 'moon'"):
        detector_rows(["moon"], settings)


def _environment() -> str:
    """The environment with anomalib that ANOMALYDIFFUSION_DETECTORS names."""
    given = os.environ.get("ANOMALYDIFFUSION_DETECTORS", "")
    python = Path(given) / "bin" / "python"
    if not given or subprocess.run([python, "-c", "import anomalib"], capture_output=True).returncode:
        pytest.skip("no environment with anomalib (ANOMALYDIFFUSION_DETECTORS names its folder)")
    return given


@pytest.mark.slow
def test_anomalib_runs_with_a_random_backbone(root: Path) -> None:
    given = ["--data", root / "data", "--category", "bottle", "--environment", _environment(), "--no-pretrained"]
    small = ["--models", "patchcore,padim", "--backbone", "resnet18", "--layers", "layer1", "--size", 64, "--runs", 1]
    done = CliRunner().invoke(app, ["detect", *map(str, [*given, *small, "--out", root / "out", "--device", "cpu"])])
    assert done.exit_code == 0, done.output
    records = json.loads((root / "out" / "results.json").read_text())["records"]
    assert [one["method"] for one in records] == ["PatchCore", "PaDiM"]
    # a square far brighter than all normal images is found by random features too
    assert all(one["metrics"]["pixel_auroc"][0] > 0.9 and one["reduced"] for one in records)
