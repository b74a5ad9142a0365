"""Evaluate Localization: does a detector find real defects better with the generated pairs?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..anomalydiffusion_core.data.mvtec import AnomalyDataset
from ..anomalydiffusion_core.errors import InputError
from ..anomalydiffusion_core.evaluation.localization.report import Report, write_report
from ..anomalydiffusion_core.evaluation.localization.rows import (
    BOTH,
    BOTH_OURS,
    FEW_REAL,
    OURS,
    TRAINING_SETS,
    named_values,
    rows_of,
)
from ..anomalydiffusion_core.evaluation.localization.selection import AUTHORS_EPOCH, LAST_STEP, SELECTIONS
from ..anomalydiffusion_core.evaluation.localization.settings import LocalizerSettings
from ..anomalydiffusion_core.evaluation.localization.sources import PairSource, pair_tensors, pairs_folder
from ..anomalydiffusion_core.evaluation.localization.store import RunStore
from ..anomalydiffusion_core.evaluation.localization.table import LocalizationTable
from .host import evaluation as host_evaluation
from .host import folders, tensors
from .host.progress import compute_device
from .sockets import CATEGORY, Dataset, shown


class EvaluateLocalization(io.ComfyNode):
    """One small detector trained on different pairs, tested on held-out real defects."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionEvaluateLocalization",
            display_name="Evaluate Localization",
            category=f"{CATEGORY}/evaluation",
            description=(
                "Trains a segmentation network on the few real training pairs and normals, then anew with the "
                "generated pairs added or on those of other methods, on several seeds, and tests all of them on the "
                "real defects kept for testing. Unless told so, the test set chooses nothing. A run is never made "
                "twice."
            ),
            inputs=[
                Dataset.Input("dataset", tooltip="Gives normals, the few training pairs, and the test set."),
                io.String.Input(
                    "pairs",
                    default="",
                    tooltip=(
                        "Folder of pairs: from Export Pairs, absolute, or relative to ComfyUI's output folder. Empty "
                        "when images are connected."
                    ),
                ),
                io.Int.Input(
                    "size",
                    default=256,
                    min=32,
                    max=2048,
                    step=32,
                    tooltip="Side in pixels at which the network is trained and tested.",
                ),
                io.Int.Input("width", default=16, min=1, max=256, tooltip="Channels of the network; 64 in the paper."),
                io.Int.Input("steps", default=200, min=1, max=1000000, tooltip="Training steps of each network."),
                io.Int.Input(
                    "batch_size", default=8, min=2, max=256, tooltip="Pictures in each step, half of them good."
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.001,
                    min=0.0,
                    max=1.0,
                    step=0.0001,
                    round=False,
                    tooltip="Learning rate of Adam.",
                ),
                io.Boolean.Input(
                    "flips", default=True, tooltip="Mirror the training pictures, where that is possible."
                ),
                io.Boolean.Input("rotations", default=True, tooltip="Turn the training pictures by quarter turns."),
                io.Float.Input(
                    "generated_share",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of generated pairs among the defects that the second network sees.",
                ),
                io.Int.Input("runs", default=3, min=1, max=20, tooltip="Networks of each kind, for mean and spread."),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**31 - 1, tooltip="Seed of the first run; the next use +1."
                ),
                io.String.Input(
                    "folder",
                    default="anomalydiffusion/evaluation",
                    tooltip="Name of the folder inside ComfyUI's output folder; a number is added.",
                ),
                io.String.Input(
                    "training_sets",
                    default=f"{FEW_REAL}, {BOTH}",
                    optional=True,
                    tooltip=(
                        f"What networks are trained on, separated by commas: {', '.join(TRAINING_SETS)}. Of generated "
                        f"and both there is one row for each method; {BOTH_OURS} is the row of both for the pairs "
                        "under test alone."
                    ),
                ),
                io.String.Input(
                    "methods",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Folders of pairs of other methods or baselines, one NAME=FOLDER a line.",
                ),
                io.Combo.Input(
                    "selection",
                    options=list(SELECTIONS),
                    default=LAST_STEP,
                    optional=True,
                    tooltip=(
                        "Which step is kept. A validation split holds back a third of the real training pairs and of "
                        "the normals. The authors' rule looks at the test set, and every table then says so."
                    ),
                ),
                io.Int.Input(
                    "check_every",
                    default=AUTHORS_EPOCH,
                    min=1,
                    max=1000000,
                    optional=True,
                    tooltip="Steps between two checks, for any selection but the last step.",
                ),
                io.String.Input(
                    "weights",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip=(
                        "Trained networks that are only tested, one NAME=FILE a line: the authors' .pckl or "
                        ".safetensors, absolute or relative to models/anomalydiffusion."
                    ),
                ),
                io.String.Input(
                    "defect_type",
                    default="",
                    optional=True,
                    tooltip="Type of the connected images as object/defect; connect the list types for several.",
                ),
                io.Image.Input(
                    "images", optional=True, tooltip="Pairs straight from the sampler, in place of a folder."
                ),
                io.Mask.Input("masks", optional=True, tooltip="The masks of the connected images."),
                io.Boolean.Input(
                    "any_angle",
                    default=False,
                    optional=True,
                    tooltip=(
                        "Turn half of the training pictures by any angle, for objects that look the same from all "
                        "sides. What comes in at the corners is mirrored."
                    ),
                ),
            ],
            outputs=[
                io.String.Output("table", display_name="table", tooltip="Mean and spread of all metrics, Markdown."),
                io.Image.Output(
                    "heat_maps",
                    display_name="heat maps",
                    tooltip="Test picture, mask, and the heat map of each row of the table.",
                ),
                io.Image.Output(
                    "contact_sheet",
                    display_name="contact sheet",
                    tooltip="Normal, mask, generated picture, and the heat map of a test picture.",
                ),
                io.String.Output("metrics", display_name="metrics", tooltip="All runs and their settings as JSON."),
                io.String.Output(
                    "evaluation_folder", display_name="evaluation folder", tooltip="The folder with all of this."
                ),
                io.Image.Output(
                    "curves",
                    display_name="curves",
                    tooltip="Loss, precision over recall, and overlap over false positive rate (PRO) of each row.",
                ),
            ],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, pairs: Any = None, methods: Any = None, weights: Any = None, **_: object) -> str:
        # A connected input is not known yet, and an error belongs into execute, where the user sees it.
        try:
            named = [_text(pairs), *named_values(_text(methods), "methods").values()]
            files = [
                host_evaluation.weights_file(text)
                for text in named_values(_text(weights), "weights", "NAME=FILE").values()
            ]
            prints = [folders.folder_fingerprint(_folder(text, "pairs")) for text in named if text.strip()]
            return "|".join([*prints, *(f"{file}|{file.stat().st_mtime_ns}" for file in files)])
        except InputError:
            return ""

    @classmethod
    def execute(
        cls,
        dataset: Any,
        pairs: Any,
        runs: Any,
        seed: Any,
        folder: Any,
        training_sets: Any = f"{FEW_REAL}, {BOTH}",
        methods: Any = "",
        weights: Any = "",
        defect_type: Any = "",
        images: Any = None,
        masks: Any = None,
        **options: Any,
    ) -> io.NodeOutput:
        settings = LocalizerSettings(**{name: _single(name, value) for name, value in options.items()})
        settings.check()
        data: AnomalyDataset = _single("dataset", dataset)
        count, first, name = _single("runs", runs), _single("seed", seed), _single("folder", folder)
        folders.output_path(name)
        sources, where = _methods(_single("pairs", pairs), _text(methods), data.object, images, masks, defect_type)
        files = named_values(_text(weights), "weights", "NAME=FILE")
        networks = {label: host_evaluation.weights_file(text) for label, text in files.items()}
        sets = [part.strip() for part in _single("training_sets", training_sets).split(",") if part.strip()]
        rows = rows_of(sets, sources, networks)
        table = LocalizationTable(data, rows, settings, range(first, first + count), sources.get(OURS))
        progress = host_evaluation.ComparisonProgress(table.preview_picture, table.label)
        store = RunStore(host_evaluation.runs_folder())
        device = compute_device()
        report = table.run(store, progress.on_step, progress.on_test, device, pairs_folder=where)
        with folders.new_output_folder(name) as (draft, final):
            write_report(draft, report)
        return _output(report, final)


