from __future__ import annotations

import json
from pathlib import Path

import pytest

from anomalydiffusion_core.demo import check_new
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.export import ExportedPair
from anomalydiffusion_core.results import Results, summary, write_summary


def pair(**record: object) -> ExportedPair:
    return ExportedPair("leather", "scratch", Path("a.png"), Path("a_mask.png"), None, record)


def test_summary_takes_worst_outside_medians_and_means_over_seeds(tmp_path: Path) -> None:
    pairs = [
        pair(outside_max_abs_diff=0, effect_score=10.0, fill_share=0.5),
        pair(outside_max_abs_diff=3, effect_score=40.0, fill_share=1.0),
        pair(outside_max_abs_diff=1, effect_score=20.0, fill_share=0.9),
    ]
    evaluation = {
        "without": {"runs": [{"pixel_ap": 0.2}, {"pixel_ap": 0.4}]},
        "with": {"runs": [{"pixel_ap": 0.5}, {"pixel_ap": None}]},
    }
    figures = summary(Results(tmp_path, pairs, evaluation), seconds=12.34, peak_memory_gb=1.23456)
    assert figures == {
        "pairs_exported": 3,
        "outside_max_abs_diff": 3,
        "effect_score_median": 20.0,
        "fill_share_median": 0.9,
        "pixel_ap_without_pairs": 0.3,
        "pixel_ap_with_pairs": 0.5,
        "seconds": 12.3,
        "peak_memory_gb": 1.235,
    }
    write_summary(tmp_path / "summary.json", figures)
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == figures
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_summary_of_a_run_without_pairs_claims_nothing(tmp_path: Path) -> None:
    figures = summary(Results(tmp_path), seconds=1.0, peak_memory_gb=0.0)
    assert figures["pairs_exported"] == 0
    unknown = [key for key, value in figures.items() if value is None]
    assert unknown == [
        "outside_max_abs_diff", "effect_score_median", "fill_share_median",
        "pixel_ap_without_pairs", "pixel_ap_with_pairs",
    ]  # fmt: skip


def test_results_never_go_over_other_files(tmp_path: Path) -> None:
    check_new(tmp_path / "new")
    check_new(tmp_path)
    (tmp_path / "kept.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "kept.txt"):
        with pytest.raises(InputError, match="is not empty"):
            check_new(target)
