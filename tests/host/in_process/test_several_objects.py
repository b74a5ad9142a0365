"""Several objects through Merge Datasets and the Evaluate nodes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

TINY = {"size": 32, "width": 2, "steps": 2, "batch_size": 2, "runs": 1}


@pytest.fixture
def merged(extension: Any, dataset: Any, data: Path) -> Any:
    other = data.parent / "more" / "other"  # beside the folder that other tests list
    if not other.is_dir():
        shutil.copytree(data / "part", other)
    loaded = extension.load(folder="more", category="other").args[0]
    return extension.run("MergeDatasets", dataset_1=dataset, dataset_2=loaded).args[0]


def test_classification_of_a_merged_data_set_by_tiles(extension: Any, merged: Any) -> None:
    values = {"dataset": merged, "pairs": "", "folder": "objects/classes", "training_set": "few real", **TINY}
    table, image, metrics, folder = extension.run("EvaluateClassification", **values, view="tiles").args
    found = json.loads(metrics)
    assert list(found["objects"]) == ["part", "other"] and "| mean of 2 objects |" in table
    assert found["objects"]["part"]["budget"]["view"] == "tiles" and image.shape[3] == 3
    # two training pairs of each type, six windows each, and as many of normal images
    assert found["objects"]["part"]["training_pictures"] == {"bar": 12, "dot": 12, "no defect": 12}
    records = extension.module("anomalydiffusion_core.evaluation.tables.records").find_records([Path(folder)])
    assert [record.category for record in records] == ["part", "other"]


def test_localization_of_a_merged_data_set(extension: Any, merged: Any) -> None:
    values = {"dataset": merged, "folder": "objects/localization", "training_sets": "few real", **TINY}
    table, _, _, metrics, folder, _ = extension.run("EvaluateLocalization", **values).args
    found = json.loads(metrics)
    assert table.startswith("mean of 2 objects (part, other)") and list(found["objects"]) == ["part", "other"]
    each = [found["objects"][name]["without"]["mean"]["pixel_ap"] for name in ("part", "other")]
    assert found["without"]["mean"]["pixel_ap"] == pytest.approx(sum(each) / 2)
    records = extension.module("anomalydiffusion_core.evaluation.tables.records").find_records([Path(folder)])
    assert sorted(record.category for record in records) == ["other", "part"]
