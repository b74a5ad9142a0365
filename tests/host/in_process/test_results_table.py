"""Results Table on results of an evaluation that really ran, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def measured(extension: Any) -> Path:
    tables = extension.module("anomalydiffusion_core.evaluation.tables.records")
    folder: Path = extension.folders.output_root() / "measured"
    values = {"pixel_auroc": [0.97], "pixel_ap": [0.8], "pixel_f1": [0.7], "pixel_pro": [None]}
    for name, method in (("one", "Ours"), ("two", "DRAEM")):
        record = tables.ResultRecord("bottle", method, "generated", values, [0], {"steps": 5}, "mvtec", True)
        tables.write_records(folder / name / "results.json", [record])
    return folder


def test_tables_of_all_results_below_a_folder(extension: Any, measured: Path) -> None:
    result = extension.run("ResultsTable", results="measured", tables="10, 7", folder="made/tables")
    text, images, folder = result.args
    assert "| bottle |" in text and "80.2 / 80.0 (reduced)" in text and "91.2 / undefined" in text
    assert images.shape[0] == 2 and images.shape[-1] == 3
    names = ["table_07.png", "table_10.png", "tables.csv", "tables.md", "tables.tex"]
    assert sorted(path.name for path in Path(folder).iterdir()) == names
    assert [image["filename"] for image in result.ui["images"]] == names[:2]
    assert result.ui["text"][0].startswith("2 results in 2 tables")
    one = extension.run("ResultsTable", results=str(measured / "one"), tables="2", folder="made/tables").args[0]
    assert "80.2 / not measured" in one and "94.1 / 80.0 (reduced)" in one


def test_it_runs_again_when_a_result_came(extension: Any, measured: Path) -> None:
    node = extension.nodes["AnomalyDiffusionResultsTable"]
    before = node.fingerprint_inputs(results="measured")
    assert node.fingerprint_inputs(results="measured") == before
    (measured / "three").mkdir()
    (measured / "three" / "results.json").write_bytes((measured / "one" / "results.json").read_bytes())
    assert node.fingerprint_inputs(results="measured") != before
    assert node.fingerprint_inputs(results=None) == node.fingerprint_inputs(results="missing") == ""


def test_bad_requests_are_named(extension: Any, measured: Path) -> None:
    for change, message in (
        ({"tables": "2, x"}, "'2, x' is not a list of table numbers"),
        ({"tables": "13"}, "'13' is not a list of table numbers"),
        ({"results": "nowhere"}, "results: .*nowhere does not exist"),
        ({"folder": "../out"}, "is not inside"),
    ):
        with pytest.raises(extension.errors.InputError, match=message):
            extension.run("ResultsTable", **{"results": "measured", **change})
