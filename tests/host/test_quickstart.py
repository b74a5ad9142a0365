"""The shipped workflow, whole, on the real server; only its sizes are made tiny."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from tiny_quickstart import QUICKSTART, TINY
from typer.testing import CliRunner

from anomalydiffusion_core.cli.app import app
from anomalydiffusion_core.server.client import RunResult, WorkflowError
from anomalydiffusion_core.server.workflow import with_inputs

TYPES = ("scratch", "stain")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_pairs_are_exported_and_untouched_outside_their_masks(host: Any, finished: RunResult) -> None:
    folder = host.output / finished.outputs["9"]["pairs_folder"][0]
    records = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted((record["object"], record["defect"]) for record in records) == [
        ("leather", "scratch"), ("leather", "scratch"), ("leather", "stain"), ("leather", "stain")
    ]  # fmt: skip
    for record in records:
        image, mask, normal = (pixels(folder / record[key]) for key in ("image", "mask", "normal"))
        assert image.shape == normal.shape == (64, 64, 3)
        assert mask.shape == (64, 64)
        assert set(np.unique(mask)) <= {0, 255}
        assert mask.any()
        difference = np.abs(image - normal).max(axis=2)
        assert difference[mask == 0].max(initial=0) == 0 == record["outside_max_abs_diff"]
        assert difference[mask > 0].max() > 0
        assert record["settings"]["steps"] == 2
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert len(files) == 3 * len(records)
    assert f"leather/ground_truth/{TYPES[0]}/001_mask.png" in files
    beside = finished.outputs["9"]["pairs_beside"]
    assert sorted(beside) == sorted(
        path.relative_to(folder).as_posix() for path in (*folder.glob("learned_from/*.json"), folder / "recipe.json")
    )
    assert len(beside) > 1


def test_training_leaves_one_bundle_of_each_kind(host: Any, finished: RunResult) -> None:
    kinds = {}
    for node in ("3", "4"):
        path = host.models / "anomalydiffusion" / finished.outputs[node]["bundle_file"][0]
        with safe_open(str(path), framework="pt") as stored:
            metadata = json.loads(stored.metadata()["anomalydiffusion"])
            assert len(metadata["losses"]) == 3
            kinds[metadata["kind"]] = sorted(key for key in stored.keys() if key.startswith(metadata["kind"] + "/"))
    assert kinds == {
        "anomaly": ["anomaly/leather/scratch", "anomaly/leather/stain"],
        "mask": ["mask/leather/scratch", "mask/leather/stain"],
    }


def test_detector_is_measured_without_and_with_the_pairs(host: Any, finished: RunResult) -> None:
    folder = host.output / finished.outputs["10"]["evaluation_folder"][0]
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    for arm in ("without", "with"):
        runs = evaluation[arm]["runs"]
        assert [run["seed"] for run in runs] == [0, 1]
        for metric in ("pixel_auroc", "pixel_ap", "pixel_f1", "pixel_pro", "image_auroc"):
            values = [run[metric] for run in runs]
            assert all(0 <= value <= 1 for value in values), metric
            assert evaluation[arm]["mean"][metric] == pytest.approx(sum(values) / 2)
    assert (evaluation["test_defects"], evaluation["test_normals"]) == (4, 2)
    assert evaluation["generated_pairs"] == 4
    table = (folder / "table.md").read_text(encoding="utf-8")
    assert f"{evaluation['with']['mean']['pixel_ap']:.3f}" in table
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert sheet.width > 6 * 160  # six columns: real defect, enlarged, normal, mask, generated, enlarged


def test_another_seed_only_runs_what_depends_on_it(
    host: Any, finished: RunResult, tiny: dict[str, dict[str, Any]]
) -> None:
    # ComfyUI keeps the results of the last prompt only, and other tests may have queued theirs after `finished`.
    before = host.run(tiny)
    again = host.run(with_inputs(tiny, [("8", "seed", 77)]))
    assert {"1", "2", "3", "4", "5", "6", "7"} <= set(again.cached)
    first, second = before.outputs["9"]["pairs_folder"][0], again.outputs["9"]["pairs_folder"][0]
    assert first != second
    name = f"leather/test/{TYPES[0]}/000.png"
    assert (pixels(host.output / first / name) != pixels(host.output / second / name)).any()


def test_missing_data_is_named_and_nothing_is_written(
    host: Any, finished: RunResult, tiny: dict[str, dict[str, Any]]
) -> None:
    before = sorted(host.output.rglob("*"))
    with pytest.raises(WorkflowError, match="nowhere") as caught:
        host.run(with_inputs(tiny, [("2", "folder", "nowhere")]))
    assert (caught.value.node_id, caught.value.node_class) == ("2", "AnomalyDiffusionLoadDataset")
    assert sorted(host.output.rglob("*")) == before


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "anomalydiffusion_core.cli", *arguments]
    environment = {**os.environ, "COLUMNS": "200", "PYTHONUTF8": "1"}
    # Not from the repository: its `nodes` must not come onto the path.
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(sys.prefix), timeout=900)


def test_command_runs_the_workflow_on_real_bottles(host: Any, shared_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "bottle"
    sets = [part for text in TINY for part in ("--set", text)]
    arguments = ["run", str(QUICKSTART), "--data", str(shared_data), "--category", "bottle", "--out", str(out)]
    done = run_command(*arguments, "--address", host.address, *sets, "--set", "2.defects=broken_small")
    assert done.returncode == 0, done.stderr
    figures = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert list(figures) == [
        "pairs_exported", "outside_max_abs_diff", "effect_score_median", "fill_share_median",
        "pixel_ap_without_pairs", "pixel_ap_with_pairs", "seconds", "peak_memory_gb",
    ]  # fmt: skip
    assert (figures["pairs_exported"], figures["outside_max_abs_diff"]) == (2, 0)
    scores = [json.loads(line)["effect_score"] for line in (out / "pairs" / "manifest.jsonl").open(encoding="utf-8")]
    assert figures["effect_score_median"] == pytest.approx(sum(scores) / 2, abs=1e-4)
    evaluation = json.loads((out / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    # 22 images of broken_small; the lowest third of them, 7, trains.
    assert evaluation["test_defects"] == 15
    assert figures["pixel_ap_with_pairs"] == pytest.approx(evaluation["with"]["mean"]["pixel_ap"], abs=1e-4)
    assert (out / "contact_sheet.png").is_file()
    assert "pixel AP" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bottle"]

    again = run_command(*arguments, "--address", host.address)
    assert again.returncode == 1
    assert "is not empty" in again.stderr


def test_command_says_what_is_wrong_with_its_arguments(tmp_path: Path) -> None:
    def refused(*more: str) -> str:
        given = ["run", str(QUICKSTART), "--data", str(tmp_path), "--out", str(tmp_path / "out"), *more]
        done = CliRunner().invoke(app, given, env={"COLUMNS": "200"})
        assert done.exit_code == 1
        return done.stderr

    (tmp_path / "cable").mkdir()
    said = refused("--category", "bottle")
    assert "no folder 'bottle'" in said and "cable" in said
    assert "no input 'step'" in refused("--category", "cable", "--set", "3.step=1")
    assert not (tmp_path / "out").exists()
