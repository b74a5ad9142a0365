"""Classification of several objects: each has a classifier of its own types, and the table ends with their mean."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...data.generated import load_generated
from ...data.merging import objects_of
from ...data.mvtec import AnomalyDataset
from ...errors import InputError
from ...figures import stacked
from ...files import content_key
from ...progress import MakeProgress, Part, Progress
from ..metrics.detection import defined, spread
from ..results import Evaluation, Measured
from ..settings import ClassifierData, ClassifierSettings, OverlapSettings, RunSettings
from .table import ClassificationTable


def classification_table(
    dataset: AnomalyDataset,
    folders: Sequence[Path],
    data: ClassifierData,
    settings: ClassifierSettings,
    runs: RunSettings,
    overlap: OverlapSettings | None = None,
) -> ClassificationTable | ObjectsClassification:
    """The evaluation of one object, or of each of several. Raises InputError as both."""
    objects = objects_of(dataset)
    if len(objects) == 1:
        return ClassificationTable(objects[0], folders, data, settings, runs, overlap)
    return ObjectsClassification(objects, folders, data, settings, runs, overlap)


class ObjectsClassification(Evaluation):
    """A `ClassificationTable` of each object that has two types to tell apart, and the mean over the objects."""

    kind = "classification"
    image = "confusion.png"

    def __init__(
        self,
        objects: Sequence[AnomalyDataset],
        folders: Sequence[Path],
        data: ClassifierData,
        settings: ClassifierSettings,
        runs: RunSettings,
        overlap: OverlapSettings | None = None,
    ) -> None:
        """Raises InputError for folders that do not say of which object their images are, and without an object."""
        several = [one for one in objects if sum(bool(kind.test) for kind in one.types) > 1]
        if not several:
            raise InputError("types: no object has two types to tell apart. Classification requires two.")
        self.left_out = [one.object for one in objects if one not in several]
        self.folders = list(folders) if data.uses_generated else []
        named = {one.object for one in objects}
        for folder in self.folders:
            if not named & {image.object for image in load_generated(folder)}:
                raise InputError(
                    f"pairs: {folder} holds no images below folders called {', '.join(sorted(named))}. With several "
                    "objects the images must lie below the names of their objects."
                )
        self.parts = [ClassificationTable(one, folders, data, settings, runs, overlap) for one in several]
        self.key = content_key("classification of objects", [part.key for part in self.parts], self.left_out)

    def measure(self, progress: MakeProgress, device: torch.device | str) -> Measured:
        """Train and test the classifiers of all objects, one after the other."""
        steps = sum(len(part.seeds) * part.settings.steps for part in self.parts)
        bar = progress(steps)
        found = {}
        for part in self.parts:
            own = len(part.seeds) * part.settings.steps

            def make(total: int, own: int = own) -> Progress:
                return Part(bar, own, total)

            found[part.dataset.object] = part.measure(make, device)
        figures = [one.figures for one in found.values()]
        means = [
            statistics.fmean(values)
            for values in zip(*([run["accuracy"] for run in one["runs"]] for one in figures), strict=True)
        ]
        seeds = figures[0]["seeds"]
        result = {
            "kind": self.kind,
            "metrics": {"accuracy": statistics.fmean(means)},
            "spread": {"accuracy": defined(spread(means))},
            "seeds": seeds,
            "runs": [{"seed": seed, "accuracy": value} for seed, value in zip(seeds, means, strict=True)],
            "objects": {name: one.figures for name, one in found.items()},
            "left_out": self.left_out,
        }
        lines: list[Sequence[Any]] = [["object", "method", "seed", "accuracy"]]
        lines += [line for one in found.values() for line in one.lines[1:]]
        method = figures[0]["method"]
        lines += [["mean", method, seed, value] for seed, value in zip(seeds, means, strict=True)]
        first, *more = [one.record for one in found.values()]
        return Measured(result, lines, stacked([one.image for one in found.values()]), first, more)

    def table(self, figures: dict[str, Any]) -> str:
        """A line for each object and one for their mean, then what was trained and tested of each."""
        objects: Mapping[str, dict[str, Any]] = figures["objects"]
        own = {part.dataset.object: part.table(objects[part.dataset.object]).split("\n") for part in self.parts}
        head, *_ = own.values()
        deviation = figures["spread"]["accuracy"]
        cell = f"{figures['metrics']['accuracy']:.2%}" + ("" if deviation is None else f" +- {deviation:.2%}")
        method, trained_on = (next(iter(objects.values()))[name] for name in ("method", "training_set"))
        lines = [*head[:2], *(text[2] for text in own.values())]
        lines.append(f"| mean of {len(own)} objects | {method} | {trained_on} | {cell} |")
        lines.append("")
        lines += [f"{name}: {' '.join(text[4:])}" for name, text in own.items()]
        if figures["left_out"]:
            lines.append(f"Left out, with one type only: {', '.join(figures['left_out'])}.")
        return "\n".join(lines)
