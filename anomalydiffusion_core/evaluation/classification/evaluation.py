"""Accuracy on held-out real defects over several seeds, and the confusion matrix as a picture."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from .training import ClassifierSettings, ClassifierStep, predict, train_classifier


@dataclass(frozen=True)
class ClassificationRun:
    """One trained network. confusion[i, j]: how many test pictures of type i were taken for type j, [K, K]."""

    seed: int
    confusion: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of all test pictures at once that were recognised, 0 to 1; not a mean of batches or types."""
        return float(np.trace(self.confusion) / self.confusion.sum())


@dataclass
class Classification:
    """Results of one training set. `types` are the classes, in the order of the confusion matrices."""

    types: tuple[str, ...]
    settings: ClassifierSettings
    runs: list[ClassificationRun] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        """Mean accuracy of the seeds."""
        return statistics.fmean(run.accuracy for run in self.runs)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation of the accuracy over the seeds; None for a single one."""
        return statistics.stdev(run.accuracy for run in self.runs) if len(self.runs) > 1 else None

    @property
    def confusion(self) -> np.ndarray:
        """Counts of all seeds together, [K, K], rows are the true types."""
        return np.asarray(sum(run.confusion for run in self.runs))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        budget = {name: value for name, value in asdict(self.settings).items() if name != "seed"}
        budget["weights"] = "random" if self.settings.weights is None else self.settings.weights.name
        return {
            "kind": "classification",
            "metrics": {"accuracy": self.mean},
            "spread": {"accuracy": self.spread},
            "seeds": [run.seed for run in self.runs],
            "runs": [{"seed": run.seed, "accuracy": run.accuracy} for run in self.runs],
            "types": list(self.types),
            "confusion": self.confusion.tolist(),
            "budget": budget,
            "seconds": round(self.seconds, 1),
        }


def classify(
    training: Mapping[str, Tensor],
    tests: Mapping[str, Tensor],
    settings: ClassifierSettings,
    seeds: Sequence[int],
    on_step: Callable[[int, ClassifierStep], None] | None = None,
    device: torch.device | str = "cpu",
) -> Classification:
    """Train one network for each seed and test each on all pictures of ``tests`` at once.

    Args:
        training, tests: defect -> [N,3,s,s] in [0,1]. The types of ``tests`` are the classes.
        on_step: called with the place of the seed and the step; an exception in it passes on.

    Raises:
        InputError: a type without training pictures, no seeds, or what `train_classifier` refuses.
    """
    missing = [name for name in tests if name not in training or not len(training[name])]
    if missing:
        raise InputError(
            f"pairs: hold no pictures of {', '.join(missing)}; there are {', '.join(training) or 'none'}. Every type "
            "that is tested must be trained."
        )
    if not seeds:
        raise InputError("seeds: none. Give at least one, three for a spread.")
    started = time.monotonic()
    result = Classification(tuple(tests), settings)
    images = torch.cat(list(tests.values()))
    truth = np.concatenate([np.full(len(part), place) for place, part in enumerate(tests.values())])
    chosen = {name: training[name] for name in tests}
    for place, seed in enumerate(seeds):
        report = None if on_step is None else _numbered(on_step, place)
        network = train_classifier(chosen, replace(settings, seed=seed), report, device)
        confusion = np.zeros((len(tests), len(tests)), dtype=np.int64)
        np.add.at(confusion, (truth, predict(network, images).numpy()), 1)
        result.runs.append(ClassificationRun(seed, confusion))
    result.seconds = time.monotonic() - started
    return result


def _numbered(on_step: Callable[[int, ClassifierStep], None], place: int) -> Callable[[ClassifierStep], None]:
    return lambda step: on_step(place, step)


def confusion_picture(confusion: np.ndarray, types: Sequence[str], title: str = "") -> Tensor:
    """Counts [K, K] as a picture [3, H, W]: rows are the true types, coloured by their share of the row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = 2.4 + 0.75 * len(types)
    figure = Figure(figsize=(side + 1, side), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(confusion):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(int(count)), ha="center", va="center", color=colour)
    places = range(len(types))
    axes.set_xticks(places, types, rotation=35, ha="right")
    axes.set_yticks(places, types)
    axes.set(title=title, xlabel="recognised as", ylabel="true type")
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(np.float32) / 255.0
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
