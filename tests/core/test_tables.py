"""Measured results in the paper's tables: the right cells, nothing invented, and every form says the same."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from anomalydiffusion_core.errors import DatasetError, InputError
from anomalydiffusion_core.evaluation.settings import FEW_REAL, GENERATED
from anomalydiffusion_core.evaluation.tables.build import build_table, build_tables, measured_part
from anomalydiffusion_core.evaluation.tables.files import table_image
from anomalydiffusion_core.evaluation.tables.records import (
    FILE_NAME,
    REAL_AND_GENERATED,
    ResultRecord,
    find_records,
    read_records,
    write_records,
)
from anomalydiffusion_core.evaluation.tables.text import to_csv, to_latex, to_markdown

pytestmark = pytest.mark.core


def _record(**changes: Any) -> ResultRecord:
    values: dict[str, Any] = {
        "category": "bottle",
        "method": "Ours",
        "training_set": GENERATED,
        "metrics": {"pixel_auroc": [0.97, 0.99], "pixel_ap": [0.8, 0.9], "pixel_f1": [0.7, 0.7]},
        "seeds": [0, 1],
        "budget": {"steps": 600, "width": 16},
        "reduced": True,
    }
    return ResultRecord(**{**values, **changes})


def test_a_measured_number_stands_beside_the_published_one() -> None:
    table = build_table([_record()], 2)
    cell = table.cells["bottle", "Ours", "pixel_ap"]
    assert cell.published == 94.1 and cell.measured is not None
    assert cell.measured.mean == pytest.approx(85) and cell.measured.spread == pytest.approx(50**0.5)
    assert cell.text(1) == "94.1 / 85.0 +- 7.1 (reduced)"
    assert table.cells["bottle", "DRAEM", "pixel_ap"].text(1) == "80.2 / not measured"
    average = table.cells["Average", "Ours", "pixel_ap"]
    assert average.text(1) == "81.4 / 85.0 (1 of 15 rows, reduced)"
    assert any("reduced protocol: 2 seeds, steps 600, width 16" in note for note in table.footnotes)


def test_one_record_serves_every_table_that_has_its_metrics() -> None:
    tables = {table.published.number: table for table in build_tables([_record()])}
    filled = {
        number: sorted({(row, column) for (row, column, _), cell in table.cells.items() if cell.measured})
        for number, table in tables.items()
    }
    both = [("Average", "Ours"), ("bottle", "Ours")]
    assert filled == {**{number: [] for number in range(1, 13)}, 2: both, 5: both, 10: both, 12: both}
    assert "Nothing was measured for this table." in tables[1].footnotes
    assert tables[10].cells["bottle", "Ours", "pixel_pro"].text(1) == "94.3 / not measured"


def test_other_training_sets_and_rendered_images_get_places_of_their_own() -> None:
    records = [
        _record(method="", training_set=FEW_REAL),
        _record(training_set=REAL_AND_GENERATED),
        _record(category="leather", data="rendered"),
        _record(category="gear"),
        _record(method="DRAEM"),
    ]
    table = build_table(records, 2)
    assert table.columns == ("DRAEM", "PRN", "DFMGAN", "Ours", "few real", "few real + Ours")
    assert list(table.rows)[-3:] == ["gear", "leather (rendered)", "Average"]
    assert table.cells["leather", "Ours", "pixel_ap"].measured is None
    assert table.cells["leather (rendered)", "Ours", "pixel_ap"].text(1) == "- / 85.0 +- 7.1 (reduced)"
    assert table.cells["bottle", "few real", "pixel_ap"].published is None
    average = table.cells["Average", "Ours", "pixel_ap"].measured
    assert average is None  # rendered images and other objects are no rows of the paper
    assert build_table([_record(method="Crop and Paste")], 10).cells["bottle", "Crop&Paste", "pixel_ap"].measured
    # the paper's Table 5 has DRAEM as a detector: pairs in DRAEM's manner do not belong there
    assert build_table(records, 5).cells["bottle", "DRAEM", "pixel_ap"].measured is None


def test_ablations_fill_the_rows_of_their_own_table() -> None:
    records = [_record(table=6, row="sae", category="leather", data="rendered"), _record(table=7, row="rate_20")]
    table = build_table(records, 6)
    assert table.cells["sae", "", "pixel_ap"].text(1) == "51.2 / 85.0 +- 7.1 (reduced)"
    assert table.cells["full", "", "pixel_ap"].text(1) == "81.4 / not measured"
    assert "reduced protocol on rendered" in table.footnotes[-1]
    assert build_table(records, 7).cells["rate_20", "", "pixel_auroc"].text(1) == "98.1 / 98.0 +- 1.4 (reduced)"
    assert not [cell for cell in build_table(records, 2).cells.values() if cell.measured]
    own = build_table([_record(table=8, row="s2_a2")], 8)
    assert own.cells["s2_a2 (not in the paper)", "", "pixel_ap"].published is None


def test_seeds_of_several_runs_count_together_and_undefined_stays_undefined() -> None:
    more = _record(metrics={"pixel_ap": [0.7]}, seeds=[2])
    cell = build_table([_record(), more], 2).cells["bottle", "Ours", "pixel_ap"].measured
    assert cell is not None and cell.count == 3 and cell.mean == pytest.approx(80)
    unknown = _record(metrics={"pixel_ap": [0.7, None]})
    table = build_table([unknown], 2)
    assert table.cells["bottle", "Ours", "pixel_ap"].text(1) == "94.1 / undefined"
    assert table.cells["Average", "Ours", "pixel_ap"].measured is None


def test_records_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run_1" / FILE_NAME
    record = _record(metrics={"pixel_ap": [0.7, float("nan")]})
    write_records(path, [record])
    (back,) = read_records(path)
    assert back.metrics == {"pixel_ap": [0.7, None]} and back.source == path.as_posix()
    assert back.budget == record.budget and back.column == "Ours"
    assert find_records([tmp_path, path]) == [back]
    with pytest.raises(InputError, match="never overwritten"):
        write_records(path, [record])
    assert [entry.name for entry in path.parent.iterdir()] == [FILE_NAME]


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        find_records([tmp_path / "nothing"])
    other = tmp_path / FILE_NAME
    other.write_text(json.dumps({"format": "something", "version": 1, "records": []}))
    with pytest.raises(DatasetError, match="something 1"):
        find_records([tmp_path])
    other.write_text("{")
    with pytest.raises(DatasetError, match="no results file"):
        find_records([tmp_path])
    with pytest.raises(InputError, match="2 numbers for 1 seeds"):
        _record(seeds=[0])
    with pytest.raises(InputError, match="method: is empty"):
        _record(method="")
    with pytest.raises(InputError, match="training_set: 'all'"):
        _record(training_set="all")


def test_every_form_says_the_same() -> None:
    tables = build_tables([_record()], [2, 9])
    markdown, latex = to_markdown(tables), to_latex(tables)
    row = next(line for line in markdown.splitlines() if line.startswith("| bottle |"))
    assert row.split(" | ")[10:13] == [
        "99.4 / 98.0 +- 1.4 (reduced)",
        "94.1 / 85.0 +- 7.1 (reduced)",
        "87.3 / 70.0 +- 0.0 (reduced) |",
    ]
    assert r"94.1 / 85.0 $\pm$ 7.1 (reduced)" in latex and latex.count(r"\begin{tabular}") == 2
    assert all(line.count(" & ") == 12 for line in latex.splitlines() if line.startswith("bottle"))
    lines = list(csv.DictReader(io.StringIO(to_csv(tables))))
    found = {(x["table"], x["row"], x["column"], x["metric"]): x for x in lines}
    own = found["2", "bottle", "Ours", "pixel_ap"]
    assert (own["published"], float(own["measured"]), own["seeds"], own["reduced"]) == ("94.1", 85.0, "2", "true")
    assert found["2", "cable", "PRN", "pixel_f1"]["measured"] == ""
    assert found["9", "Ours", "", "pixel_f1"]["published"] == "76.4"
    assert len(lines) == 16 * 4 * 3 + 2 * 4


def test_only_what_was_measured_is_shown_a_line_for_each_method() -> None:
    records = [_record(), _record(training_set=FEW_REAL)]
    table, untouched = build_tables(records, [10, 7], only_measured=True)
    rows = [line.split(" | ") for line in to_markdown([table]).splitlines() if line.startswith("| ")][2:]
    # The paper has no detector trained on the few real pairs, and an average of one row is none.
    methods = ["Crop&Paste", "DRAEM", "PRN", "DFMGAN", "Ours", "few real"]
    assert [(row[0], row[1]) for row in rows] == [("| bottle", method) for method in methods]
    assert rows[4][2:4] == ["99.4 / 98.0 +- 1.4 (reduced)", "94.1 / 85.0 +- 7.1 (reduced)"]
    assert rows[1][3] == "80.2 / not measured" and rows[5][3] == "- / 85.0 +- 7.1 (reduced)"
    assert {line["row"] for line in csv.DictReader(io.StringIO(to_csv([table])))} == {"bottle"}
    assert untouched == build_table(records, 7), "a table without any measured row stays whole"
    everything = [_record(category=name) for name in table.published.categories]
    assert "Average" in measured_part(build_table(everything, 10)).rows
    image = table_image(table)
    assert image.shape[2] < table_image(build_table(records, 10)).shape[2]


def test_latex_has_no_bare_special_characters() -> None:
    latex = to_latex(build_tables([_record(method="Crop&Paste", budget={"share": "50%", "a_b": 1})], [10, 11]))
    assert r"Crop\&Paste" in latex and r"50\%" in latex and r"a\_b" in latex


@pytest.mark.parametrize("number", [5, 7])
def test_image_shows_what_was_measured(number: int) -> None:
    record = _record(reduced=False, **({"table": 7, "row": "rate_20"} if number == 7 else {}))
    empty, filled = table_image(build_table([], number)), table_image(build_table([record], number))
    green = torch.tensor([0xD9, 0xEA, 0xD3]) / 255

    def share(image: torch.Tensor) -> float:
        return float(((image - green[:, None, None]).abs().amax(dim=0) < 0.01).float().mean())

    assert empty.shape[0] == 3 and empty.min() >= 0 and empty.max() <= 1
    assert share(empty) == 0 < share(filled) < 0.5
    assert not math.isnan(float(filled.mean()))
