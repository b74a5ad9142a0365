"""The ablation command on a real server, with tiny budgets: two rows of Table 9, tables, and going on."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from anomalydiffusion_core.evaluation.tables.records import find_records
from anomalydiffusion_core.server import ablations
from anomalydiffusion_core.server.ablations import AblationRuns
from anomalydiffusion_core.server.workflow import EVALUATION_NODE, MASK_SAMPLER, NORMALS, TRAINING
from anomalydiffusion_core.synthetic import render_fewshot_set

TINY = """
3.steps=3 3.augmented_copies=1 3.resolution=64 3.batch_size=2
4.steps=3 4.augmented_copies=1 4.resolution=64 4.batch_size=2
5.count=2 5.size=64 5.steps=2 5.threshold=0.1
5.largest_area=1 5.smallest_area=0 5.speck_area=0 5.border_rule=false 5.most_components=0
6.count=2 6.size=64 8.steps=2 8.min_effect=0 9.min_effect=0
10.size=64 10.steps=2 10.width=4 10.runs=2 10.batch_size=2
""".split()


def test_two_rows_of_table_9(host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"size": 128, "train_pairs": 6, "test_pairs": 4, "normals": 8, "test_normals": 2}
    monkeypatch.setattr(ablations, "render_fewshot_set", partial(render_fewshot_set, **few))
    # The protocol's own budgets, which count more than TINY, take minutes.
    budgets = {
        TRAINING: {"steps": 3},
        MASK_SAMPLER: {"count": 2},
        NORMALS: {"count": 2},
        EVALUATION_NODE: {"steps": 2},
    }
    inputs = {node: {**values, **budgets.get(node, {})} for node, values in ablations.REDUCED.inputs.items()}
    monkeypatch.setitem(ablations.PROTOCOLS, "reduced", replace(ablations.REDUCED, inputs=inputs))
    out, said = tmp_path / "ablation", list[str]()
    runs = AblationRuns(out, "reduced", [9], None, None, "", 1, TINY)
    text = runs.run(host.address, said.append)
    assert said == [
        "1 of 2: table_9_ti_p2p, seed 0, reduced protocol",
        "2 of 2: table_9_full, seed 0, reduced protocol",
    ]
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 4 and all("(reduced)" in row for row in rows[2:])
    records = find_records([out])
    assert [(record.table, record.row) for record in records] == [(9, "full"), (9, "ti_p2p")]
    assert {record.training_set for record in records} == {"generated"}
    assert {record.data for record in records} == {"rendered"}
    for record in records:
        evaluation = json.loads((Path(record.source).parent / "evaluation.json").read_text(encoding="utf-8"))
        assert record.metrics["pixel_ap"] == pytest.approx([run["pixel_ap"] for run in evaluation["rows"][0]["runs"]])
    settings = [
        json.loads((out / name / "seed_0" / "pairs" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()[0])
        for name in ("table_9_full", "table_9_ti_p2p")
    ]
    assert [line["settings"]["reweighting"] for line in settings] == ["monotone", "prompt-to-prompt"]
    files = ["table_09.png", "tables.csv", "tables.md", "tables.tex"]
    assert sorted(path.name for path in (out / "tables").iterdir()) == files

    again = list[str]()
    assert AblationRuns(out, "reduced", [9], None, None, "", 1, TINY).run(host.address, again.append) == text
    assert again == []
