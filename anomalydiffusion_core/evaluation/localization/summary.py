"""What several detectors reached: mean and spread over the seeds as a table, CSV, plain values and records."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ...data.mvtec import AnomalyDataset
from ..metrics.detection import defined
from ..overlap import MARK
from ..settings import LAST_STEP, VALIDATION, LocalizerSettings
from ..statistics import LEVEL, independent, mean_and_spread, paired_difference, repeated_text
from ..tables.records import ResultRecord, to_record
from .rows import WITH, Row
from .runs import Run
from .testing import METRICS

KIND = "localization"
HEADINGS = {
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_f1": "pixel F1-max",
    "pixel_pro": "PRO",
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1": "image F1-max",
}
BUDGET = "size width steps batch_size learning_rate flips rotations any_angle generated_share".split()
PAPER_BUDGET = {"size": 256, "width": 64, "steps": 12600}
"""Pixels, channels and Adam steps of 8 images in the authors' evaluation; anything less is a reduced protocol."""


@dataclass
class RowResult:
    """One row of a table: a run for each seed, or a single one for weights that were given.

    `row` is as its network saw it, see `Row.as_seen`. The first run is the one that is shown. sets, keys: which
    generated set each run belongs to, and its identity. learned_from: marks of the images behind it, as plain values;
    leaks: the test images among them.
    """

    row: Row
    seeds: tuple[int | None, ...]
    runs: list[Run] = field(default_factory=list)
    sets: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    learned_from: dict[str, Any] = field(default_factory=dict)
    leaks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.sets:
            self.sets = ("",) * len(self.seeds)

    @property
    def label(self) -> str:
        """Its name in tables, with a mark where it was learned from test images."""
        return f"{self.row.label} ({MARK})" if self.leaks else self.row.label

    @property
    def trained(self) -> bool:
        """Whether its networks were trained here."""
        return self.row.weights is None

    def budget(self, settings: LocalizerSettings) -> dict[str, Any]:
        """What a reader must know of how its networks were trained."""
        if self.row.detector is not None:
            return {"size": settings.size, **self.row.detector.budget}
        if self.row.weights is not None:
            return {"size": settings.size}
        seen = {"view": settings.view, "tile_scale": settings.tile_scale} if settings.tiled else {}
        return {**{name: getattr(settings, name) for name in BUDGET}, **seen}

    def reduced(self, settings: LocalizerSettings) -> bool:
        """Whether the protocol is smaller than the published one."""
        if self.row.detector is not None:
            return settings.size < PAPER_BUDGET["size"] or self.row.detector.reduced
        return settings.tiled or any(getattr(settings, name) < least for name, least in PAPER_BUDGET.items())

    def mean(self, metric: str) -> float:
        """Mean over all runs; NaN where the metric is undefined."""
        return mean_and_spread(self._values(metric), self.sets)[0]

    def spread(self, metric: str) -> float:
        """Sample standard deviation of the independent values, see ``independent``; NaN for a single one."""
        return mean_and_spread(self._values(metric), self.sets)[1]

    def independent(self, metric: str) -> list[float]:
        """The mean of each generated set, or with one set the value of each detector."""
        return independent(self._values(metric), self.sets)

    def as_dict(self) -> dict[str, Any]:
        """Runs, mean and spread as plain values for JSON (None for undefined)."""
        return {
            "runs": [
                {"seed": seed, "set": one, **run.result.as_dict(), "step": run.best_step, "seconds": run.seconds}
                for seed, one, run in zip(self.seeds, self.sets, self.runs, strict=True)
            ],
            "mean": {metric: defined(self.mean(metric)) for metric in METRICS},
            "spread": {metric: defined(self.spread(metric)) for metric in METRICS},
        }

    def _values(self, metric: str) -> list[float]:
        return [getattr(run.result, metric) for run in self.runs]


