"""Evaluate Localization as a whole: from a data set and rows to a report and its files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.images import write_image
from ...data.mvtec import AnomalyDataset
from ...data.provenance import Mark, plain_marks
from ...devices import check_images_fit
from ...figures import contact_sheet, detail, heat_map, stacked
from ...files import write_json
from ...progress import MakeProgress, Progress, Quiet, TimeLeft, duration
from ..overlap import check_types, found_overlaps, leak_text
from ..settings import AUTHORS, GENERATED, LocalizerSettings
from ..tables.records import FILE_NAME, ResultRecord, write_records
from .amounts import AMOUNTS, curves_of, plot_amounts
from .comparison import ComparisonStep, compare_rows
from .curves import plot_detection
from .rows import WITH, WITHOUT, Row
from .runs import RunStore, SharedData
from .sources import PairSource, held_out_images, normal_images, real_pairs
from .summary import Comparison, RowResult
from .testing import score_images

ROWS_SHOWN = 8
_PLANES = 5
"""Values of a pixel of a training pair, image and mask, with what is held while they are read."""
MAPS_KEPT = 24
"""Score maps that every run keeps, so that a contact sheet of any defect type finds some."""
PREVIEW_SECONDS = 5.0
RUNS_FOLDER = "evaluation_runs"
"""Name of the folder of finished and unfinished runs, beside the results."""
IMAGES = ("contact_sheet.png", "heat_maps.png", "curves.png")
FILES = ("table.md", "results.csv", FILE_NAME, *IMAGES)
"""What is written beside evaluation.json and the single heat maps."""
_TITLES = {WITHOUT: "without pairs", WITH: "with pairs"}


@dataclass(frozen=True)
class Report:
    """Everything of an evaluation that is shown or written.

    table: Markdown. figures: plain values for JSON. records: the same for Results Table. Sheets [3,H,W] in [0,1].
    maps: single heat maps of the main row. amounts: AP over the number of generated pairs, where rows differ in it.
    comparison: what the table was made of.
    """

    table: str
    csv: str
    figures: dict[str, Any]
    records: list[ResultRecord]
    heat_maps: Tensor
    contact_sheet: Tensor
    curves: Tensor
    maps: tuple[Tensor, ...]
    comparison: Comparison
    amounts: Tensor | None = None

    def write(self, folder: Path) -> None:
        """Write table.md, results.csv, evaluation.json, results.json, three sheets and heat_maps/*.png.

        The folder must be new: no file is replaced. Without a row trained on defects there is no results.json.
        """
        write_json(folder / "evaluation.json", self.figures)
        for name, text in (("table.md", self.table + "\n"), ("results.csv", self.csv)):
            (folder / name).write_text(text, encoding="utf-8", newline="\n")
        if self.records:
            write_records(folder / FILE_NAME, self.records)
        for name, image in zip(IMAGES, (self.contact_sheet, self.heat_maps, self.curves), strict=True):
            write_image(folder / name, image)
        if self.amounts is not None:
            write_image(folder / AMOUNTS, self.amounts)
        for entry, image in zip(self.figures["heat_maps"], self.maps, strict=True):
            write_image(folder / entry["file"], image)


def evaluate_localization(
    dataset: AnomalyDataset,
    rows: Sequence[Row],
    settings: LocalizerSettings,
    seeds: Sequence[int],
    own: PairSource | None,
    store: RunStore,
    progress: MakeProgress = Quiet,
    device: torch.device | str = "cpu",
    previews: bool = False,
    allow_overlap: bool = False,
    **more: Any,
) -> Report:
    """One table: detectors trained on each row, with each seed, and tested on the defects kept for testing.

    Finished runs are taken from the store, the rest is trained and tested, see `compare_rows`.

    Args:
        own: the pairs under test, which the contact sheet shows.
        progress: makes what counts training steps; their total follows with the first.
        previews: also show the heat map of one test image there, every few seconds. It chooses nothing.
        allow_overlap: measure rows that were learned from test images, and mark them everywhere.
        more: further entries of the report's figures.

    Raises InputError when no defect was kept for testing, when something was learned from test images, and for pairs
    of another object or of types that the data set does not have.
    """
    tests = held_out_images(dataset)
    kept = tests.shown(MAPS_KEPT)
    images = [tests.image(place, settings.size) for place in kept[:ROWS_SHOWN]]
    kinds = [tests.keys[place] for place in kept[:ROWS_SHOWN]]
    data = SharedData(real_pairs(dataset), normal_images(dataset), tests)
    held = data.normals.count + data.few_real.count + max((row.pairs.count for row in rows if row.pairs), default=0)
    check_images_fit("size", held, (settings.size, settings.size), _PLANES)
    learned = {row.label: _learned_from(row, data) for row in rows if row.weights is None}
    for row in rows:
        for pairs in row.sets:
            check_types(dataset, pairs.keys, row.label, pairs.objects)
    leaks = found_overlaps(learned, tests.marks(), allow_overlap)
    shown = _ComparisonProgress(progress(1), images[0] if previews else None)
    comparison = compare_rows(rows, data, settings, seeds, store, kept, shown.on_step, shown.on_test, device)
    for result, row in zip(comparison.rows, rows, strict=True):
        result.learned_from = plain_marks(learned.get(row.label, {}))
        if row.label in leaks:
            result.leaks = tuple(one.describe() for one in leaks[row.label])
            comparison.notices.append(f"'{result.row.label}', {leak_text(leaks[row.label], tests.count)}")
    known = [f"data set: {notice}" for notice in dataset.notices]
    known += [notice for row in rows for one in row.sets for notice in one.notices]
    comparison.notices += [notice for notice in dict.fromkeys(known) if notice not in comparison.notices]
    main = main_row(comparison)
    measured = comparison.as_dict()
    sets = measured.pop("sets")
    records = comparison.result_records(dataset)
    lines = curves_of(comparison)
    figures = {
        **{name: sets[name] for name in (WITHOUT, WITH) if name in sets},
        **measured,
        "selection": settings.selection,
        "note": comparison.note(),
        "rows": comparison.row_records(dataset.object),
        "heat_maps": [
            {"file": f"heat_maps/{number:03d}.png", "kind": kind, "row": main.row.key}
            for number, kind in enumerate(kinds)
        ],
        "object": dataset.object,
        "generated_pairs": 0 if own is None else own.count,
        "test_defects": len(tests.keys),
        "test_normals": tests.count - len(tests.keys),
        "reused_runs": comparison.reused,
        **more,
        "files": [name for name in FILES if records or name != FILE_NAME] + ([AMOUNTS] if lines else []),
    }
    first = {result.row.label: result.runs[0] for result in comparison.rows}
    rule = f", {AUTHORS}" if settings.selection == AUTHORS else ""
    sheet = _heat_sheet(comparison, images, kinds)
    return Report(
        table=comparison.markdown(),
        csv=comparison.csv(),
        figures=figures,
        records=records,
        heat_maps=sheet,
        contact_sheet=sheet if own is None else stacked([_pair_sheet(data.few_real, own), sheet]),
        curves=plot_detection(
            {label: run.losses for label, run in first.items() if run.losses},
            {label: run.curves for label, run in first.items()},
            f"{dataset.object}, first seed{rule}",
        ),
        maps=tuple(heat_map(main.runs[0].maps[number], image) for number, (image, _) in enumerate(images)),
        comparison=comparison,
        amounts=plot_amounts(lines, dataset.object, "standard deviation") if lines else None,
    )


def _learned_from(row: Row, data: SharedData) -> dict[str, Mark]:
    """Marks of everything that the detectors of a row are trained on, and of what that was made from."""
    marks = dict(data.normals.marks())
    if row.real:
        marks |= data.few_real.marks()
    for pairs in row.sets:
        marks |= pairs.marks()
    return marks


class _ComparisonProgress:
    """The bar, the time left and the heat map of one test image while detectors are trained.

    Each training step and each batch of test images gives the progress a chance to interrupt.
    """

    def __init__(self, progress: Progress, image: tuple[Tensor, Tensor] | None) -> None:
        self._progress, self._image = progress, image
        self._left = TimeLeft()
        self._shown = float("-inf")

    def on_step(self, step: ComparisonStep) -> None:
        self._progress.total = step.total
        left = self._left.seconds(step.done, step.total)
        now = time.monotonic()
        if now - self._shown < PREVIEW_SECONDS and step.done < step.total:
            self._progress.at(step.done)
            return
        self._shown = now
        remaining = "" if left is None else f"about {duration(left)} left"
        text = f"{step.row.label}, seed {step.seed}: step {step.done} of {step.total}, loss {step.step.loss:.4f}"
        self._progress.text(", ".join(part for part in (text, remaining) if part))
        self._progress.at(step.done, self._preview(step, remaining))

    def on_test(self) -> None:
        self._progress.at(self._progress.done)

    def _preview(self, step: ComparisonStep, left: str) -> Tensor | None:
        if self._image is None:
            return None
        image, mask = self._image
        score = score_images(step.step.network, image[None])[0]
        titles = [step.row.label, f"{step.done} of {step.total}", left]
        return contact_sheet([[image, mask, heat_map(score, image)]], titles, cell=192)


def main_row(comparison: Comparison) -> RowResult:
    """The row that single heat maps show: with the generated pairs where there is one, else the last."""
    by_key = {result.row.key: result for result in comparison.rows}
    return next((by_key[key] for key in (WITH, GENERATED) if key in by_key), comparison.rows[-1])


def _heat_sheet(comparison: Comparison, images: Sequence[tuple[Tensor, Tensor]], kinds: Sequence[str]) -> Tensor:
    rows: list[list[Tensor | None]] = []
    for number, (image, mask) in enumerate(images):
        maps = [heat_map(result.runs[0].maps[number], image) for result in comparison.rows]
        rows.append([image, mask, *maps])
    titles = [_TITLES.get(result.row.key, result.row.label) for result in comparison.rows]
    return contact_sheet(rows, ["test image", "truth", *(f"heat map {title}" for title in titles)], kinds)


def _pair_sheet(real: PairSource, pairs: PairSource) -> Tensor:
    """A real training defect, then a normal image, a mask and the defect generated there, enlarged; types in turn."""
    learned: dict[str, list[int]] = {}
    for place, key in enumerate(real.keys):
        learned.setdefault(key, []).append(place)
    samples = sorted(pairs.samples(ROWS_SHOWN), key=lambda sample: sample.key)
    rows: list[list[Tensor | None]] = []
    for number, sample in enumerate(samples):
        shown: list[Tensor | None] = [None, None]
        if own := learned.get(sample.key):
            example = real.sample(own[number % len(own)])
            shown = [example.image, detail(example.image, example.mask)]
        rows.append([*shown, sample.normal, sample.mask, sample.image, detail(sample.image, sample.mask)])
    titles = ["real defect (training)", "enlarged", "normal image", "mask", "generated defect", "enlarged"]
    return contact_sheet(rows, titles, [sample.key for sample in samples])
