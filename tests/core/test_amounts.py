"""How many are enough, and repeated runs: which pairs a row sees, what is run again, and the arithmetic of tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from anomalydiffusion_core.data.images import read_image
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.evaluation.localization.amounts import curves_of, listed_counts, with_counts
from anomalydiffusion_core.evaluation.localization.comparison import compare_rows
from anomalydiffusion_core.evaluation.localization.rows import rows_of
from anomalydiffusion_core.evaluation.localization.runs import RunStore, SharedData
from anomalydiffusion_core.evaluation.localization.sources import NormalSource, held_out_tensors, pair_tensors
from anomalydiffusion_core.evaluation.settings import LocalizerSettings
from anomalydiffusion_core.files import write_json
from anomalydiffusion_core.server.amounts import AmountRuns
from anomalydiffusion_core.server.repetitions import SHOWN, repeat, repetition
from anomalydiffusion_core.server.workflow import Workflow, load_workflow

pytestmark = pytest.mark.core

QUICKSTART = Path(__file__).resolve().parents[2] / "workflows" / "api" / "quickstart.json"


def _pairs(*sizes: int, seed: int = 0) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for number, size in enumerate(sizes):
        masks = torch.zeros(size, 1, 32, 32)
        masks[:, :, 8:16, 8:20] = 1
        found[f"part/{'ab'[number]}"] = (torch.rand(size, 3, 32, 32, generator=generator), masks)
    return found


def test_a_row_sees_the_first_so_many_pairs_of_each_type() -> None:
    source = pair_tensors(_pairs(5, 4))
    part = source.first(3)
    assert list(part.keys) == ["part/a"] * 3 + ["part/b"] * 3
    read, whole = part.read(32), source.read(32)
    assert all(torch.equal(read[key][0], whole[key][0][:3]) for key in whole)
    assert part.digest != source.digest and source.first(4).digest != part.digest
    assert pair_tensors(_pairs(3, 3)).first(3).keys == ["part/a"] * 3 + ["part/b"] * 3
    with pytest.raises(InputError, match="pair_counts: 5, but there are 4 pairs of part/b"):
        source.first(5)


def test_rows_and_curves_of_counts(tmp_path: Path) -> None:
    assert listed_counts("30, 0,10, 10") == [0, 10, 30] and listed_counts("") == []
    for text in ("ten", "-1", "1.5"):
        with pytest.raises(InputError, match="pair_counts"):
            listed_counts(text)
    rows = rows_of(("few real", "both"), {"ours": pair_tensors(_pairs(4))})
    chosen = with_counts(rows, [0, 1, 4])
    assert [(row.key, row.count) for row in chosen] == [("without", 0), ("with 1", 1), ("with", 4)]
    assert chosen[2].pairs is not None and chosen[2].pairs.digest == pair_tensors(_pairs(4)).digest, "the same run"
    with pytest.raises(InputError, match="Add 'few real'"):
        with_counts(rows[1:], [0, 1])
    with pytest.raises(InputError, match="Give a number above 0"):
        with_counts(rows, [0])
    images, masks = torch.rand(3, 3, 32, 32), torch.zeros(3, 1, 32, 32)
    masks[:2, :, 8:16, 8:20] = 1
    normals = torch.rand(3, 3, 32, 32)
    data = SharedData(
        pair_tensors(_pairs(2, seed=1)),
        NormalSource("normals", 3, lambda size: normals),
        held_out_tensors(images, masks, ["part/a"] * 2),
    )
    compared = compare_rows(chosen, data, LocalizerSettings(size=32, width=1, steps=1), (0, 1), RunStore(tmp_path))
    (line,) = curves_of(compared).values()
    values = {row.row.count: [run.result.pixel_ap for run in row.runs] for row in compared.rows}
    assert set(line) == {0, 1, 4}
    for count, (mean, deviation) in line.items():
        assert (mean, deviation) == (
            pytest.approx(stats.tmean(values[count])),
            pytest.approx(stats.tstd(values[count])),
        )


def _evaluation(rows: dict[str, float]) -> dict[str, Any]:
    return {"rows": [{"label": label, "metrics": dict.fromkeys(SHOWN, value)} for label, value in rows.items()]}


class Recorded:
    """Leaves evaluations of known figures and counts how often it was asked."""

    def __init__(self, figure: Any) -> None:
        self.figure, self.ran = figure, list[Path]()

    def __call__(self, workflow: Workflow, folder: Path) -> None:
        write_json(folder / "evaluation" / "evaluation.json", _evaluation(self.figure(workflow)))
        write_json(folder / "summary.json", {})
        self.ran.append(folder)


def test_repetitions_move_every_seed_and_are_compared_in_pairs(tmp_path: Path) -> None:
    base = load_workflow(QUICKSTART)
    moved = repetition(base, 2)
    seeds = {name: node["inputs"]["seed"] for name, node in base.items() if "seed" in node["inputs"]}
    assert len(seeds) == 6, "two trainings, masks, normal images, sampler and detectors"
    assert {name: moved[name]["inputs"]["seed"] - seed for name, seed in seeds.items()} == dict.fromkeys(seeds, 2000)
    assert repetition(base, 0) == base
    without, with_pairs = [0.2, 0.3, 0.25], [0.4, 0.45, 0.5]

    def figure(workflow: Workflow) -> dict[str, float]:
        number = workflow["3"]["inputs"]["seed"] // 1000
        return {"few real pairs": without[number], "few real + generated pairs": with_pairs[number]}

    run_one = Recorded(figure)
    text = repeat(tmp_path / "out", base, 3, run_one)
    stored = json.loads((tmp_path / "out" / "repetitions.json").read_text())
    found = stored["differences"]["few real + generated pairs - few real pairs"]["pixel_ap"]
    interval = stats.ttest_rel(with_pairs, without).confidence_interval(0.95)
    assert (found["low"], found["high"]) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found["verdict"] == ("better" if interval.low > 0 else "no difference shown")
    assert found["text"] in text and "3 independent repetitions" in text
    assert repeat(tmp_path / "out", base, 3, run_one) == text and len(run_one.ran) == 3, "nothing is run twice"
    changed = load_workflow(QUICKSTART)
    changed["8"]["inputs"]["steps"] = 5
    with pytest.raises(InputError, match="holds runs with other settings"):
        repeat(tmp_path / "out", changed, 3, run_one)
    with pytest.raises(InputError, match="repetitions: 1"):
        repeat(tmp_path / "other", base, 1, run_one)


def test_the_curve_learns_each_number_of_real_defects_anew(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def figure(workflow: Workflow) -> dict[str, float]:
        data, evaluation = workflow["2"]["inputs"], workflow["10"]["inputs"]
        asked.append(data)
        assert data["test_rate"] == 66 and workflow["5"]["inputs"]["count"] == workflow["6"]["inputs"]["count"] == 30
        assert evaluation["pair_counts"] == "0, 10, 30" and evaluation["training_sets"] == "few real, both"
        real = data["train_count"] if data["split"] == "first n" else 9
        name = "few real + generated pairs, {} of each type"
        noise = workflow["3"]["inputs"]["seed"] / 1e5
        return {"few real pairs": 0.1, name.format(10): 0.02 * real + 0.1, name.format(30): 0.03 * real + 0.1 + noise}

    run_one = Recorded(figure)
    runs = AmountRuns(tmp_path / "out", load_workflow(QUICKSTART), [1, 3, 0], [10, 30], 2, 66)
    text = runs.run(run_one)
    assert len(run_one.ran) == 6
    assert [(one["split"], one["train_count"]) for one in asked[::2]][:2] == [("first n", 1), ("first n", 3)]
    assert asked[4]["split"] == "lowest third"
    assert "| 3 | 0.100 +- 0.000 | 0.160 +- 0.000 | 0.195 +- 0.007 |" in text
    lines = list(csv.reader((tmp_path / "out" / "curve" / "enough.csv").read_text().splitlines()))
    assert lines[0] == ["real of each type", "generated of each type", "repetition", "pixel_ap"]
    assert ["all", "30", "1", "0.380000"] in lines and len(lines) == 1 + 3 * 3 * 2
    assert read_image(tmp_path / "out" / "curve" / "amounts.png").shape[0] == 3
    assert AmountRuns(tmp_path / "out", load_workflow(QUICKSTART), [1, 3, 0], [10, 30], 2, 66).run(run_one) == text
    assert len(run_one.ran) == 6, "resumed: nothing is run twice"
    with pytest.raises(InputError, match="real"):
        AmountRuns(tmp_path, load_workflow(QUICKSTART), [1, 1], [10], 1, 66)
