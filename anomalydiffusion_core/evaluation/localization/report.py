"""A finished comparison for people and programs: sheets, plots, and the files of an evaluation folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...data.images import write_image
from ...data.mvtec import AnomalyDataset
from ...figures import contact_sheet, heat_map
from ..tables.records import FILE_NAME, ResultRecord, write_records
from .curves import plot_detection
from .records import result_records
from .rows import GENERATED, WITH, WITHOUT
from .selection import AUTHORS
from .sources import HeldOutPictures, PairSource
from .summary import Comparison

ROWS_SHOWN = 8
MAPS_KEPT = 24
"""Score maps that every run keeps, so that a sheet of any type of defect finds some."""
FILES = ("table.md", "results.csv", FILE_NAME, "contact_sheet.png", "heat_maps.png", "curves.png")
"""What lies beside evaluation.json and the single heat maps."""
_TITLES = {WITHOUT: "without pairs", WITH: "with pairs"}


@dataclass(frozen=True)
class Report:
    """Everything of an evaluation that is shown or written.

    table: Markdown. figures: plain values for JSON. records: the same for Results Table. Sheets [3,H,W] in [0,1].
    maps: single heat maps of the main row.
    """

    table: str
    csv: str
    figures: dict[str, Any]
    records: list[ResultRecord]
    heat_maps: Tensor
    contact_sheet: Tensor
    curves: Tensor
    maps: tuple[Tensor, ...]


def make_report(
    comparison: Comparison,
    tests: HeldOutPictures,
    kept: Sequence[int],
    dataset: AnomalyDataset,
    pairs: PairSource | None,
    **more: Any,
) -> Report:
    """Sum up a comparison.

    Args:
        kept: places of the test pictures whose score maps the comparison holds, in its order.
        pairs: the generated pairs that the contact sheet shows; None for a sheet of test pictures alone.
        more: further entries of `figures`.
    """
    size = comparison.settings.size
    shown = list(kept)[:ROWS_SHOWN]
    pictures = [tests.picture(place, size) for place in shown]
    main = main_row(comparison)
    maps = tuple(heat_map(comparison.score_maps[main][i], pictures[i][0]) for i in range(len(shown)))
    measured = comparison.as_dict()
    sets = measured.pop("sets")
    figures = {
        **{name: sets[name] for name in (WITHOUT, WITH) if name in sets},
        **measured,
        "selection": comparison.settings.selection,
        "note": comparison.note(),
        "rows": comparison.records(dataset.object),
        "heat_maps": [
            {"file": f"heat_maps/{i:03d}.png", "kind": tests.keys[place], "row": main} for i, place in enumerate(shown)
        ],
        "object": dataset.object,
        "generated_pairs": 0 if pairs is None else pairs.count,
        "test_defects": len(tests.keys),
        "test_normals": tests.count - len(tests.keys),
        "reused_runs": comparison.reused,
        **more,
    }
    labels = {key: comparison.label(key) for key in comparison.results}
    plot = plot_detection(
        {labels[key]: values for key, values in comparison.losses.items() if values},
        {labels[key]: curve for key, curve in comparison.curves.items()},
        f"{dataset.object}, first seed" + (f", {AUTHORS}" if comparison.settings.selection == AUTHORS else ""),
    )
    sheet = _heat_sheet(comparison, pictures, [tests.keys[place] for place in shown])
    pair_sheet = sheet if pairs is None else _pair_sheet(pairs, comparison, tests, kept)
    records = result_records(comparison, dataset)
    figures["files"] = [name for name in FILES if records or name != FILE_NAME]
    return Report(comparison.markdown(), comparison.csv(), figures, records, sheet, pair_sheet, plot, maps)


def write_report(folder: Path, report: Report) -> None:
    """Write table.md, results.csv, evaluation.json, results.json, three sheets and heat_maps/*.png.

    The folder must be new: no file is replaced. There is no results.json where nothing was trained on defects.
    """
    for name, text in (
        ("table.md", report.table + "\n"),
        ("results.csv", report.csv),
        ("evaluation.json", json.dumps(report.figures, indent=1, allow_nan=False) + "\n"),
    ):
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    if report.records:
        write_records(folder / FILE_NAME, report.records)
    write_image(folder / "contact_sheet.png", report.contact_sheet)
    write_image(folder / "heat_maps.png", report.heat_maps)
    write_image(folder / "curves.png", report.curves)
    for entry, picture in zip(report.figures["heat_maps"], report.maps, strict=True):
        write_image(folder / entry["file"], picture)


def main_row(comparison: Comparison) -> str:
    """The row that single heat maps show: with the generated pairs where there is one, else the last."""
    return next((key for key in (WITH, GENERATED) if key in comparison.results), list(comparison.results)[-1])


def _heat_sheet(comparison: Comparison, pictures: Sequence[tuple[Tensor, Tensor]], kinds: Sequence[str]) -> Tensor:
    rows: list[list[Tensor | None]] = []
    for number, (image, mask) in enumerate(pictures):
        maps = [heat_map(maps[number], image) for maps in comparison.score_maps.values()]
        rows.append([image, mask, *maps])
    titles = [_TITLES.get(key, comparison.label(key)) for key in comparison.score_maps]
    return contact_sheet(rows, ["test picture", "mask", *titles], kinds)


def _pair_sheet(pairs: PairSource, comparison: Comparison, tests: HeldOutPictures, kept: Sequence[int]) -> Tensor:
    """Normal, mask, generated picture, and the heat map of a test picture of the same type where there is one."""
    samples = pairs.samples(ROWS_SHOWN)
    waiting: dict[str, list[tuple[int, int]]] = {}
    for number, place in enumerate(kept):
        waiting.setdefault(tests.keys[place], []).append((number, place))
    maps = comparison.score_maps[main_row(comparison)]
    rows: list[list[Tensor | None]] = []
    for sample in samples:
        row = [sample.normal, sample.mask, sample.image, None]
        if waiting.get(sample.key):
            number, place = waiting[sample.key].pop(0)
            row[3] = heat_map(maps[number], tests.picture(place, comparison.settings.size)[0])
        rows.append(row)
    titles = ["normal", "mask", "generated", "heat map (test)"]
    return contact_sheet(rows, titles, [sample.key for sample in samples])