def _output(report: Report, final: Path) -> io.NodeOutput:
    metrics, where = json.dumps(report.figures), folders.relative_to_output(final)
    pictures = [folders.output_image(final / f"{name}.png") for name in ("contact_sheet", "heat_maps", "curves")]
    return io.NodeOutput(
        report.table,
        tensors.to_host_images(report.heat_maps),
        tensors.to_host_images(report.contact_sheet),
        metrics,
        final.as_posix(),
        tensors.to_host_images(report.curves),
        ui={**shown(report.table, evaluation_folder=[where], metrics=[metrics]), "images": pictures},
    )


def _methods(
    pairs: str, methods: str, object_name: str, images: Any, masks: Any, defect_type: Any
) -> tuple[dict[str, PairSource], str | None]:
    """Name of each method -> its pairs, and the folder of ours as it is reported."""
    sources: dict[str, PairSource] = {}
    where = None
    if images is not None or masks is not None:
        if pairs.strip():
            raise InputError("pairs: a folder is given and images are connected. Use one of the two.")
        sources[OURS] = _connected(object_name, images, masks, defect_type)
    elif pairs.strip():
        folder = _folder(pairs, "pairs")
        sources[OURS], where = pairs_folder(folder), folders.relative_to_output(folder)
    for name, text in named_values(methods, "methods").items():
        if name in sources:
            raise InputError(f"methods: the name '{name}' stands for the pairs under test. Choose another.")
        sources[name] = pairs_folder(_folder(text, f"methods, {name}"))
    return sources, where


