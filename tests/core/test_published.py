"""The paper's tables: complete, their averages checked, and what the source contradicts is what the files say."""

from __future__ import annotations

import itertools
import json
import statistics

import pytest

from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.evaluation.published import AVERAGE, FOLDER, NUMBERS, PublishedTable, load_table

pytestmark = pytest.mark.core

CATEGORIES = (
    "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile toothbrush transistor wood zipper"
).split()
TABLES = [load_table(number) for number in NUMBERS]
PER_CATEGORY = [table for table in TABLES if table.compares != "variants"]


def _columns(table: PublishedTable) -> list[tuple[str, str]]:
    return list(itertools.product(table.methods, table.metrics))


def test_every_table_is_there_with_all_its_cells() -> None:
    sizes = {table.number: (len(table.rows), len(table.methods), len(table.metrics)) for table in TABLES}
    assert sizes == {
        1: (16, 7, 2),
        2: (16, 4, 3),
        3: (16, 4, 3),
        4: (15, 7, 1),
        5: (16, 11, 2),
        6: (5, 1, 3),
        7: (5, 1, 2),
        8: (4, 1, 4),
        9: (2, 1, 4),
        10: (16, 5, 4),
        11: (16, 5, 3),
        12: (16, 10, 1),
    }
    missing = []
    for table in TABLES:
        for row, (method, metric) in itertools.product(table.rows, _columns(table)):
            value = table.cell(row, method, metric)
            if value is None:
                missing.append((table.number, row, method))
            else:
                assert 0 <= value <= 100 and round(value, table.decimals) == value
    assert missing == [(4, "cable", "SDGAN")]
    for table in PER_CATEGORY:
        expected = [name for name in CATEGORIES if table.number != 4 or name != "toothbrush"]
        assert list(table.categories) == expected


@pytest.mark.parametrize("table", PER_CATEGORY, ids=lambda table: f"table{table.number}")
def test_averages_agree_with_their_columns_but_for_the_listed_ones(table: PublishedTable) -> None:
    half = 0.5 * 10**-table.decimals + 1e-9
    found = {}
    for method, metric in _columns(table):
        column = [table.cell(row, method, metric) for row in table.categories]
        known = [value for value in column if value is not None]
        printed = table.cell(AVERAGE, method, metric)
        assert printed is not None
        mean = statistics.fmean(known)
        if len(known) < len(column) or abs(mean - printed) > half:
            found[method, metric] = (printed, round(mean, 4))
    listed = {
        (entry["method"], entry["metric"]): (entry["printed"], entry["mean_of_rows"])
        for entry in table.average_exceptions
    }
    assert found == listed


@pytest.mark.parametrize("table", PER_CATEGORY, ids=lambda table: f"table{table.number}")
def test_reasons_of_the_exceptions_hold(table: PublishedTable) -> None:
    for entry in table.average_exceptions:
        column = {row: table.cell(row, entry["method"], entry["metric"]) for row in table.categories}
        without = statistics.fmean(value for row, value in column.items() if row != "bottle" and value is not None)
        if entry["reason"] == "mean without bottle":
            assert without == pytest.approx(entry["printed"], abs=0.0501)
        elif entry["reason"] == "cut off, not rounded":
            assert 0 < entry["mean_of_rows"] - entry["printed"] < 0.1
        elif entry["reason"] == "a cell is missing":
            assert None in column.values()
        elif entry["reason"] == "fits the column of Table 11":
            other = [load_table(11).cell(row, entry["method"], entry["metric"]) or 0.0 for row in CATEGORIES]
            assert statistics.fmean(other) == pytest.approx(entry["printed"], abs=0.0501)
        else:
            assert entry["reason"] == "unexplained"


@pytest.mark.parametrize("number", [2, 10])
def test_all_averages_of_tables_2_and_10_leave_out_bottle(number: int) -> None:
    table = load_table(number)
    for method, metric in _columns(table):
        values = [table.cell(row, method, metric) or 0.0 for row in table.categories if row != "bottle"]
        assert statistics.fmean(values) == pytest.approx(table.cell(AVERAGE, method, metric), abs=0.0501)


def test_what_two_tables_print_differently_is_listed() -> None:
    groups = [((2, 5, 10, 12), ["Ours"]), ((2, 10), ["DRAEM", "PRN", "DFMGAN"])]
    groups.append(((3, 11), ["DRAEM", "PRN", "DFMGAN", "Ours"]))
    found = []
    for row, (numbers, methods) in itertools.product([*CATEGORIES, AVERAGE], groups):
        for method in methods:
            for metric in dict.fromkeys(name for number in numbers for name in load_table(number).metrics):
                cells = {str(number): load_table(number).cell(row, method, metric) for number in numbers}
                known = {number: value for number, value in cells.items() if value is not None}
                if len(set(known.values())) > 1:
                    found.append((row, method, metric, known))
    listed = [
        (x["row"], x["method"], x["metric"], x["tables"])
        for x in json.loads((FOLDER / "disagreements.json").read_text())
    ]
    assert sorted(map(repr, found)) == sorted(map(repr, listed))


def test_numbers_of_the_abstract() -> None:
    # stated in the text: 99.1 AUROC and 81.4 AP; accuracy 66.09, second best 49.61
    assert load_table(2).cell(AVERAGE, "Ours", "pixel_auroc") == 99.1
    assert load_table(2).cell(AVERAGE, "Ours", "pixel_ap") == 81.4
    accuracy = load_table(4)
    assert accuracy.cell(AVERAGE, "Ours", "accuracy") == 66.09
    assert round(66.09 - (accuracy.cell(AVERAGE, "DFMGAN", "accuracy") or 0), 2) == 16.48
    with pytest.raises(InputError, match="table: 13"):
        load_table(13)