@dataclass
class Comparison:
    """Results of the same training on different sets of pairs.

    Attributes:
        seconds: wall time of everything that was not known before.
        reused: runs that were known before.
        notices: what a reader of the table must know.
        sets: generated sets of each method.
    """

    settings: LocalizerSettings
    seeds: tuple[int, ...]
    rows: list[RowResult] = field(default_factory=list)
    seconds: float = 0.0
    reused: int = 0
    notices: list[str] = field(default_factory=list)
    sets: int = 1

    def __getitem__(self, key: str) -> RowResult:
        """The row of this key."""
        return next(result for result in self.rows if result.row.key == key)

    def note(self) -> str:
        """Budget and selection in one sentence, then the notices."""
        s = self.settings
        tiles = f" on tiles of {s.size * s.tile_scale:.0f} image px, tested at the images' own size" if s.tiled else ""
        sentence = (
            f"{self.repeated()}; network of width {s.width} at {s.size} px{tiles}, {s.steps} steps of {s.batch_size}, "
            f"{s.selection_note()}."
        )
        for result in self.rows:
            if result.row.detector is not None:
                known = ", ".join(f"{name} {value}" for name, value in result.row.detector.budget.items())
                short = " (reduced)" if result.reduced(s) else ""
                sentence += f" {result.row.label}: {known}, {s.size} px{short}."
        return " ".join([sentence, *(f"Notice: {notice}." for notice in self.notices)])

    def repeated(self) -> str:
        """What was repeated, and what the spread is of."""
        count = len(self.seeds)
        if self.sets > 1:
            each = repeated_text([number for number in range(self.sets) for _ in self.seeds])
            return f"{each}, mean +- sample standard deviation of the means of the sets"
        detectors = f"{count} detector seed" + ("" if count == 1 else "s")
        if any(result.row.pairs for result in self.rows):
            return (
                f"1 generated set x {detectors}, mean +- sample standard deviation over the detectors alone: another "
                "generated set changes the figures too"
            )
        return f"{detectors}, mean +- sample standard deviation"

    def differences(self) -> list[dict[str, Any]]:
        """Every trained row minus the first one, and each other method minus ours, paired, as plain values."""
        trained = [result for result in self.rows if result.trained]
        pairs = [(one, trained[0]) for one in trained[1:]]
        ours = next((result for result in trained if result.row.key == WITH), None)
        if ours is not None and ours is not trained[0]:
            pairs += [(ours, one) for one in trained[1:] if one.row.key != WITH and one.row.pairs is not None]
        found = []
        for one, other in pairs:
            measured = {m: paired_difference(one.independent(m), other.independent(m)) for m in METRICS}
            found.append(
                {
                    "row": one.row.key,
                    "minus": other.row.key,
                    "label": f"{one.label} - {other.label}",
                    "pairs": measured[METRICS[0]].count,
                    "level": LEVEL,
                    "metrics": {
                        name: {
                            "mean": defined(difference.mean),
                            "low": defined(difference.low),
                            "high": defined(difference.high),
                            "verdict": difference.verdict,
                            "text": difference.text(),
                        }
                        for name, difference in measured.items()
                    },
                }
            )
        return found

    def _difference_lines(self) -> list[str]:
        found = self.differences()
        if not found:
            return []
        what = "generated sets" if self.sets > 1 else "detector seeds"
        head = f"| difference, {LEVEL:.0%} interval over {found[0]['pairs']} pairs of {what} | "
        lines = [
            "",
            head + " | ".join(HEADINGS[metric] for metric in METRICS) + " |",
            "|---" * (len(METRICS) + 1) + "|",
        ]
        for one in found:
            cells = [one["metrics"][metric]["text"] for metric in METRICS]
            lines.append(f"| {one['label'].replace('|', '/')} | " + " | ".join(cells) + " |")
        return lines

    def markdown(self) -> str:
        """A table of mean and spread."""
        rule = "" if self.settings.selection == LAST_STEP else f" ({self.settings.selection})"
        lines = [
            f"| trained on{rule} | " + " | ".join(HEADINGS[metric] for metric in METRICS) + " |",
            "|---" * (len(METRICS) + 1) + "|",
        ]
        for result in self.rows:
            cells = [_cell(result.mean(metric), result.spread(metric)) for metric in METRICS]
            lines.append(f"| {result.label.replace('|', '/')} | " + " | ".join(cells) + " |")
        return "\n".join([*lines, *self._difference_lines(), "", self.note()])

    def csv(self) -> str:
        """One line for each run, and for each row one with the mean and one with the spread."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["trained on", "seed", "selection", "step kept", *METRICS, "set"])

        def line(label: str, seed: Any, step: Any, values: Sequence[float], one: str = "") -> None:
            figures = ["" if math.isnan(value) else f"{value:.6f}" for value in values]
            writer.writerow([label, "" if seed is None else seed, self.settings.selection, step, *figures, one])

        for result in self.rows:
            label = result.label
            for seed, one, run in zip(result.seeds, result.sets, result.runs, strict=True):
                line(label, seed, run.best_step, [getattr(run.result, metric) for metric in METRICS], one)
            line(label, "mean", "", [result.mean(metric) for metric in METRICS])
            line(label, "spread", "", [result.spread(metric) for metric in METRICS])
        return text.getvalue()

    def as_dict(self) -> dict[str, Any]:
        """Everything but maps and curves, as plain values for JSON (None for undefined)."""
        sets = {result.row.key: result.as_dict() for result in self.rows}
        return {
            "settings": asdict(self.settings),
            "seeds": list(self.seeds),
            "generated_sets": self.sets,
            "differences": self.differences(),
            "seconds": self.seconds,
            "sets": sets,
        }

    def row_records(self, object: str) -> list[dict[str, Any]]:
        """Every row as plain values, for combining many evaluations into one table.

        Each holds kind, object, method, label, metrics (means), spread, runs, seeds, budget and selection.
        """
        records = []
        for result in self.rows:
            measured = result.as_dict()
            budget = result.budget(self.settings)
            seconds = round(statistics.fmean(run.seconds for run in result.runs), 1)
            records.append(
                {
                    "kind": KIND,
                    "object": object,
                    "method": result.row.method,
                    "label": result.label,
                    "leaks": list(result.leaks),
                    "metrics": measured["mean"],
                    "spread": measured["spread"],
                    "runs": measured["runs"],
                    "seeds": [seed for seed in result.seeds if seed is not None],
                    "budget": {**budget, "seconds_per_run": seconds},
                    "selection": _selection(result, self.settings),
                }
            )
        return records

    def result_records(self, dataset: AnomalyDataset) -> list[ResultRecord]:
        """One record for each row that was trained on defects, with the numbers of each seed, for Results Table.

        Rows without defects and given weights have no column in the paper's tables. Where two rows were trained on
        the same, the first counts.
        """
        s = self.settings
        selected: dict[str, Any] = {"selection": s.selection}
        if s.selection != LAST_STEP:
            selected["check_every"] = s.check_every
        if s.selection == VALIDATION:
            selected["validation_share"] = s.validation_share
        records: dict[tuple[str, str], ResultRecord] = {}
        for result in self.rows:
            column = result.row.record_column
            # Of several numbers of pairs only the largest, whose key has no number, stands for its method.
            fewer = result.row.count and result.row.key.endswith(f" {result.row.count}")
            if column is None or column in records or fewer:
                continue
            metrics = {name: [defined(getattr(run.result, name)) for run in result.runs] for name in METRICS}
            budget = {**result.budget(s), **({} if result.row.detector else selected)}
            seeds = [seed for seed in result.seeds if seed is not None]
            record = to_record(dataset, *column, metrics, seeds, budget, result.reduced(s))
            records[column] = replace(
                record,
                sets=list(result.sets),
                runs=list(result.keys),
                learned_from=result.learned_from,
                leaks=result.leaks,
                settings={"detector": budget if result.row.detector else asdict(s)},
            )
        return list(records.values())


def _selection(result: RowResult, settings: LocalizerSettings) -> str:
    if result.row.detector is not None:
        return LAST_STEP
    return settings.selection if result.trained else "weights given"


def _cell(mean: float, spread: float) -> str:
    if math.isnan(mean):
        return "undefined"
    return f"{mean:.3f}" if math.isnan(spread) else f"{mean:.3f} +- {spread:.3f}"
