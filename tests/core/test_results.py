from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from anomalydiffusion_core.data.export import files_beside
from anomalydiffusion_core.data.pairs import ExportedPair
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.files import check_new, write_json
from anomalydiffusion_core.server import results as module
from anomalydiffusion_core.server.client import RunResult
from anomalydiffusion_core.server.results import Results, fetch_results, summary


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
    write_json(tmp_path / "summary.json", figures)
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == figures
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_summary_of_a_run_without_pairs_claims_nothing(tmp_path: Path) -> None:
    figures = summary(Results(tmp_path), seconds=1.0, peak_memory_gb=None)
    assert figures["pairs_exported"] == 0
    unknown = [key for key, value in figures.items() if value is None]
    assert unknown == [
        "outside_max_abs_diff", "effect_score_median", "fill_share_median",
        "pixel_ap_without_pairs", "pixel_ap_with_pairs", "peak_memory_gb",
    ]  # fmt: skip


def test_results_never_go_over_other_files(tmp_path: Path) -> None:
    check_new(tmp_path / "new")
    check_new(tmp_path)
    (tmp_path / "kept.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "kept.txt"):
        with pytest.raises(InputError, match="is not empty"):
            check_new(target)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output folder whose files are fetched as a server would give them out."""

    def download(address: str, item: dict[str, str], folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        source = tmp_path / "output" / item["subfolder"] / item["filename"]
        return Path(shutil.copyfile(source, folder / item["filename"]))

    monkeypatch.setattr(module, "download", download)
    return tmp_path / "output"


def exported(output: Path, place: str, number: int) -> None:
    folder = output / place
    folder.mkdir(parents=True)
    lines = [json.dumps({"object": "leather", "defect": "hole", "image": f"{i}.png", "mask": f"{i}_mask.png"})
             for i in range(number)]  # fmt: skip
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    for i in range(number):
        for name in (f"{i}.png", f"{i}_mask.png"):
            (folder / name).write_bytes(place.encode())


@pytest.mark.parametrize("evaluated", ["table/ours_00001", None])
def test_of_several_exports_the_evaluated_one_is_the_run_s(
    served: Path, tmp_path: Path, evaluated: str | None
) -> None:
    for place, number in (("table/draem_00002", 1), ("table/ours_00001", 2)):
        exported(served, place, number)
    outputs = {
        "1": {"pairs_folder": ["table/draem_00002"]},
        "2": {"pairs_folder": ["table/ours_00001"]},
    }
    if evaluated:
        (served / "evaluation").mkdir()
        (served / "evaluation" / "evaluation.json").write_text(json.dumps({"pairs_folder": evaluated, "files": []}))
        outputs["3"] = {"evaluation_folder": ["evaluation"]}
    results = fetch_results("address", RunResult("id", outputs, 1.0), tmp_path / "results")
    # Without an evaluation the first export is the run's.
    own, other = (2, "draem_00002") if evaluated else (1, "ours_00001")
    assert len(results.pairs) == own
    assert [path.name for path in (tmp_path / "results" / "other_pairs").iterdir()] == [other]


def test_what_lies_beside_the_pairs_and_single_heat_maps_are_fetched_too(served: Path, tmp_path: Path) -> None:
    exported(served, "pairs", 1)
    (served / "pairs" / "learned_from").mkdir()
    (served / "pairs" / "learned_from" / "ab.json").write_text("{}")
    (served / "pairs" / "recipe.json").write_text("{}")
    beside = files_beside(served / "pairs")
    assert beside == ["learned_from/ab.json", "recipe.json"]
    (served / "evaluation" / "heat_maps").mkdir(parents=True)
    (served / "evaluation" / "heat_maps" / "000.png").write_bytes(b"map")
    (served / "evaluation" / "evaluation.json").write_text(
        json.dumps({"pairs_folder": "pairs", "files": [], "heat_maps": [{"file": "heat_maps/000.png"}]})
    )
    outputs = {
        "1": {"pairs_folder": ["pairs"], "pairs_beside": beside},
        "2": {"evaluation_folder": ["evaluation"]},
    }
    fetch_results("address", RunResult("id", outputs, 1.0), tmp_path / "results")
    found = {path.relative_to(tmp_path / "results").as_posix() for path in (tmp_path / "results").rglob("*.*")}
    assert {"pairs/learned_from/ab.json", "pairs/recipe.json", "evaluation/heat_maps/000.png"} < found
