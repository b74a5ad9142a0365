"""Localization of several objects: each has detectors of its own, as in the paper, and a table of their mean."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ...data.merging import objects_of
from ...data.mvtec import AnomalyDataset
from ...errors import InputError
from ...figures import stacked
from ...progress import MakeProgress, Quiet
from ..settings import LocalizerSettings
from .rows import Row
from .runs import Run, RunStore
from .sources import PairSource
from .summary import Comparison, RowResult
from .table import IMAGES, Report, evaluate_localization
from .testing import METRICS, LocalizationResult

MEAN_FILES = ("table.md", "results.csv", *IMAGES)


@dataclass(frozen=True)
class ObjectsReport(Report):
    """The mean of several objects, and in ``parts`` the report of each; sheets of all below each other."""

    parts: dict[str, Report] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the mean into the folder and each object, with its records, into a folder of its own below it."""
        Report.write(replace(self, records=[]), folder)
        for name, part in self.parts.items():
            (folder / name).mkdir()
            part.write(folder / name)


def evaluate_objects(
    dataset: AnomalyDataset,
    rows: Sequence[Row],
    settings: LocalizerSettings,
    seeds: Sequence[int],
    own: PairSource | None,
    store: RunStore,
    progress: MakeProgress = Quiet,
    device: torch.device | str = "cpu",
    **more: Any,
) -> Report:
    """`evaluate_localization`, of one object or of each object of a merged data set and their mean.

    Pairs count for the object that they name. Raises InputError as it does, for pairs that do not name their object,
    and for an object without pairs of a row.
    """
    objects = objects_of(dataset)
    if len(objects) == 1:
        return evaluate_localization(objects[0], rows, settings, seeds, own, store, progress, device, **more)
    names = [one.object for one in objects]
    chosen = {name: [_row_of(row, name, names) for row in rows] for name in names}  # all checked before any training
    shown = {name: None if own is None else _pairs_of(own, name, names, "pairs") for name in names}
    reports = {
        one.object: evaluate_localization(
            one, chosen[one.object], settings, seeds, shown[one.object], store, progress, device, **more
        )
        for one in objects
    }
    mean = mean_comparison([report.comparison for report in reports.values()])
    parts = list(reports.values())
    title = f"mean of {len(parts)} objects ({', '.join(names)})"
    figures = {
        **mean.as_dict(),
        "object": title,
        "note": mean.note(),
        "rows": mean.row_records(title),
        "heat_maps": [],
        "objects": {name: report.figures for name, report in reports.items()},
        "reused_runs": mean.reused,
        **{name: value for name, value in more.items() if name == "pairs_folder"},
        "files": list(MEAN_FILES),
    }
    sets = figures.pop("sets")
    tables = [f"{name}\n\n{report.table}" for name, report in reports.items()]
    return ObjectsReport(
        table="\n\n".join([f"{title}\n\n{mean.markdown()}", *tables]),
        csv="".join(
            f"{name}\n{text}" for name, text in [(title, mean.csv()), *((n, r.csv) for n, r in reports.items())]
        ),
        figures={**{name: sets[name] for name in ("without", "with") if name in sets}, **figures},
        records=[record for report in parts for record in report.records],
        heat_maps=stacked([report.heat_maps for report in parts]),
        contact_sheet=stacked([report.contact_sheet for report in parts]),
        curves=stacked([report.curves for report in parts]),
        maps=(),
        comparison=mean,
        parts=reports,
    )


def mean_comparison(comparisons: Sequence[Comparison]) -> Comparison:
    """Run by run the mean of the objects, so that spreads and intervals are those of means; undefined where one is."""
    first = comparisons[0]
    mean = Comparison(first.settings, first.seeds, sets=first.sets)
    mean.seconds, mean.reused = (sum(getattr(one, name) for one in comparisons) for name in ("seconds", "reused"))
    mean.notices = list(dict.fromkeys(notice for one in comparisons for notice in one.notices))
    for results in zip(*(one.rows for one in comparisons), strict=True):
        row = RowResult(results[0].row, results[0].seeds, sets=results[0].sets)
        # each object has sets of its own; those of one number belong together
        names = list(dict.fromkeys(results[0].sets))
        row.sets = tuple(str(names.index(one)) for one in results[0].sets)
        row.leaks = tuple(leak for one in results for leak in one.leaks)
        for runs in zip(*(one.runs for one in results), strict=True):
            values = {name: statistics.fmean(getattr(run.result, name) for run in runs) for name in METRICS}
            result = LocalizationResult(**values)
            row.runs.append(Run(result, torch.empty(0), seconds=math.fsum(run.seconds for run in runs)))
        mean.rows.append(row)
    return mean


def _row_of(row: Row, name: str, names: Sequence[str]) -> Row:
    sets = [_pairs_of(one, name, names, row.label) for one in row.sets]
    return replace(row, pairs=sets[0], more=tuple(sets[1:])) if sets else row


def _pairs_of(source: PairSource, name: str, names: Sequence[str], label: str) -> PairSource:
    """The pairs of one object."""
    own = [key.partition("/")[0] for key in source.keys]
    places = [place for place, one in enumerate(own) if one == name]
    other = sorted(set(own) - set(names))
    if not places or other or source.part is None:
        raise InputError(
            f"pairs: {label} holds {len(places)} pairs of {name}"
            + (f" and some of {', '.join(other)}" if other else "")
            + f". With several objects each needs pairs below its name; the objects are {', '.join(names)}."
        )
    return source.part(places)
