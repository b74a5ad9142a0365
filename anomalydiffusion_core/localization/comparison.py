"""Do generated pairs help? One detector trained without and with them, on several seeds, tested on real defects."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .evaluation import METRICS, LocalizationResult, evaluate_localizer
from .training import LocalizerSettings, LocalizerStep, Pairs, train_localizer

WITHOUT = "without"
WITH = "with"
_HEADINGS = {
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_f1": "pixel F1-max",
    "pixel_pro": "PRO",
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1": "image F1-max",
}
_ROW_NAMES = {WITHOUT: "few real pairs", WITH: "few real + generated pairs"}


@dataclass(frozen=True)
class ComparisonStep:
    """Progress of a comparison: `done` of `total` training steps of all runs together, and where it stands."""

    done: int
    total: int
    training_set: str
    seed: int
    loss: float


@dataclass
class Comparison:
    """Results of the same training on different sets of pairs.

    Attributes:
        results: name of the training set -> one result for each seed.
        score_maps: name of the training set -> maps [N,H,W] of the first seed on the test set.
        losses: name of the training set -> loss of each step of the first seed.
        seconds: wall time of everything.
    """

    settings: LocalizerSettings
    seeds: tuple[int, ...]
    results: dict[str, list[LocalizationResult]] = field(default_factory=dict)
    score_maps: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0

    def mean(self, training_set: str, metric: str) -> float:
        """Mean over the seeds; NaN where the metric is undefined."""
        return statistics.fmean(getattr(result, metric) for result in self.results[training_set])

    def spread(self, training_set: str, metric: str) -> float:
        """Sample standard deviation over the seeds; NaN for a single seed."""
        values = [getattr(result, metric) for result in self.results[training_set]]
        if len(values) < 2 or any(math.isnan(value) for value in values):
            return float("nan")
        return statistics.stdev(values)

    def markdown(self) -> str:
        """A table of mean and spread, one row for each training set."""
        lines = [
            "| trained on | " + " | ".join(_HEADINGS[metric] for metric in METRICS) + " |",
            "|---" * (len(METRICS) + 1) + "|",
        ]
        for name in self.results:
            cells = [_cell(self.mean(name, metric), self.spread(name, metric)) for metric in METRICS]
            lines.append(f"| {self._row_name(name)} | " + " | ".join(cells) + " |")
        s = self.settings
        lines.append("")
        lines.append(
            f"{len(self.seeds)} seeds, mean +- sample standard deviation; network of width {s.width} at {s.size} px, "
            f"{s.steps} steps of {s.batch_size}, last step kept, nothing chosen by the test set."
        )
        return "\n".join(lines)

    def _row_name(self, training_set: str) -> str:
        if training_set == WITH and self.settings.generated_share == 1:
            return "generated pairs alone"
        return _ROW_NAMES.get(training_set, training_set)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the maps, as plain values for JSON (None for undefined)."""
        sets: dict[str, Any] = {}
        for name, results in self.results.items():
            sets[name] = {
                "runs": [{"seed": seed, **result.as_dict()} for seed, result in zip(self.seeds, results, strict=True)],
                "mean": {metric: _defined(self.mean(name, metric)) for metric in METRICS},
                "spread": {metric: _defined(self.spread(name, metric)) for metric in METRICS},
            }
        return {"settings": asdict(self.settings), "seeds": list(self.seeds), "seconds": self.seconds, "sets": sets}


def compare(
    few_real: Pairs,
    generated: Pairs,
    normals: Tensor,
    test_images: Tensor,
    test_masks: Tensor,
    settings: LocalizerSettings,
    seeds: Sequence[int] = (0, 1, 2),
    on_step: Callable[[ComparisonStep], None] | None = None,
    device: torch.device | str = "cpu",
) -> Comparison:
    """Train without and with the generated pairs (same net, budget, augmentation and seeds) and test both.

    "without" draws its defects from `few_real`; "with" draws `settings.generated_share` of them from `generated`.

    Args:
        few_real, generated, normals: see `train_localizer`; `seeds` replace the seed of the settings.
        test_images, test_masks: see `evaluate_localizer`; used after the training only.
        on_step: called after each training step; an exception in it passes on.

    Raises:
        InputError: no real or no generated pairs, no seeds, or what `train_localizer` refuses.
    """
    for label, pairs in (("few real pairs", few_real), ("generated pairs", generated)):
        if not any(len(images) for images, _ in pairs.values()):
            raise InputError(f"{label}: none. The comparison needs both kinds.")
    if not seeds:
        raise InputError("seeds: none. Give at least one, three for a spread.")
    started = time.monotonic()
    comparison = Comparison(settings, tuple(seeds))
    runs = [(name, extra, seed) for name, extra in ((WITHOUT, None), (WITH, generated)) for seed in seeds]
    for number, (name, extra, seed) in enumerate(runs):
        losses: list[float] = []
        report = _reporter(losses, on_step, number * settings.steps, len(runs) * settings.steps, name, seed)
        model = train_localizer(few_real, normals, replace(settings, seed=seed), extra, report, device)
        result, maps = evaluate_localizer(model, test_images, test_masks, size=settings.size)
        comparison.results.setdefault(name, []).append(result)
        comparison.score_maps.setdefault(name, maps)
        comparison.losses.setdefault(name, losses)
    comparison.seconds = time.monotonic() - started
    return comparison


def _reporter(
    losses: list[float],
    on_step: Callable[[ComparisonStep], None] | None,
    done: int,
    total: int,
    name: str,
    seed: int,
) -> Callable[[LocalizerStep], None]:
    def report(step: LocalizerStep) -> None:
        losses.append(step.loss)
        if on_step is not None:
            on_step(ComparisonStep(done + step.step, total, name, seed, step.loss))

    return report


def _cell(mean: float, spread: float) -> str:
    if math.isnan(mean):
        return "undefined"
    return f"{mean:.3f}" if math.isnan(spread) else f"{mean:.3f} +- {spread:.3f}"


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value
