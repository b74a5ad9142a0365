"""Evaluate Localization as a whole, from a data set and exported pairs to a folder of results; no ComfyUI in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .data.mvtec import AnomalyDataset, load_images, load_pairs
from .data.pictures import read_image, read_mask, write_image
from .errors import InputError
from .export import ExportedPair, load_exported_tensors
from .localization.comparison import WITH, WITHOUT, Comparison, ComparisonStep, compare
from .localization.evaluation import METRICS
from .localization.training import LocalizerSettings
from .published import OURS
from .sheets import contact_sheet, heat_map
from .synthetic.fewshot import is_rendered
from .tables.records import (
    FEW_REAL,
    FILE_NAME,
    GENERATED,
    REAL_AND_GENERATED,
    RENDERED,
    ResultRecord,
    write_records,
)

ROWS_SHOWN = 8
PAPER_BUDGET = {"size": 256, "width": 64, "steps": 12600}
"""Pixels, channels and Adam steps of 8 pictures in the authors' evaluation; anything less is a reduced protocol."""
_FILE_NAMES = ("contact_sheet.png", "heat_maps.png")


@dataclass(frozen=True)
class LocalizationReport:
    """Everything that an evaluation has to show.

    Attributes:
        table: mean and spread of all metrics, Markdown.
        metrics: all runs and their settings, plain values for JSON.
        records: the same as rows and columns of the paper's tables.
        heat_sheet, pair_sheet: pictures [3,H,W].
        heat_maps: name of a file below the folder -> picture [3,H,W].
    """

    table: str
    metrics: dict[str, Any]
    records: list[ResultRecord]
    heat_sheet: Tensor
    pair_sheet: Tensor
    heat_maps: dict[str, Tensor]

    def write(self, folder: Path) -> None:
        """Write `table.md`, `evaluation.json`, `results.json`, both sheets and single heat maps into a new folder."""
        (folder / "table.md").write_text(self.table + "\n", encoding="utf-8", newline="\n")
        text = json.dumps(self.metrics, indent=1, allow_nan=False)
        (folder / "evaluation.json").write_text(text + "\n", encoding="utf-8", newline="\n")
        write_records(folder / FILE_NAME, self.records)
        for name, sheet in zip(_FILE_NAMES, (self.pair_sheet, self.heat_sheet), strict=True):
            write_image(folder / name, sheet)
        for name, picture in self.heat_maps.items():
            write_image(folder / name, picture)


def evaluate_pairs(
    dataset: AnomalyDataset,
    exported: Sequence[ExportedPair],
    settings: LocalizerSettings,
    seeds: Sequence[int],
    *,
    method: str = "",
    on_step: Callable[[ComparisonStep], None] | None = None,
    device: torch.device | str = "cpu",
) -> LocalizationReport:
    """Train a detector without and with the pairs and test it on the defects kept for testing, see `compare`.

    Args:
        method: what made the pairs, for the tables; empty finds it out, see `pairs_method`.

    Raises:
        InputError: nothing kept for testing, or what `compare` refuses.
    """
    settings.check()
    tests = _test_set(dataset, settings.size)
    comparison = compare(
        {kind.key: load_pairs(kind.train, settings.size) for kind in dataset.types},
        load_exported_tensors(exported, settings.size),
        load_images(dataset.normals, settings.size, dataset.bits),
        tests.images,
        tests.masks,
        settings,
        seeds,
        on_step,
        device,
    )
    measured = comparison.as_dict()
    shown = {f"heat_maps/{number:03d}.png": place for number, place in enumerate(tests.shown())}
    metrics = {
        **measured.pop("sets"),
        **measured,
        "heat_maps": [{"file": name, "kind": tests.keys[place]} for name, place in shown.items()],
        "object": dataset.object,
        "generated_pairs": len(exported),
        "test_defects": len(tests.keys),
        "test_normals": len(tests.images) - len(tests.keys),
    }
    return LocalizationReport(
        table=comparison.markdown(),
        metrics=metrics,
        records=_records(comparison, dataset, method or pairs_method(exported)),
        heat_sheet=_heat_sheet(comparison, tests),
        pair_sheet=_pair_sheet(exported, comparison, tests),
        heat_maps={
            name: heat_map(comparison.score_maps[WITH][place], tests.images[place]) for name, place in shown.items()
        },
    )


def pairs_method(exported: Sequence[ExportedPair]) -> str:
    """What made the pairs: the method that all lines of the manifest name, "Ours" where Blended AAR KSampler did.

    Else "other method": a folder without a manifest does not say.
    """
    settings = [dict(pair.record.get("settings") or {}) for pair in exported]
    named = {str(entry.get("method") or (OURS if "reweighting" in entry else "")) for entry in settings}
    only = named.pop() if len(named) == 1 else ""
    return only or "other method"


def _records(comparison: Comparison, dataset: AnomalyDataset, method: str) -> list[ResultRecord]:
    settings = asdict(comparison.settings)
    settings.pop("seed")
    # with a share of 1 the second network sees no real defect
    with_pairs = GENERATED if comparison.settings.generated_share == 1 else REAL_AND_GENERATED
    training_sets = {WITHOUT: FEW_REAL, WITH: with_pairs}
    return [
        ResultRecord(
            category=dataset.object,
            method="" if training_sets[name] == FEW_REAL else method,
            training_set=training_sets[name],
            metrics={metric: [getattr(result, metric) for result in results] for metric in METRICS},
            seeds=list(comparison.seeds),
            budget={**settings, "split": dataset.split_rule},
            data=RENDERED if is_rendered(dataset.root / dataset.object) else dataset.root.name,
            reduced=any(settings[key] < least for key, least in PAPER_BUDGET.items()),
        )
        for name, results in comparison.results.items()
    ]


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