def _connected(object_name: str, images: Any, masks: Any, defect_type: Any) -> PairSource:
    """Batches of pictures and masks from the graph as pairs, by their types."""
    batches, truths = _list(images), _list(masks)
    types = [text.strip() for text in _list(defect_type)] or [""]
    if len(batches) != len(truths) or len(types) not in (1, len(batches)):
        raise InputError(
            f"images: {len(batches)} batches, {len(truths)} of masks and {len(types)} of defect_type. Connect what "
            "belongs to the same samples."
        )
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for place, (batch, truth) in enumerate(zip(batches, truths, strict=True)):
        pictures, inside = tensors.to_core_images(batch, "images"), tensors.to_core_masks(truth, "masks")
        if len(pictures) != len(inside) or pictures.shape[2:] != inside.shape[2:]:
            raise InputError(
                f"masks: {tuple(truth.shape)} for images {tuple(batch.shape)}. Give one of equal size for each image."
            )
        key = types[place % len(types)] or f"{object_name}/generated"
        found.setdefault(key, []).append((pictures, inside))
    return pair_tensors({key: _joined(key, parts) for key, parts in found.items()})


def _joined(key: str, parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    sizes = {tuple(images.shape[2:]) for images, _ in parts}
    if len(sizes) > 1:
        raise InputError(f"images: {key} comes in several sizes {sorted(sizes)}. Connect pictures of one size.")
    return torch.cat([images for images, _ in parts]), torch.cat([masks for _, masks in parts])


def _folder(text: str, name: str) -> Path:
    return folders.readable_folder(text, name, folders.output_root())


def _list(value: Any) -> list[Any]:
    """The entries of an input: ComfyUI gives lists to a node that takes lists."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _single(name: str, value: Any) -> Any:
    entries = _list(value)
    if len(entries) != 1:
        raise InputError(f"{name}: {len(entries)} entries. Connect one.")
    return entries[0]


def _text(value: Any) -> str:
    return "\n".join(entry for entry in _list(value) if entry)
