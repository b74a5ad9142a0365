"""Evaluate Classification through its node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

VALUES = {"size": 32, "width": 4, "steps": 2, "batch_size": 2, "runs": 2, "architecture": "ResNet-18"}


def test_result_is_written_once_and_read_again(extension: Any, dataset: Any) -> None:
    folders = []
    for kind in ("part/dot", "part/bar"):
        images = extension.run("PickNormals", dataset=dataset, count=2, size=0).args[0]
        made = extension.run("CropAndPaste", image=images, dataset=dataset, defect_type=kind).args
        exported = extension.run(
            "ExportPairs",
            images=[made[0]],
            masks=[made[1]],
            normals=[images],
            defect_type=[made[3]],
            folder=["classes/pairs"],
            min_effect=[0.0],
            effects=[made[2]],
        )
        folders.append(exported.args[0])
    values = {"dataset": dataset, "pairs": "\n".join(folders), "folder": "classes/out", **VALUES}
    table, image, metrics, folder = extension.run("EvaluateClassification", **values).args
    written = json.loads((Path(folder) / "classification.json").read_text())
    assert written == json.loads(metrics)
    assert (written["kind"], written["object"], written["method"]) == ("classification", "part", "Crop and Paste")
    assert written["seeds"] == [0, 1] and 0 <= written["metrics"]["accuracy"] <= 1
    assert written["training_pictures"] == {"dot": 2, "bar": 2} and written["test_pictures"] == {"bar": 2, "dot": 2}
    assert sum(map(sum, written["confusion"])) == 2 * 4
    assert "| part | Crop and Paste | generated |" in table and image.shape[3] == 3
    (record,) = extension.module("anomalydiffusion_core.evaluation.tables.records").find_records([Path(folder)])
    assert (record.category, record.column, record.reduced) == ("part", "Crop&Paste", True)
    assert record.metrics["accuracy"] == [run["accuracy"] for run in written["runs"]]
    lines = (Path(folder) / "classification.csv").read_text().splitlines()
    assert lines[0] == "object,method,seed,accuracy" and len(lines) == 3
    again = extension.run("EvaluateClassification", **values)
    assert again.args[3] == folder and "Read again from classes/out_00001" in again.ui["text"][0]
    assert torch.equal(again.args[1], image)
    other = extension.run("EvaluateClassification", **{**values, "seed": 1})
    assert other.args[3] != folder
    both = json.loads(extension.run("EvaluateClassification", **{**values, "training_set": "both", "runs": 1}).args[2])
    assert both["training_pictures"] == {"bar": 4, "dot": 4} and both["spread"]["accuracy"] is None
    real = extension.run("EvaluateClassification", **{**values, "training_set": "few real", "pairs": "", "runs": 1})
    assert json.loads(real.args[2])["method"] == "few real"


def test_images_without_masks_serve_and_missing_types_do_not(extension: Any, dataset: Any) -> None:
    root = extension.folders.output_root() / "gan"
    for kind in ("dot", "bar"):
        (root / kind).mkdir(parents=True)
        Image.new("RGB", (20, 20), (200, 0, 0)).save(root / kind / "0.jpg")
    values = {"dataset": dataset, "folder": "classes/gan", "pairs": "gan", **VALUES, "runs": 1}
    metrics = json.loads(extension.run("EvaluateClassification", **values).args[2])
    assert metrics["method"] == "gan" and metrics["training_pictures"] == {"bar": 1, "dot": 1}
    (root / "dot" / "0.jpg").unlink()
    error = extension.errors.AnomalyDiffusionError
    with pytest.raises(error, match="no images of dot; the types are bar"):
        extension.run("EvaluateClassification", **values)
    with pytest.raises(error, match="weights: /none.pth does not exist"):
        extension.run("EvaluateClassification", **{**values, "training_set": "few real", "weights": "/none.pth"})
    everything = extension.load(train_count=4).args[0]
    with pytest.raises(error, match="test set of part has no defect image"):
        extension.run("EvaluateClassification", **{**values, "dataset": everything})


def test_interrupt_ends_the_training_and_leaves_nothing(extension: Any, dataset: Any) -> None:
    import comfy.model_management as management

    management.interrupt_current_processing()
    values = {"dataset": dataset, "folder": "classes/stopped", "training_set": "few real", **VALUES}
    with pytest.raises(management.InterruptProcessingException):
        extension.run("EvaluateClassification", **values)
    assert not list((extension.folders.output_root() / "classes").glob("*stopped*"))
