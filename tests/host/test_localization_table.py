"""The shipped table workflow, whole, on the real server; only its sizes are made tiny."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anomalydiffusion_core.evaluation.tables.records import find_records
from anomalydiffusion_core.server.runs import run_workflow
from anomalydiffusion_core.server.workflow import load_workflow, parse_assignment, with_dataset, with_inputs
from anomalydiffusion_core.synthetic import render_fewshot_set

WORKFLOW = Path(__file__).resolve().parents[2] / "workflows" / "api" / "localization_table.json"
TINY = """
3.steps=2 3.augmented_copies=1 3.resolution=64 3.batch_size=2
6.count=2 6.size=64 8.steps=2 8.control_samples=1 8.min_effect=0 8.retries=0 9.min_effect=0
12.count=2 12.size=64 14.share_inside=0.1 18.steps=2 18.pictures=2 18.resolution=64 18.control_samples=1
10.size=32 10.steps=2 10.width=2 10.runs=2 10.batch_size=2
""".split()


def test_every_method_has_its_row_and_its_pairs(host: Any, tmp_path: Path) -> None:
    name = "table_workflow"
    render_fewshot_set(host.input / name, size=128, train_pairs=3, test_pairs=6, normals=6, test_normals=2)
    workflow: dict[str, Any] = with_inputs(load_workflow(WORKFLOW), [parse_assignment(text) for text in TINY])
    workflow = with_dataset(workflow, {"folder": name, "category": "leather"})
    out = tmp_path / "table"
    done = run_workflow(workflow, out, host.address)

    evaluation = json.loads((out / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in evaluation["rows"]] == [
        "few real", "ours", "few real + ours", "Crop&Paste", "DRAEM"
    ]  # fmt: skip
    assert all(len(row["runs"]) == 2 for row in evaluation["rows"])
    measured = {(record.method, record.training_set) for record in find_records([out])}
    assert {("Crop&Paste", "generated"), ("DRAEM", "generated"), ("Ours", "generated")} <= measured

    assert sorted(path.name for path in (out / "tables").iterdir()) == [
        "table_10.png", "table_11.png", "tables.csv", "tables.md", "tables.tex"
    ]  # fmt: skip
    published = (out / "tables" / "tables.md").read_text(encoding="utf-8")
    lines = [line for line in published.splitlines() if line.startswith("| leather (rendered)")]
    # Both tables: the three methods alone, the few real pairs, and both.
    assert [line.split(" | ")[1] for line in lines] == [
        "Crop&Paste",
        "DRAEM",
        "Ours",
        "few real",
        "few real + Ours",
    ] * 2

    # Two types of two pairs each, of every method.
    other = sorted((out / "other_pairs").iterdir())
    assert [path.name.rsplit("_", 1)[0] for path in other] == ["crop_and_paste", "draem"]
    methods: dict[str, set[str]] = {}
    for folder in (out / "pairs", *other):
        manifest = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in manifest]
        assert len(records) == 4 and all(record["outside_max_abs_diff"] == 0 for record in records)
        methods[folder.name.rsplit("_", 1)[0]] = {record["settings"].get("method", "ours") for record in records}
    assert methods == {"pairs": {"ours"}, "crop_and_paste": {"Crop and Paste"}, "draem": {"DRAEM"}}
    assert done.figures["pairs_exported"] == 4
