"""What several detectors reached: mean and spread over the seeds as a table, CSV and plain values."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from ..metrics import defined
from .curves import DetectionCurves
from .evaluation import METRICS, LocalizationResult
from .network import DiscriminativeSubNetwork
from .rows import FEW_REAL, GENERATED, OURS, WITH, WITHOUT
from .selection import LAST_STEP, selection_note
from .settings import LocalizerSettings

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
_ROW_NAMES = {WITHOUT: "few real pairs", WITH: "few real + generated pairs"}
_METHODS = {WITHOUT: FEW_REAL, WITH: f"{FEW_REAL} + {OURS}", GENERATED: OURS}
BUDGET = (
    "size",
    "width",
    "steps",
    "batch_size",
    "learning_rate",
    "flips",
    "rotations",
    "any_angle",
    "generated_share",
)


@dataclass(frozen=True)
class ComparisonStep:
    """Progress of a comparison: `done` of `total` training steps of all runs together, and where it stands.

    `training_set` is the key of the row; the network is in training, see `LocalizerStep`.
    """

    done: int
    total: int
    training_set: str
    seed: int
    loss: float
    network: DiscriminativeSubNetwork | None = field(default=None, repr=False, compare=False)


@dataclass
class Comparison:
    """Results of the same training on different sets of pairs.

    Attributes:
        results: key of the row (training set) -> one result for each seed; a single one for weights that were given.
        score_maps: key -> maps [K,H,W] of the first seed on the test pictures that are shown.
        losses: key -> loss of each step of the first seed.
        curves: key -> curves of the first seed.
        labels, methods: key -> name in tables, name of the method.
        makers: key -> what made the pairs, as Results Table calls it.
        best_steps, run_seconds: key -> the step that was kept and the wall time of each run.
        seconds: wall time of everything that was not known from before.
        reused: runs that were known from before.
        notices: what a reader of the table has to know.
    """

    settings: LocalizerSettings
    seeds: tuple[int, ...]
    results: dict[str, list[LocalizationResult]] = field(default_factory=dict)
    score_maps: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    curves: dict[str, DetectionCurves] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    methods: dict[str, str] = field(default_factory=dict)
    makers: dict[str, str] = field(default_factory=dict)
    best_steps: dict[str, list[int]] = field(default_factory=dict)
    run_seconds: dict[str, list[float]] = field(default_factory=dict)
    reused: int = 0
    notices: list[str] = field(default_factory=list)

    def label(self, key: str) -> str:
        """Name of a row in tables."""
        return self.labels.get(key) or _ROW_NAMES.get(key, key)

    def method(self, key: str) -> str:
        """Whose pairs a row is trained on."""
        return self.methods.get(key) or _METHODS.get(key, key)

    def maker(self, key: str) -> str:
        """What made these pairs, empty for a row without."""
        return self.makers.get(key, "")

    def seeds_of(self, key: str) -> tuple[int | None, ...]:
        """Seed of each result of a row; None for weights that were given."""
        trained = len(self.results[key]) == len(self.seeds) and any(self.best_steps.get(key, [1]))
        return self.seeds if trained else (None,) * len(self.results[key])

    def mean(self, training_set: str, metric: str) -> float:
        """Mean over the seeds; NaN where the metric is undefined."""
        return statistics.fmean(getattr(result, metric) for result in self.results[training_set])

    def spread(self, training_set: str, metric: str) -> float:
        """Sample standard deviation over the seeds; NaN for a single seed."""
        values = [getattr(result, metric) for result in self.results[training_set]]
        if len(values) < 2 or any(math.isnan(value) for value in values):
            return float("nan")
        return statistics.stdev(values)

    def note(self) -> str:
        """Budget and rule of selection in one sentence, then the notices."""
        s = self.settings
        rule = selection_note(s.selection, s.check_every, s.validation_share)
        sentence = (
            f"{len(self.seeds)} seeds, mean +- sample standard deviation; network of width {s.width} at {s.size} px, "
            f"{s.steps} steps of {s.batch_size}, {rule}."
        )
        return " ".join([sentence, *(f"Notice: {notice}." for notice in self.notices)])

    def markdown(self) -> str:
        """A table of mean and spread, one row for each training set."""
        rule = "" if self.settings.selection == LAST_STEP else f" ({self.settings.selection})"
        lines = [
            f"| trained on{rule} | " + " | ".join(HEADINGS[metric] for metric in METRICS) + " |",
            "|---" * (len(METRICS) + 1) + "|",
        ]
        for key in self.results:
            cells = [_cell(self.mean(key, metric), self.spread(key, metric)) for metric in METRICS]
            lines.append(f"| {self.label(key).replace('|', '/')} | " + " | ".join(cells) + " |")
        return "\n".join([*lines, "", self.note()])

    def csv(self) -> str:
        """One line for each run, and one with the mean and one with the spread of each row."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["trained on", "seed", "selection", "step kept", *METRICS])
        for key, results in self.results.items():
            seeds, steps = self.seeds_of(key), self.best_steps.get(key, [self.settings.steps] * len(results))
            for seed, step, result in zip(seeds, steps, results, strict=True):
                values = [getattr(result, metric) for metric in METRICS]
                writer.writerow(self._line(key, "" if seed is None else str(seed), str(step), values))
            for name, values in (
                ("mean", [self.mean(key, metric) for metric in METRICS]),
                ("spread", [self.spread(key, metric) for metric in METRICS]),
            ):
                writer.writerow(self._line(key, name, "", values))
        return text.getvalue()

    def _line(self, key: str, seed: str, step: str, values: Sequence[float]) -> list[str]:
        figures = ["" if math.isnan(value) else f"{value:.6f}" for value in values]
        return [self.label(key), seed, self.settings.selection, step, *figures]

    def as_dict(self) -> dict[str, Any]:
        """Everything but maps and curves, as plain values for JSON (None for undefined)."""
        sets: dict[str, Any] = {}
        for name, results in self.results.items():
            runs = [
                {"seed": seed, **result.as_dict()} for seed, result in zip(self.seeds_of(name), results, strict=True)
            ]
            for number, run in enumerate(runs):
                if name in self.best_steps:
                    run |= {"step": self.best_steps[name][number], "seconds": self.run_seconds[name][number]}
            sets[name] = {
                "runs": runs,
                "mean": {metric: defined(self.mean(name, metric)) for metric in METRICS},
                "spread": {metric: defined(self.spread(name, metric)) for metric in METRICS},
            }
        return {"settings": asdict(self.settings), "seeds": list(self.seeds), "seconds": self.seconds, "sets": sets}

    def records(self, object: str) -> list[dict[str, Any]]:
        """One record for each row, for gathering many evaluations into one table.

        Each holds kind, object, method, label, metrics (means), spread, runs, seeds, budget and selection.
        """
        sets = self.as_dict()["sets"]
        settings = asdict(self.settings)
        budget = {name: settings[name] for name in BUDGET}
        return [
            {
                "kind": KIND,
                "object": object,
                "method": self.method(key),
                "label": self.label(key),
                "metrics": measured["mean"],
                "spread": measured["spread"],
                "runs": measured["runs"],
                "seeds": [seed for seed in self.seeds_of(key) if seed is not None],
                "budget": self._budget(key, budget),
                "selection": self.settings.selection if any(self.best_steps.get(key, [1])) else "weights given",
            }
            for key, measured in sets.items()
        ]

    def _budget(self, key: str, budget: dict[str, Any]) -> dict[str, Any]:
        trained = any(self.best_steps.get(key, [1]))
        seconds = self.run_seconds.get(key)
        known = {"seconds_per_run": round(statistics.fmean(seconds), 1)} if seconds else {}
        return {**(budget if trained else {"size": budget["size"]}), **known}


def _cell(mean: float, spread: float) -> str:
    if math.isnan(mean):
        return "undefined"
    return f"{mean:.3f}" if math.isnan(spread) else f"{mean:.3f} +- {spread:.3f}"
