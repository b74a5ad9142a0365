"""What evaluations hand to Results Table: the right column, the right numbers, and reduced where it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anomalydiffusion_core.data.mvtec import AnomalyDataset, load_dataset
from anomalydiffusion_core.evaluation.classification.evaluation import Classification, ClassificationRun
from anomalydiffusion_core.evaluation.generation.evaluation import Generation
from anomalydiffusion_core.evaluation.localization.rows import rows_of
from anomalydiffusion_core.evaluation.localization.runs import Run
from anomalydiffusion_core.evaluation.localization.sources import pair_tensors
from anomalydiffusion_core.evaluation.localization.summary import Comparison, RowResult
from anomalydiffusion_core.evaluation.localization.testing import LocalizationResult
from anomalydiffusion_core.evaluation.settings import ClassifierSettings, LocalizerSettings
from anomalydiffusion_core.evaluation.tables.build import build_table
from anomalydiffusion_core.synthetic.fewshot import render_fewshot_set

pytestmark = pytest.mark.core

FULL = ClassifierSettings(steps=28125, batch_size=8, weights=Path("resnet34.pth"))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> AnomalyDataset:
    folder = tmp_path_factory.mktemp("rendered")
    category = render_fewshot_set(folder, train_pairs=2, test_pairs=2, normals=2, test_normals=1, size=128)
    return load_dataset(folder, category.name)


@pytest.fixture
def real(rendered: AnomalyDataset, tmp_path: Path) -> AnomalyDataset:
    """The same as if its images were of a real data set."""
    return replace(rendered, object="bottle", root=tmp_path / "mvtec", place=tmp_path / "mvtec" / "bottle")


def test_accuracy_stands_in_table_4(real: AnomalyDataset, rendered: AnomalyDataset) -> None:
    confusion = [np.array([[3, 1], [0, 4]]), np.array([[4, 0], [2, 2]])]
    result = Classification(("a", "b"), FULL, [ClassificationRun(seed, c) for seed, c in enumerate(confusion)])
    record = result.to_record(real, "Ours", "generated", 1500)
    assert record.metrics == {"accuracy": [7 / 8, 6 / 8]} and not record.reduced
    cell = build_table([record], 4).cells["bottle", "Ours", "accuracy"].measured
    assert cell is not None and cell.mean == pytest.approx(81.25)
    assert (record.data, record.budget["weights"], record.budget["split"]) == (
        "mvtec", "resnet34.pth", "lowest third",
    )  # fmt: skip
    assert result.to_record(real, "ignored", "few real", 10).column == "few real"
    assert result.to_record(real, "Ours", "few real + generated", 10).column == "few real + Ours"
    # 28125 x 8 images are 150 passes over 1500 images, and less over more
    assert result.to_record(real, "Ours", "generated", 1501).reduced
    for change in ({"weights": None}, {"width": 32}, {"size": 128}):
        small = replace(result, settings=replace(FULL, **change))  # type: ignore[arg-type]
        assert small.to_record(real, "Ours", "generated", 1500).reduced, change
    assert result.to_record(rendered, "Ours", "generated", 10).data == "rendered"


def test_image_quality_stands_in_table_1(real: AnomalyDataset) -> None:
    rows = {
        "a": {"is": 1.5, "ic_lpips_text": 0.2, "ic_lpips_pairwise": 0.4, "pictures": 1000.0},
        "b": {"is": 2.5, "ic_lpips_text": float("nan"), "ic_lpips_pairwise": 0.5, "pictures": 1000.0},
    }
    record = Generation("net", "vgg", rows).to_record(real, "Crop and Paste", 7, {"size": 256, "splits": 10})
    cells = build_table([record], 1).cells
    assert cells["bottle", "Crop&Paste", "is"].text(2) == "1.43 / 2.00"
    assert cells["bottle", "Crop&Paste", "ic_lpips"].text(2) == "0.04 / 0.20"  # the mean of what is defined
    assert record.metrics["ic_lpips_pairwise"] == [pytest.approx(0.45)] and record.seeds == [7]
    rows["b"]["pictures"] = 999.0
    assert Generation("net", "vgg", rows).to_record(real, "Ours", 7, {"size": 256}).reduced
    rows["b"]["pictures"] = 1000.0
    assert Generation("net", "vgg", rows).to_record(real, "Ours", 7, {"size": 128}).reduced


def test_rows_of_a_comparison_are_columns(real: AnomalyDataset, rendered: AnomalyDataset) -> None:
    results = [LocalizationResult(0.9, value, 0.5, float("nan"), 0.6, 0.7, 0.8) for value in (0.4, 0.6)]
    settings = LocalizerSettings(size=256, width=64, steps=12600)
    pairs = pair_tensors({})
    sets = ("none", "few real", "generated", "few real + ours")
    rows = rows_of(sets, {"ours": pairs, "DRAEM": pairs}, {"authors": Path("authors.pckl")})
    runs = [Run(result, torch.zeros(0, 8, 8)) for result in results]
    compared = Comparison(settings, (3, 4))
    for row in rows:
        given = row.weights is not None
        compared.rows.append(RowResult(row, (None,) if given else (3, 4), runs[:1] if given else runs))
    records = compared.result_records(real)
    assert [record.column for record in records] == ["few real", "Ours", "few real + Ours", "DRAEM"]
    assert all(record.seeds == [3, 4] and not record.reduced for record in records)
    assert build_table(records, 10).cells["bottle", "Ours", "pixel_ap"].text(1).endswith(" / 50.0 +- 14.1")
    assert build_table(records, 10).cells["bottle", "Ours", "pixel_pro"].text(1).endswith(" / undefined")
    for change in ({"size": 128}, {"width": 32}, {"steps": 12599}):
        small = replace(compared, settings=replace(settings, **change))  # type: ignore[arg-type]
        assert all(record.reduced for record in small.result_records(real)), change
    assert {record.data for record in compared.result_records(rendered)} == {"rendered"}
    # two rows trained on the same count once: both with generated pairs alone
    twice = replace(compared, rows=[replace(result, row=result.row.as_seen(1)) for result in compared.rows])
    assert [record.column for record in twice.result_records(real)] == ["few real", "Ours", "DRAEM"]
