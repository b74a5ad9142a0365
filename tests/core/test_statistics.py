"""Spreads, differences and repeated runs: against scipy, and by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from anomalydiffusion_core.errors import DatasetError, InputError
from anomalydiffusion_core.evaluation.localization.comparison import compare_rows
from anomalydiffusion_core.evaluation.localization.rows import methods_of, rows_of
from anomalydiffusion_core.evaluation.localization.runs import Run, RunStore, SharedData
from anomalydiffusion_core.evaluation.localization.sources import NormalSource, held_out_tensors, pair_tensors
from anomalydiffusion_core.evaluation.localization.summary import Comparison, RowResult
from anomalydiffusion_core.evaluation.localization.testing import METRICS, LocalizationResult
from anomalydiffusion_core.evaluation.settings import GENERATED, LocalizerSettings
from anomalydiffusion_core.evaluation.statistics import (
    BETTER,
    OPEN,
    WORSE,
    independent,
    mean_and_spread,
    paired_difference,
    repeated_text,
)
from anomalydiffusion_core.evaluation.tables.build import build_table
from anomalydiffusion_core.evaluation.tables.records import ResultRecord

TINY = LocalizerSettings(size=32, width=1, steps=1, batch_size=2)


def test_an_interval_is_the_one_of_the_paired_t_test() -> None:
    ours, others = [0.71, 0.78, 0.69, 0.74], [0.66, 0.70, 0.67, 0.69]
    found = paired_difference(ours, others)
    expected = stats.ttest_rel(ours, others).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(0.05) and found.count == 4 and found.verdict == BETTER
    assert paired_difference(others, ours).verdict == WORSE
    # Two pairs, t = 12.7: 0.05 +- 12.706 * 0.0141 / sqrt(2) holds zero.
    open_ = paired_difference([0.5, 0.7], [0.46, 0.64])
    assert open_.high - open_.mean == pytest.approx(12.706 * 0.02**0.5 / 10 / 2**0.5, rel=1e-3)
    assert open_.verdict == OPEN and "better" not in open_.text()
    single = paired_difference([0.7], [0.6])
    assert math.isnan(single.low) and single.verdict == OPEN and "no interval" in single.text()
    assert paired_difference([0.7, math.nan], [0.6, 0.6]).text() == "undefined"


def test_detectors_on_one_set_are_not_independent() -> None:
    # Two sets of three detectors: the spread is that of the means 0.5 and 0.8, not of the six values.
    values, sets = [0.4, 0.5, 0.6, 0.7, 0.8, 0.9], list("aaabbb")
    assert independent(values, sets) == pytest.approx([0.5, 0.8])
    assert mean_and_spread(values, sets) == pytest.approx((0.65, 0.3 / 2**0.5))
    assert mean_and_spread(values[:3], "aaa") == pytest.approx((0.5, 0.1))
    assert (
        repeated_text(sets) == "2 generated sets x 3 detectors"
        and repeated_text("ab") == "2 generated sets x 1 detector"
    )


def _run(value: float) -> Run:
    return Run(LocalizationResult(**dict.fromkeys(METRICS, value)), torch.zeros(0, 32, 32))


def test_better_is_written_only_where_the_interval_excludes_zero() -> None:
    few, both = rows_of(("few real", "both"), {"ours": pair_tensors({})})
    table = Comparison(TINY, (0, 1, 2))
    table.rows.append(RowResult(few, (0, 1, 2), [_run(v) for v in (0.50, 0.60, 0.70)]))
    table.rows.append(RowResult(both, (0, 1, 2), [_run(v) for v in (0.56, 0.65, 0.76)]))
    text = table.markdown()
    low, high = stats.ttest_rel([0.56, 0.65, 0.76], [0.50, 0.60, 0.70]).confidence_interval(0.95)
    assert f"| few real + generated pairs - few real pairs | +0.057 [{low:+.3f}, {high:+.3f}] better |" in text
    assert "1 generated set x 3 detector seeds" in text and "over the detectors alone" in text
    table.rows[1].runs = [_run(v) for v in (0.46, 0.75, 0.76)]
    assert "better" not in table.markdown() and "no difference shown" in table.markdown()
    json.dumps(table.as_dict(), allow_nan=False)


def _pairs(seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(2, 1, 32, 32)
    masks[:, :, 8:20, 8:20] = 1
    return {"part/dot": (torch.rand(2, 3, 32, 32, generator=generator), masks)}


def test_each_generated_set_gets_detectors_of_its_own(tmp_path: Path) -> None:
    images, masks = _pairs(9)["part/dot"]
    tests = held_out_tensors(torch.cat([images, images * 0.5]), torch.cat([masks, masks * 0]), ["part/dot"] * 2)
    normals = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    data = SharedData(pair_tensors(_pairs(0)), NormalSource("", 4, lambda _: normals), tests)
    sets = [pair_tensors(_pairs(number)) for number in (1, 2, 3)]
    rows = rows_of(("few real", "both"), {"ours": sets})
    compared = compare_rows(rows, data, TINY, (5, 6), RunStore(tmp_path))
    assert [result.seeds for result in compared.rows] == [(5, 6, 7, 8, 9, 10)] * 2
    assert compared.rows[1].sets == tuple(one.digest[:16] for one in sets for _ in range(2))
    assert "3 generated sets x 2 detectors, mean +- sample standard deviation of the means of the sets" in (
        compared.markdown()
    )
    values = [run.result.pixel_ap for run in compared.rows[1].runs]
    means = [sum(values[place : place + 2]) / 2 for place in (0, 2, 4)]
    assert compared.rows[1].independent("pixel_ap") == pytest.approx(means)
    assert compared.differences()[0]["pairs"] == 3
    # A single set trains what it always trained, under the same keys.
    alone = compare_rows(rows_of(("both",), {"ours": sets[0]}), data, TINY, (5, 6), RunStore(tmp_path))
    assert alone.reused == 2 and alone.rows[0].keys == compared.rows[1].keys[:2]
    with pytest.raises(InputError, match=r"different numbers of generated sets \(ours 3, DRAEM 1\)"):
        rows_of(("both",), {"ours": sets, "DRAEM": sets[0]})
    with pytest.raises(DatasetError, match="pairs folder"):
        methods_of(sets, "DRAEM=/nowhere\nDRAEM=/nothing", lambda text, _: Path(text), "methods")


def _record(values: list[float], seeds: list[int], **more: Any) -> ResultRecord:
    metrics: dict[str, Any] = {"pixel_auroc": values, "pixel_ap": values, "pixel_f1": values}
    given: dict[str, Any] = {"budget": {"steps": 600, "width": 16}, "reduced": True, **more}
    return ResultRecord("bottle", "Ours", GENERATED, metrics, seeds, **given)


def _cell(*records: ResultRecord) -> Any:
    return build_table(list(records), 2).cells["bottle", "Ours", "pixel_ap"].measured


def test_an_evaluation_that_is_repeated_with_the_same_seeds_counts_once() -> None:
    first = _record([0.80, 0.86, 0.90], [0, 1, 2])
    once, twice = _cell(first), _cell(first, replace(first, source="elsewhere"))
    assert (twice.mean, twice.spread, twice.count) == (once.mean, once.spread, 3)
    # Known runs are told apart by their identity, also where a GPU gave other digits.
    noisy = _record([0.8001, 0.86, 0.90], [0, 1, 2], runs=["a", "b", "c"])
    assert _cell(replace(first, runs=["a", "b", "c"]), noisy).count == 3
    more = _record([0.7], [3], runs=["d"])
    assert _cell(replace(first, runs=["a", "b", "c"]), more).count == 4


def test_runs_of_different_budgets_are_never_merged() -> None:
    short = _record([0.2, 0.3], [0, 1], budget={"steps": 10, "width": 16})
    longer = _record([0.80, 0.86, 0.90], [0, 1, 2])
    table = build_table([short, longer], 2)
    cell = table.cells["bottle", "Ours", "pixel_ap"].measured
    assert cell is not None and cell.mean == pytest.approx(100 * (0.80 + 0.86 + 0.90) / 3) and cell.count == 3
    (note,) = [note for note in table.footnotes if note.startswith("Not merged")]
    assert "bottle / Ours" in note and "AP 25.0 +- 7.1 (reduced)" in note and "steps 10" in note


def test_sets_of_one_record_are_named_in_the_table() -> None:
    own = _record([0.4, 0.5, 0.6, 0.7, 0.8, 0.9], list(range(6)), sets=["a"] * 3 + ["b"] * 3)
    cell = _cell(own)
    assert (cell.mean, cell.spread) == pytest.approx((65, 30 / 2**0.5))
    assert any("2 generated sets x 3 detectors" in note for note in build_table([own], 2).footnotes)
    with pytest.raises(InputError, match="sets: 1 for 6 seeds"):
        replace(own, sets=["a"])
