"""Evaluate Classification as a whole: from a data set and folders of generated images to a result folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.generated import generated_marks, load_folders
from ...data.images import read_image, resize_image
from ...data.mvtec import AnomalyDataset, DefectPair, load_images
from ...data.provenance import Mark, held_out_marks, plain_marks, training_marks
from ...devices import check_images_fit
from ...errors import InputError
from ...files import content_key
from ...progress import MakeProgress
from ...reading import file_stamp, folder_fingerprint
from ..overlap import MARK, check_types, found_overlaps
from ..results import Evaluation, Measured
from ..settings import BOTH, FEW_REAL, GENERATED, ClassifierData, ClassifierSettings, OverlapSettings, RunSettings
from ..tables.records import REAL_AND_GENERATED
from .evaluation import classify, confusion_image
from .tiles import tile_recognizer, training_windows, window_count

_PLANES = 6
"""Values of a pixel of an image: three, once more while the types are put together."""


def _seen(settings: ClassifierSettings) -> dict[str, Any]:
    """The settings that count: with whole images there is no scale of tiles."""
    return {k: v for k, v in vars(settings).items() if settings.tiled or k not in ("view", "tile_scale")}


def _tiles_text(budget: Mapping[str, Any]) -> str:
    if "tile_scale" not in budget:
        return ""
    return f" on tiles of {budget['size'] * budget['tile_scale']:.0f} image px"


class ClassificationTable(Evaluation):
    """Classifiers trained on generated images, real ones or both, one for each seed, tested on held-out real ones."""

    kind = "classification"
    image = "confusion.png"

    def __init__(
        self,
        dataset: AnomalyDataset,
        folders: Sequence[Path],
        data: ClassifierData,
        settings: ClassifierSettings,
        runs: RunSettings,
        overlap: OverlapSettings | None = None,
    ) -> None:
        """`folders`: of generated images, used together; none for few real images.

        Raises InputError for a folder without images.
        """
        self.dataset, self.data, self.settings, self.seeds = dataset, data, settings, runs.seeds
        self.allowed = overlap is not None and overlap.allow_overlap
        self.folders = list(folders) if data.uses_generated else []
        self._generated, method = load_folders(self.folders, dataset.object, data.method)
        self.method = method or FEW_REAL
        self.key = content_key(
            "classification 2",
            dataset.fingerprint(),
            [folder_fingerprint(path) for path in self.folders],
            [data.training_set, self.method, _seen(settings), list(self.seeds), file_stamp(settings.weights)],
            *(["overlap"] if self.allowed else []),
        )

    def measure(self, progress: MakeProgress, device: torch.device | str) -> Measured:
        """Train and test one network for each seed."""
        learned, leaks, tested = self._check()
        self._check_memory()
        bar = progress(len(self.seeds) * self.settings.steps)
        tests: Mapping[str, Sequence[DefectPair] | Tensor]
        if self.settings.tiled:
            tests = chosen = self._pairs("test")
            real = {} if self.data.training_set == GENERATED else self._pairs("train")
            generated = [one for one in self._generated if one.defect in chosen]
            training = training_windows(self.dataset, real, generated, self.settings)
            recognize = tile_recognizer(chosen, self.settings)
            result = classify(training, tests, self.settings, self.seeds, bar.step, device, recognize)
        else:
            tests = images = self._real("test")
            training = self._training_images(images)
            result = classify(training, images, self.settings, self.seeds, bar.step, device)
        figures = {
            **result.as_dict(),
            "object": self.dataset.object,
            "method": self.method,
            "training_set": self.data.training_set,
            "leaks": leaks,
            "leak_note": f"{MARK}: learned from {len(leaks)} of {tested} test images. " if leaks else "",
            "training_pictures": {kind: len(part) for kind, part in training.items()},
            "test_pictures": {kind: len(part) for kind, part in tests.items()},
        }
        lines = [[self.dataset.object, self.method, run.seed, run.accuracy] for run in result.runs]
        title = f"{self.dataset.object}, {self.method}, {len(result.runs)} seeds"
        image = confusion_image(result.confusion, result.types, title)
        trained_on = REAL_AND_GENERATED if self.data.training_set == BOTH else self.data.training_set
        count = sum(len(part) for part in training.values())
        record = result.to_record(self.dataset, self.method, trained_on, count)
        set_to = {name: str(v) if isinstance(v, Path) else v for name, v in _seen(self.settings).items()}
        record = replace(record, learned_from=learned, leaks=leaks, settings={"classifier": set_to})
        return Measured(figures, [["object", "method", "seed", "accuracy"], *lines], image, record)

    def table(self, figures: dict[str, Any]) -> str:
        """Accuracy with its spread, and what was trained and tested."""
        spread = figures["spread"]["accuracy"]
        cell = f"{figures['metrics']['accuracy']:.2%}" + ("" if spread is None else f" +- {spread:.2%}")
        budget, counts = figures["budget"], figures["training_pictures"]
        recalls = [
            f"{kind} {row[place] / max(sum(row), 1):.0%}"
            for place, (kind, row) in enumerate(zip(figures["types"], figures["confusion"], strict=True))
        ]
        return "\n".join(
            [
                "| object | method | trained on | accuracy |",
                "|---|---|---|---|",
                f"| {figures['object']} | {figures['method']} | {figures['training_set']} | {cell} |",
                "",
                figures.get("leak_note", "")
                + f"{len(figures['seeds'])} seeds, mean +- sample standard deviation, over all "
                f"{sum(figures['test_pictures'].values())} test images at once; {budget['architecture']} of width "
                f"{budget['width']} at {budget['size']} px{_tiles_text(budget)}, weights {budget['weights']}, "
                f"{budget['steps']} steps of {budget['batch_size']}, last step kept, nothing chosen by the test set.",
                f"Recognized: {', '.join(recalls)}. "
                f"Trained on {', '.join(f'{n} {kind}' for kind, n in counts.items())}.",
            ]
        )

    def _check(self) -> tuple[dict[str, Any], list[str], int]:
        """What is learned from as plain marks, the test images among it, and how many are tested.

        Raises InputError for such images unless they are allowed, and for generated types that nobody knows.
        """
        learned: dict[str, Mark] = {}
        if self.data.training_set != GENERATED:
            learned |= training_marks(self.dataset)
        learned |= generated_marks(self.folders, self.dataset.object)
        keys = [f"{one.object}/{one.defect}" for one in self._generated]
        check_types(self.dataset, keys, self.method, any(one.record for one in self._generated))
        tests = held_out_marks(self.dataset, normals=False)
        found = found_overlaps({self.method: learned}, tests, self.allowed)
        leaks = [one.describe() for same in found.values() for one in same]
        return plain_marks(learned), leaks, len(tests)

    def _pairs(self, part: str) -> dict[str, tuple[DefectPair, ...]]:
        """Training or test pairs by defect, without empty types. Raises InputError when there are none."""
        dataset = self.dataset
        chosen: dict[str, tuple[DefectPair, ...]] = {kind.defect: getattr(kind, part) for kind in dataset.types}
        if not any(chosen.values()):
            raise InputError(f"dataset: the {part} set of {dataset.object} has no defect image. Choose another split.")
        return {defect: pairs for defect, pairs in chosen.items() if pairs}

    def _real(self, part: str) -> dict[str, Tensor]:
        """Training or test images by defect, as `_pairs`."""
        return {
            defect: load_images([pair.image_path for pair in pairs], self.settings.size, self.dataset.bits)
            for defect, pairs in self._pairs(part).items()
        }

    def _check_memory(self) -> None:
        count = len(self._generated) + sum(len(kind.train) + len(kind.test) for kind in self.dataset.types)
        if self.settings.tiled:
            count = window_count(len(self._generated) + sum(len(kind.train) for kind in self.dataset.types))
        check_images_fit("size", count, (self.settings.size, self.settings.size), _PLANES)

    def _training_images(self, tests: dict[str, Tensor]) -> dict[str, Tensor]:
        """Images to train on by defect, the generated ones of the types that are tested."""
        found: dict[str, list[Tensor]] = {}
        if self.data.training_set != GENERATED:
            found = {kind: [part] for kind, part in self._real("train").items()}
        for one in self._generated:
            if one.defect in tests:
                pixels = read_image(one.image, one.bits)[None]
                found.setdefault(one.defect, []).append(resize_image(pixels, self.settings.size))
        return {kind: torch.cat(parts) for kind, parts in found.items()}
