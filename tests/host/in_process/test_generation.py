"""Evaluate Generation through its node, with the named stand-ins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

VALUES = {"size": 64, "splits": 2, "trunk": "stand-in"}


@pytest.fixture(scope="module")
def pairs(extension: Any, dataset: Any) -> Path:
    normals = extension.run("PickNormals", dataset=dataset, count=4, size=0).args[0]
    still = {"flips": False, "max_degrees": 0.0, "min_scale": 1.0, "max_scale": 1.0}
    made = extension.run("CropAndPaste", image=normals, dataset=dataset, defect_type="part/dot", **still).args
    exported = extension.run(
        "ExportPairs",
        images=[made[0]],
        masks=[made[1]],
        normals=[normals],
        defect_type=[made[3]],
        folder=["quality/pairs"],
        min_effect=[0.0],
        effects=[made[2]],
    )
    return Path(exported.args[0])


def test_table_names_the_stand_ins_and_copies_are_seen(extension: Any, dataset: Any, pairs: Path) -> None:
    values = {"dataset": dataset, "pairs": str(pairs), "folder": "quality/out", **VALUES}
    table, sheet, metrics, folder = extension.run("EvaluateGeneration", **values).args
    written = json.loads((Path(folder) / "generation.json").read_text())
    assert written == json.loads(metrics) and written["kind"] == "generation" and written["stand_in"]
    assert (written["object"], written["method"]) == ("part", "Crop and Paste")
    assert not (Path(folder) / "results.json").exists()  # stand-ins are never set beside published numbers
    assert written["trunks"]["inception"].startswith("stand-in") and "cannot be compared" in table
    lines = [json.loads(text) for text in (pairs / "manifest.jsonl").read_text().splitlines()]
    effect = sum(line["effect_score"] for line in lines) / len(lines)
    assert written["metrics"]["effect_score"] == pytest.approx(effect)
    # pasted as they were, the training defects are found again; only the noise around their edges differs
    assert written["metrics"]["nearest_distance"] < 3
    assert sheet.shape[3] == 3 and (Path(folder) / "nearest.png").is_file()
    assert (Path(folder) / "generation.csv").read_text().splitlines()[-1].startswith("part,Crop and Paste,mean")
    again = extension.run("EvaluateGeneration", **values)
    assert again.args[3] == folder and "Read again" in again.ui["text"][0]


def test_other_folders_and_missing_networks(
    extension: Any, dataset: Any, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gan = tmp_path / "gan"
    shutil.copytree(pairs / "part" / "test" / "dot", gan / "dot")
    values = {"dataset": dataset, "pairs": str(gan), "folder": "quality/gan", **VALUES}
    written = json.loads(extension.run("EvaluateGeneration", **values).args[2])
    assert written["method"] == "gan" and written["metrics"]["copies_share"] is None
    assert written["metrics"]["effect_score"] is None and written["metrics"]["is"] >= 1
    (gan / "dot").rename(gan / "hole")
    with pytest.raises(extension.errors.InputError, match="gan/hole.*part/bar, part/dot"):
        extension.run("EvaluateGeneration", **values)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(extension.errors.InputError, match="inception_weights: .*Put weights-inception.*there"):
        extension.run("EvaluateGeneration", **{**values, "trunk": "published"})
