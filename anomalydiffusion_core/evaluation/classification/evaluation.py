"""Accuracy on held-out real defects over several seeds, and the confusion matrix as an image."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...data.mvtec import AnomalyDataset
from ...errors import InputError
from ...figures import figure_tensor, new_figure
from ..metrics.detection import defined, spread
from ..settings import ClassifierSettings
from ..tables.records import ResultRecord, to_record
from .training import predict, train_classifier

PAPER_SIZE, PAPER_WIDTH, PAPER_PASSES = 256, 64, 150
"""The authors' code: 256 px, a full ImageNet network, 30 epochs of 5 passes. Anything less is a reduced protocol."""


NO_DEFECT = "no defect"
"""Name of the class of windows of normal images, where the network sees tiles."""


@dataclass(frozen=True)
class ClassificationRun:
    """One trained network. confusion[i, j]: how many test images of type i were recognized as type j, [K, K]."""

    seed: int
    confusion: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of all test images that were recognized, 0 to 1; not a mean of batches or types."""
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
        return defined(spread([run.accuracy for run in self.runs]))

    @property
    def confusion(self) -> np.ndarray:
        """Counts of all seeds together, [K, K], rows are the true types."""
        return np.asarray(sum(run.confusion for run in self.runs))

    @property
    def budget(self) -> dict[str, Any]:
        """The settings without the seed, the weights by name."""
        hidden = {"seed"} if self.settings.tiled else {"seed", "view", "tile_scale"}
        budget = {name: value for name, value in asdict(self.settings).items() if name not in hidden}
        return {**budget, "weights": "random" if self.settings.weights is None else self.settings.weights.name}

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "kind": "classification",
            "metrics": {"accuracy": self.mean},
            "spread": {"accuracy": self.spread},
            "seeds": [run.seed for run in self.runs],
            "runs": [{"seed": run.seed, "accuracy": run.accuracy} for run in self.runs],
            "types": list(self.types),
            "confusion": self.confusion.tolist(),
            "budget": self.budget,
            "seconds": round(self.seconds, 1),
        }

    def to_record(self, dataset: AnomalyDataset, method: str, training_set: str, images: int) -> ResultRecord:
        """The accuracy of each seed, for Results Table (Table 4).

        Args:
            method: what made the images; not used for few real ones.
            training_set: as `ResultRecord` calls it.
            images: how many it was trained on.
        """
        s = self.settings
        small = s.tiled or s.size < PAPER_SIZE or s.width < PAPER_WIDTH or s.weights is None
        short = s.steps * s.batch_size < PAPER_PASSES * images
        accuracies, seeds = [run.accuracy for run in self.runs], [run.seed for run in self.runs]
        metrics = {"accuracy": accuracies}
        return to_record(dataset, method, training_set, metrics, seeds, self.budget, small or short)


def classify(
    training: Mapping[str, Tensor],
    tests: Mapping[str, Sequence[Any] | Tensor],
    settings: ClassifierSettings,
    seeds: Sequence[int],
    on_step: Callable[[], None] = lambda: None,
    device: torch.device | str = "cpu",
    recognize: Callable[[nn.Module], Tensor] | None = None,
) -> Classification:
    """Train one network for each seed and test each on all images of ``tests`` at once.

    Args:
        training, tests: defect -> [N,3,s,s] in [0,1]. The types of ``tests`` are the classes.
        recognize: with tiles a network to the classes of all tests [N] in order; then ``tests`` is anything with their
            numbers, and ``training`` has one more class, NO_DEFECT.
        on_step: called after each training step; an exception in it passes on.

    Raises:
        InputError: a type without training images, no seeds, or what `train_classifier` refuses.
    """
    missing = [name for name in tests if name not in training or not len(training[name])]
    if missing:
        raise InputError(
            f"pairs: no images of {', '.join(missing)}; the types are {', '.join(training) or 'none'}. Every type "
            "that is tested must be trained on."
        )
    if not seeds:
        raise InputError("seeds: none. Give at least one, three for a spread.")
    started = time.monotonic()
    result = Classification(tuple(tests), settings)
    if recognize is None:
        images = torch.cat([part for part in tests.values() if isinstance(part, Tensor)])
        recognize = partial(predict, images=images)
    truth = np.concatenate([np.full(len(part), place) for place, part in enumerate(tests.values())])
    chosen = {name: training[name] for name in [*tests, *([NO_DEFECT] if NO_DEFECT in training else [])]}
    for seed in seeds:
        network = train_classifier(chosen, replace(settings, seed=seed), on_step, device)
        confusion = np.zeros((len(tests), len(tests)), dtype=np.int64)
        np.add.at(confusion, (truth, recognize(network).numpy()), 1)
        result.runs.append(ClassificationRun(seed, confusion))
    result.seconds = time.monotonic() - started
    return result


def confusion_image(confusion: np.ndarray, types: Sequence[str], title: str = "") -> Tensor:
    """Counts [K, K] as an image [3, H, W]: rows are the true types, colored by their share of the row."""
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = 240 + 75 * len(types)
    figure = new_figure((side + 100, side))
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(confusion):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(int(count)), ha="center", va="center", color=color)
    places = range(len(types))
    axes.set_xticks(places, types, rotation=35, ha="right")
    axes.set_yticks(places, types)
    axes.set(title=title, xlabel="recognized as", ylabel="true type")
    return figure_tensor(figure)
