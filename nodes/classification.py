"""Evaluate Classification: does a classifier that learned from generated pictures name real defects?"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..anomalydiffusion_core.data.generated import GeneratedImage, load_generated, method_name, of_object
from ..anomalydiffusion_core.data.images import read_image, resize_image, write_image
from ..anomalydiffusion_core.data.mvtec import AnomalyDataset, DefectPair, load_images
from ..anomalydiffusion_core.errors import InputError
from ..anomalydiffusion_core.evaluation.classification import (
    ARCHITECTURES,
    Classification,
    ClassifierSettings,
    ClassifierStep,
    classify,
    confusion_picture,
)
from ..anomalydiffusion_core.evaluation.classification.records import classification_record
from ..anomalydiffusion_core.evaluation.tables.records import FILE_NAME, REAL_AND_GENERATED, write_records
from .host import folders, tensors
from .host import results as host_results
from .host.progress import Progress, compute_device
from .sockets import CATEGORY, Dataset, shown

GENERATED, FEW_REAL, BOTH = TRAINING_SETS = ("generated", "few real", "both")
RECORD_SETS = {GENERATED: GENERATED, FEW_REAL: FEW_REAL, BOTH: REAL_AND_GENERATED}
RESULT = "classification.json"
PICTURE = "confusion.png"


class EvaluateClassification(io.ComfyNode):
    """A ResNet learns the defect types from generated pictures and is tested on held-out real ones."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionEvaluateClassification",
            display_name="Evaluate Classification",
            category=f"{CATEGORY}/evaluation",
            description=(
                "Trains a ResNet to tell the defect types apart, on several seeds, and counts which real defects kept "
                "for testing it recognises. The test set chooses nothing. The same evaluation is not computed twice."
            ),
            inputs=[
                Dataset.Input("dataset", tooltip="Gives the few training pictures and the test set."),
                io.String.Input(
                    "pairs",
                    default="",
                    multiline=True,
                    tooltip=(
                        "Folders of generated pictures, one a line, taken together: absolute, or relative to "
                        "ComfyUI's output folder. Masks are not needed."
                    ),
                ),
                io.Combo.Input(
                    "training_set",
                    options=list(TRAINING_SETS),
                    default=GENERATED,
                    tooltip="What the network learns from: generated pictures, the few real ones, or both.",
                ),
                io.Combo.Input(
                    "architecture",
                    options=list(ARCHITECTURES),
                    default="ResNet-34",
                    tooltip="ResNet-34 in the text of the paper, ResNet-18 in the caption of its Table 4.",
                ),
                io.Int.Input(
                    "size", default=256, min=32, max=1024, step=32, tooltip="Side of the pictures in pixels."
                ),
                io.Int.Input(
                    "width", default=64, min=1, max=256, tooltip="Channels of the first stage; 64 in the paper."
                ),
                io.Int.Input("steps", default=1000, min=1, max=1000000, tooltip="Training steps of each network."),
                io.Int.Input("batch_size", default=8, min=2, max=256, tooltip="Pictures in each step."),
                io.Float.Input(
                    "learning_rate",
                    default=0.0001,
                    min=0.0,
                    max=1.0,
                    step=0.0001,
                    round=False,
                    tooltip="Learning rate of Adam.",
                ),
                io.Boolean.Input("flips", default=False, tooltip="Mirror the training pictures."),
                io.Boolean.Input("rotations", default=False, tooltip="Turn the training pictures by quarter turns."),
                io.Int.Input("runs", default=3, min=1, max=20, tooltip="Networks, for mean and spread."),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**31 - 1, tooltip="Seed of the first run; the next use +1."
                ),
                io.String.Input(
                    "weights",
                    default="",
                    tooltip=(
                        "File of pretrained weights in torchvision's layout, such as resnet34-b627a593.pth, or empty "
                        "for random ones. Nothing is downloaded."
                    ),
                ),
                io.String.Input(
                    "method", default="", tooltip="Name in tables. Empty takes it from the manifest or the folder."
                ),
                io.String.Input(
                    "folder",
                    default="anomalydiffusion/classification",
                    tooltip="Name of the folder inside ComfyUI's output folder; a number is added.",
                ),
            ],
            outputs=[
                io.String.Output("table", display_name="table", tooltip="Accuracy of all seeds, Markdown."),
                io.Image.Output(
                    "confusion", display_name="confusion matrix", tooltip="True against recognised types, all seeds."
                ),
                io.String.Output("metrics", display_name="metrics", tooltip="All runs and their settings as JSON."),
                io.String.Output(
                    "result_folder", display_name="result folder", tooltip="The folder with all of this."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        dataset: AnomalyDataset,
        pairs: str,
        training_set: str,
        runs: int,
        seed: int,
        weights: str,
        method: str,
        folder: str,
        **options: Any,
    ) -> io.NodeOutput:
        file = Path(weights.strip()).expanduser() if weights.strip() else None
        settings = ClassifierSettings(**options, weights=file)
        settings.check()
        chosen = [] if training_set == FEW_REAL else host_results.pairs_folders(pairs)
        pictures = {path: load_generated(path) for path in chosen}
        names = [method_name(path, found) for path, found in pictures.items()]
        name = method.strip() or " + ".join(dict.fromkeys(names)) or FEW_REAL
        seeds = range(seed, seed + runs)
        key = host_results.content_key(
            "classification 2",
            dataset.fingerprint(),
            [folders.folder_fingerprint(path) for path in chosen],
            [training_set, name, vars(settings), list(seeds), host_results.file_stamp(file)],
        )
        found = host_results.find_result(folder, RESULT, key)
        if found is not None:
            return _output(*found, again=True)
        tests = _real(dataset, "test", settings.size)
        own = [picture for part in pictures.values() for picture in of_object(part, dataset.object)]
        generated = _generated(own, tests, settings.size)
        training = _training_set(training_set, generated, dataset, settings.size)
        report = _reporter(runs, settings.steps)
        result = classify(training, tests, settings, seeds, report, compute_device())
        stored = {
            **result.as_dict(),
            "object": dataset.object,
            "method": name,
            "training_set": training_set,
            "training_pictures": {kind: len(part) for kind, part in training.items()},
            "test_pictures": {kind: len(part) for kind, part in tests.items()},
            "pairs_folders": [folders.relative_to_output(path) for path in chosen],
            host_results.CONTENT_KEY: key,
        }
        with folders.new_output_folder(folder) as (draft, final):
            _write(draft, result, stored)
            trained_on = RECORD_SETS[training_set]
            count = sum(len(part) for part in training.values())
            write_records(draft / FILE_NAME, [classification_record(result, dataset, name, trained_on, count)])
        return _output(final, stored)


def _real(dataset: AnomalyDataset, part: str, size: int) -> dict[str, Tensor]:
    """Training or test pictures by defect; types without any are left out. Raises InputError when none has."""
    chosen: dict[str, tuple[DefectPair, ...]] = {kind.defect: getattr(kind, part) for kind in dataset.types}
    if not any(chosen.values()):
        raise InputError(f"dataset: no defect picture of {dataset.object} is in its {part} set. Choose another split.")
    return {
        defect: load_images([pair.image_path for pair in pairs], size, dataset.bits)
        for defect, pairs in chosen.items()
        if pairs
    }


def _generated(pictures: Sequence[GeneratedImage], tests: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """Generated pictures by defect, of the types that are tested."""
    found: dict[str, list[Tensor]] = {}
    for picture in pictures:
        if picture.defect in tests:
            pixels = read_image(picture.image)[None]
            found.setdefault(picture.defect, []).append(resize_image(pixels, size))
    return {kind: torch.cat(parts) for kind, parts in found.items()}


def _training_set(which: str, generated: dict[str, Tensor], dataset: AnomalyDataset, size: int) -> dict[str, Tensor]:
    if which == GENERATED:
        return generated
    real = _real(dataset, "train", size)
    if which == FEW_REAL:
        return real
    return {
        kind: torch.cat([part[kind] for part in (real, generated) if kind in part])
        for kind in dict.fromkeys([*real, *generated])
    }


def _reporter(runs: int, steps: int) -> Callable[[int, ClassifierStep], None]:
    """Moves the progress bar, and lets the user interrupt, at every training step."""
    progress = Progress(runs * steps)
    return lambda run, step: progress.at(run * steps + step.step)


def _write(folder: Path, result: Classification, stored: dict[str, Any]) -> None:
    host_results.write_json(folder / RESULT, stored)
    (folder / "table.md").write_text(_table(stored) + "\n", encoding="utf-8", newline="\n")
    rows = [[stored["object"], stored["method"], run.seed, run.accuracy] for run in result.runs]
    host_results.write_csv(folder / "classification.csv", ["object", "method", "seed", "accuracy"], rows)
    title = f"{stored['object']}, {stored['method']}, {len(result.runs)} seeds"
    write_image(folder / PICTURE, confusion_picture(result.confusion, result.types, title))


def _table(stored: dict[str, Any]) -> str:
    spread = stored["spread"]["accuracy"]
    cell = f"{stored['metrics']['accuracy']:.2%}" + ("" if spread is None else f" +- {spread:.2%}")
    budget, counts = stored["budget"], stored["training_pictures"]
    recalls = [
        f"{kind} {row[place] / max(sum(row), 1):.0%}"
        for place, (kind, row) in enumerate(zip(stored["types"], stored["confusion"], strict=True))
    ]
    return "\n".join(
        [
            "| object | method | trained on | accuracy |",
            "|---|---|---|---|",
            f"| {stored['object']} | {stored['method']} | {stored['training_set']} | {cell} |",
            "",
            f"{len(stored['seeds'])} seeds, mean +- sample standard deviation, over all "
            f"{sum(stored['test_pictures'].values())} test pictures at once; {budget['architecture']} of width "
            f"{budget['width']} at {budget['size']} px, weights {budget['weights']}, {budget['steps']} steps of "
            f"{budget['batch_size']}, last step kept, nothing chosen by the test set.",
            f"Recognised: {', '.join(recalls)}. Trained on {', '.join(f'{n} {kind}' for kind, n in counts.items())}.",
        ]
    )


def _output(folder: Path, stored: dict[str, Any], again: bool = False) -> io.NodeOutput:
    where = folders.relative_to_output(folder)
    table = _table(stored)
    text = f"{table}\n\nRead again from {where}: the same evaluation was made before." if again else table
    picture = tensors.to_host_images(read_image(folder / PICTURE))
    metrics = json.dumps(stored)
    ui = {
        **shown(text, result_folder=[where], metrics=[metrics]),
        "images": [folders.output_image(folder / PICTURE)],
    }
    return io.NodeOutput(table, picture, metrics, folder.as_posix(), ui=ui)
