"""The localization table of one object: few real pairs alone, other methods, ours, and few real pairs with ours.

`python benchmarks/bottle_table.py --data DATA --object bottle --out FOLDER --method Crop\\&Paste=PAIRS
--method DRAEM=PAIRS --method ours=PAIRS`

Every PAIRS is a folder of Export Pairs or in the MVTec layout. All rows have the same network, budget, augmentation
and seeds; the split is that of the paper (lowest third trains) and the step kept is the last, unless --selection says
otherwise. A finished network is never trained again and an unfinished one goes on: stop it and call it again with the
same --out, or with more methods or seeds. It may run detached for hours (nohup). Prints the table, in it the numbers
of the paper where they are known, and last a JSON object with the mean pixel AP of each row and its spread.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import finish, show, table

from anomalydiffusion_core.data import load_dataset
from anomalydiffusion_core.errors import AnomalyDiffusionError
from anomalydiffusion_core.localization.evaluation import METRICS
from anomalydiffusion_core.localization.report import write_report
from anomalydiffusion_core.localization.rows import BOTH, FEW_REAL, GENERATED, OURS, Row, named_values, rows_of
from anomalydiffusion_core.localization.selection import LAST_STEP
from anomalydiffusion_core.localization.sources import pairs_folder
from anomalydiffusion_core.localization.store import RunStore
from anomalydiffusion_core.localization.summary import HEADINGS, Comparison, ComparisonStep
from anomalydiffusion_core.localization.table import LocalizationTable
from anomalydiffusion_core.localization.training import LocalizerSettings
from anomalydiffusion_core.published import load_tables

REPORT_SECONDS = 60.0


class Reporter:
    """A line a minute: where it stands, and the time left."""

    def __init__(self) -> None:
        self.started = self.shown = time.monotonic()
        self.first: int | None = None

    def __call__(self, step: ComparisonStep) -> None:
        self.first = step.done - 1 if self.first is None else self.first
        now = time.monotonic()
        if now - self.shown < REPORT_SECONDS and step.done < step.total:
            return
        self.shown = now
        left = (now - self.started) / (step.done - self.first) * (step.total - step.done)
        where = f"{step.training_set}, seed {step.seed}"
        show(f"{where}: step {step.done} of {step.total}, loss {step.loss:.4f}, {left / 60:.0f} min left")


def wanted_rows(methods: dict[str, Any], with_real: list[str]) -> list[Row]:
    """Few real pairs, each method alone, and those named with the few real pairs."""
    unknown = [name for name in with_real if name not in methods]
    if unknown:
        raise typer.BadParameter(f"--with-real {unknown[0]}: there is no --method of this name.")
    rows = rows_of((FEW_REAL, GENERATED, BOTH), methods)
    return [row for row in rows if not (row.real and row.pairs) or row.method.removeprefix("few real + ") in with_real]


def published_figures(name: str, category: str) -> dict[str, float]:
    """What the paper prints for this method and object, as fractions; empty where there is nothing to compare."""
    found: dict[str, float] = {}
    for printed in load_tables():
        if printed.task != "localization":
            continue
        column = next((method for method in printed.methods if method.casefold() == name.casefold()), None)
        if column is None:
            continue
        for metric in printed.metrics:
            value = printed.cell(category, column, metric)
            if value is not None and metric in METRICS:
                found.setdefault(metric, value / printed.scale)
    return found


def print_table(compared: Comparison, category: str) -> None:
    """Mean and spread of each row, with the paper's row below it where there is one."""
    lines = []
    for key in compared.results:
        cells = [(compared.mean(key, metric), compared.spread(key, metric)) for metric in METRICS]
        lines.append([compared.label(key), *(f"{mean:.3f} +- {spread:.3f}" for mean, spread in cells)])
        paper = published_figures(compared.methods[key], category)
        if paper:
            cells_of_paper = [f"{paper[metric]:.3f}" if metric in paper else "" for metric in METRICS]
            lines.append([f"{compared.label(key)}, paper (width 64, 256 px, test set selects)", *cells_of_paper])
    table(["trained on", *(HEADINGS[metric] for metric in METRICS)], lines)


def main(
    data: Annotated[Path, typer.Option(help="Folder that holds the object's folder, in the MVTec layout.")],
    out: Annotated[Path, typer.Option(help="Folder of the runs and of the report.")],
    method: Annotated[list[str], typer.Option(help="NAME=FOLDER of pairs; 'ours' names those under test.")],
    category: Annotated[str, typer.Option("--object", help="Name of the object.")] = "bottle",
    with_real: Annotated[list[str] | None, typer.Option(help="Methods also trained with the few real pairs.")] = None,
    seeds: int = 3,
    size: int = 128,
    width: int = 16,
    steps: int = 600,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    generated_share: float = 0.5,
    flips: bool = True,
    rotations: bool = True,
    selection: str = LAST_STEP,
    device: str = "",
) -> None:
    """Train and test every row, and print the table."""
    settings = LocalizerSettings(
        size, width, steps, batch_size, learning_rate, flips, rotations, generated_share, selection=selection
    )
    try:
        folders = named_values("\n".join(method), "--method")
        sources = {name: pairs_folder(Path(folder)) for name, folder in folders.items()}
        rows = wanted_rows(sources, [OURS] if with_real is None and OURS in sources else with_real or [])
        dataset = load_dataset(data, category)
        target = device or ("cuda" if torch.cuda.is_available() else "cpu")
        built = LocalizationTable(dataset, rows, settings, range(seeds), sources.get(OURS))
        report = built.run(RunStore(out / "runs"), Reporter(), device=target)
        folder = next(path for path in (out / f"report_{n:03d}" for n in range(1, 1000)) if not path.exists())
        folder.mkdir(parents=True)
        write_report(folder, report)
    except AnomalyDiffusionError as error:
        show(f"error: {error}")
        raise typer.Exit(1) from None
    compared, tests, pictures = built.comparison, built.tests, built.pictures
    print_table(compared, category)
    defects = f"{len(tests.keys)} defects and {tests.count - len(tests.keys)} good pictures tested"
    longest = max(second for key in compared.run_seconds for second in compared.run_seconds[key])
    sys.stdout.write(
        f"\n{category}: {pictures.few_real.count} real pairs, {pictures.normals.count} good pictures, {defects}. "
        f"{compared.note()} At most {longest:.0f} s a network on {target}.\nFiles: {folder}\n"
    )
    figures = {f"pixel_ap {compared.methods[key]}": compared.mean(key, "pixel_ap") for key in compared.results}
    if seeds > 1:
        figures |= {f"spread {compared.methods[key]}": compared.spread(key, "pixel_ap") for key in compared.results}
    finish(figures)


if __name__ == "__main__":
    typer.run(main)
