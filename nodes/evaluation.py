"""Evaluate Localization: does a detector find real defects better with the generated pairs?"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

import torch
from comfy_api.latest import io
from torch import Tensor

from ..anomalydiffusion_core.data.mvtec import AnomalyDataset, load_images, load_pairs
from ..anomalydiffusion_core.data.pictures import read_image, read_mask, write_image
from ..anomalydiffusion_core.errors import InputError
from ..anomalydiffusion_core.export import ExportedPair, load_exported, load_exported_tensors
from ..anomalydiffusion_core.localization.comparison import WITH, WITHOUT, Comparison, ComparisonStep, compare
from ..anomalydiffusion_core.localization.training import LocalizerSettings
from ..anomalydiffusion_core.sheets import contact_sheet, heat_map
from . import host
from .sockets import CATEGORY, Dataset, shown

ROWS_SHOWN = 8


class EvaluateLocalization(io.ComfyNode):
    """One small detector trained without and with the pairs, tested on held-out real defects."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionEvaluateLocalization",
            display_name="Evaluate Localization",
            category=f"{CATEGORY}/evaluation",
            description=(
                "Trains a segmentation network on the few real training pairs and normals, then anew with the "
                "generated pairs added, on several seeds, and tests both on the real defects kept for testing. The "
                "test set chooses nothing."
            ),
            inputs=[
                Dataset.Input("dataset", tooltip="Gives normals, the few training pairs, and the test set."),
                io.String.Input(
                    "pairs",
                    default="",
                    tooltip="Folder of pairs: from Export Pairs, absolute, or relative to ComfyUI's output folder.",
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
            ],
            outputs=[
                io.String.Output("table", display_name="table", tooltip="Mean and spread of all metrics, Markdown."),
                io.Image.Output(
                    "heat_maps",
                    display_name="heat maps",
                    tooltip="Test picture, mask, heat map without and with the generated pairs.",
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
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, dataset: AnomalyDataset, pairs: str, runs: int, seed: int, folder: str, **options: int | float | bool
    ) -> io.NodeOutput:
        settings = LocalizerSettings(**options)  # type: ignore[arg-type]
        settings.check()
        pairs_folder = host.readable_folder(pairs, "pairs", host.output_root())
        exported = load_exported(pairs_folder)
        tests = _test_set(dataset, settings.size)
        comparison = compare(
            {kind.key: load_pairs(kind.train, settings.size) for kind in dataset.types},
            load_exported_tensors(exported, settings.size),
            load_images(dataset.normals, settings.size, dataset.bits),
            tests.images,
            tests.masks,
            settings,
            range(seed, seed + runs),
            _reporter(2 * runs * settings.steps),
            host.compute_device(),
        )
        table, heat_sheet = comparison.markdown(), _heat_sheet(comparison, tests)
        pair_sheet = _pair_sheet(exported, comparison, tests)
        measured = comparison.as_dict()
        maps = [{"file": f"heat_maps/{i:03d}.png", "kind": tests.keys[j]} for i, j in enumerate(tests.shown())]
        metrics = {
            **measured.pop("sets"),
            **measured,
            "heat_maps": maps,
            "object": dataset.object,
            "generated_pairs": len(exported),
            "test_defects": len(tests.keys),
            "test_normals": len(tests.images) - len(tests.keys),
            "pairs_folder": host.relative_to_output(pairs_folder),
        }
        with host.new_output_folder(folder) as (draft, final):
            _write(draft, table, metrics, {"contact_sheet": pair_sheet, "heat_maps": heat_sheet})
            for entry, place in zip(maps, tests.shown(), strict=True):
                write_image(draft / entry["file"], heat_map(comparison.score_maps[WITH][place], tests.images[place]))
        where = host.relative_to_output(final)
        images = [host.output_picture(final / name) for name in ("contact_sheet.png", "heat_maps.png")]
        return io.NodeOutput(
            table,
            host.to_host_images(heat_sheet),
            host.to_host_images(pair_sheet),
            json.dumps(metrics),
            final.as_posix(),
            ui={**shown(table, evaluation_folder=[where], metrics=[json.dumps(metrics)]), "images": images},
        )


@dataclass(frozen=True)
class _TestSet:
    """Test pictures [N, 3, s, s] and masks; the defects come first, ``keys`` are their types."""

    images: Tensor
    masks: Tensor
    keys: tuple[str, ...]

    def shown(self) -> list[int]:
        """Places of a few defects, types in turn."""
        places = [[i for i, key in enumerate(self.keys) if key == kind] for kind in dict.fromkeys(self.keys)]
        mixed = chain.from_iterable(zip_longest(*places))
        return [place for place in mixed if place is not None][:ROWS_SHOWN]


def _test_set(dataset: AnomalyDataset, size: int) -> _TestSet:
    """Raises InputError when no defect was kept for testing."""
    parts = [(kind.key, *load_pairs(kind.test, size)) for kind in dataset.types if kind.test]
    if not parts:
        raise InputError(f"dataset: no defect picture of {dataset.object} is kept for testing. Choose another split.")
    images, masks = [part[1] for part in parts], [part[2] for part in parts]
    if dataset.test_normals:
        good = load_images(dataset.test_normals, size, dataset.bits)
        images, masks = [*images, good], [*masks, torch.zeros_like(good[:, :1])]
    keys = tuple(key for key, part, _ in parts for _ in part)
    return _TestSet(torch.cat(images), torch.cat(masks), keys)


def _reporter(total: int) -> Callable[[ComparisonStep], None]:
    """Moves the progress bar, and lets the user interrupt, at every training step."""
    progress = host.Progress(total)
    return lambda step: progress.at(step.done)


def _heat_sheet(comparison: Comparison, tests: _TestSet) -> Tensor:
    rows: list[list[Tensor | None]] = []
    for place in tests.shown():
        maps = [heat_map(comparison.score_maps[name][place], tests.images[place]) for name in (WITHOUT, WITH)]
        rows.append([tests.images[place], tests.masks[place], *maps])
    titles = [tests.keys[place] for place in tests.shown()]
    return contact_sheet(rows, ["test picture", "mask", "without pairs", "with pairs"], titles)


def _pair_sheet(exported: Sequence[ExportedPair], comparison: Comparison, tests: _TestSet) -> Tensor:
    """Normal, mask, generated picture, and the heat map of a test picture of the same type where there is one."""
    kinds = dict.fromkeys(pair.key for pair in exported)
    by_kind = [[pair for pair in exported if pair.key == kind] for kind in kinds]
    chosen = [pair for pair in chain.from_iterable(zip_longest(*by_kind)) if pair is not None][:ROWS_SHOWN]
    waiting = {kind: [i for i, key in enumerate(tests.keys) if key == kind] for kind in kinds}
    rows: list[list[Tensor | None]] = []
    for pair in chosen:
        normal = None if pair.normal is None else read_image(pair.normal)
        row = [normal, read_mask(pair.mask), read_image(pair.image), None]
        if waiting[pair.key]:
            place = waiting[pair.key].pop(0)
            row[3] = heat_map(comparison.score_maps[WITH][place], tests.images[place])
        rows.append(row)
    titles = ["normal", "mask", "generated", "heat map (test)"]
    return contact_sheet(rows, titles, [pair.key for pair in chosen])


def _write(folder: Path, table: str, metrics: dict[str, object], sheets: dict[str, Tensor]) -> None:
    (folder / "table.md").write_text(table + "\n", encoding="utf-8", newline="\n")
    (folder / "evaluation.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8", newline="\n")
    for name, sheet in sheets.items():
        write_image(folder / f"{name}.png", sheet)
