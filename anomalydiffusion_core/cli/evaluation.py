"""Commands about numbers: evaluate pairs without ComfyUI, and gather the results of many runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..data.splits import SplitSettings
from ..errors import InputError
from .errors import plain_errors
from .options import with_settings

if TYPE_CHECKING:
    from ..evaluation.localization import ComparisonStep

Folder = Annotated[Path, typer.Option(help="New folder for the results.")]


@with_settings(splitting=SplitSettings, panels={"splitting": "Data"})
def evaluate(
    pairs: Annotated[Path, typer.Option(help="Folder of pairs: from Export Pairs, or with test/ and ground_truth/.")],
    data: Annotated[Path, typer.Option(help="Folder that holds the category, in the MVTec layout.")],
    category: Annotated[str, typer.Option(help="Name of the category's folder, for example bottle.")],
    out: Folder,
    splitting: SplitSettings,
    method: Annotated[str, typer.Option(help="What made the pairs, for the tables; by default the manifest's.")] = "",
    training_sets: Annotated[
        str, typer.Option(help="Some of none, few real, generated, both, few real + ours, with commas.")
    ] = "few real, both",
    other: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FOLDER", help="Pairs of another method, for rows of its own.")
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FILE", help="A trained network that is only tested.")
    ] = None,
    size: Annotated[int, typer.Option(help="Side in pixels for the network; 256 in the paper.")] = 256,
    width: Annotated[int, typer.Option(help="Channels of the network; 64 in the paper.")] = 16,
    steps: Annotated[int, typer.Option(help="Training steps of each network; 12600 in the paper.")] = 200,
    batch_size: Annotated[int, typer.Option(help="Pictures in each step, half of them good.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 0.001,
    flips: Annotated[bool, typer.Option(help="Mirror the training pictures.")] = True,
    rotations: Annotated[bool, typer.Option(help="Turn the training pictures by quarter turns.")] = True,
    any_angle: Annotated[bool, typer.Option(help="Turn half of them by any angle, for round objects.")] = False,
    generated_share: Annotated[float, typer.Option(help="Share of generated pairs among the defects.")] = 0.5,
    selection: Annotated[
        str, typer.Option(help="Step that is kept: last step, validation split, or the authors' rule.")
    ] = "last step",
    check_every: Annotated[int, typer.Option(help="Steps between two checks, but for the last step.")] = 63,
    runs: Annotated[int, typer.Option(min=1, help="Networks of each kind, for mean and spread.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first run; the next use +1.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda; by default cuda where there is one.")] = "",
    kept: Annotated[
        Path | None, typer.Option(help="Folder of finished and unfinished networks; evaluation_runs beside --out.")
    ] = None,
) -> None:
    """Train a detector without and with generated pairs and test it on held-out real defects, without ComfyUI.

    The same as the node Evaluate Localization. Writes table.md, results.csv, evaluation.json, results.json,
    contact_sheet.png, heat_maps.png, curves.png and single heat maps. Stopped and called again it goes on, and a
    network that is finished is never trained again.
    """
    with plain_errors():
        from ..data.mvtec import load_dataset
        from ..evaluation.localization import LocalizerSettings, RunStore, rows_of
        from ..evaluation.localization.report import write_report
        from ..evaluation.localization.rows import OURS, named_values
        from ..evaluation.localization.sources import pairs_folder
        from ..evaluation.localization.table import LocalizationTable
        from ..files import check_new
        from .bars import StageBars

        check_new(out)
        settings = LocalizerSettings(
            size,
            width,
            steps,
            batch_size,
            learning_rate,
            flips,
            rotations,
            generated_share,
            selection=selection,
            check_every=check_every,
            any_angle=any_angle,
        )
        settings.check()
        own = pairs_folder(pairs)
        sources = {OURS: replace(own, method=method or own.method)}
        for name, folder in named_values("\n".join(other or ()), "--other").items():
            if name == OURS:
                raise InputError(f"--other: the name '{name}' stands for --pairs. Choose another.")
            sources[name] = pairs_folder(Path(folder))
        files = named_values("\n".join(weights or ()), "--weights", "NAME=FILE")
        sets = [part.strip() for part in training_sets.split(",") if part.strip()]
        rows = rows_of(sets, sources, {name: Path(file) for name, file in files.items()})
        dataset = load_dataset(data, category, splitting)
        table = LocalizationTable(dataset, rows, settings, range(seed, seed + runs), sources[OURS])
        store = RunStore(kept or out.absolute().parent / "evaluation_runs")
        with StageBars() as bars:

            def show(step: ComparisonStep) -> None:
                bars(f"{table.label(step.training_set)}, seed {step.seed}", step.done / step.total, f"{step.loss:.4f}")

            report = table.run(store, show, device=_device(device), pairs_folder=pairs.as_posix())
        _write_new(out, lambda folder: write_report(folder, report))
        typer.echo(f"{report.table}\n\nresults are in {out}")


def tables(
    results: Annotated[list[Path], typer.Argument(help="Folders with results.json anywhere below, or such files.")],
    out: Folder,
    number: Annotated[list[int] | None, typer.Option("--table", help="Number of a table; by default all 12.")] = None,
    only_measured: Annotated[bool, typer.Option(help="Only the rows that something was measured for.")] = False,
) -> None:
    """Put measured results into the paper's Tables 1 to 12, beside the published numbers.

    Writes tables.md, tables.csv, tables.tex and a picture of each table.
    """
    with plain_errors():
        from ..evaluation.tables import build_tables, find_records, to_markdown
        from ..evaluation.tables.files import write_tables
        from ..files import check_new

        check_new(out)
        records = find_records(results)
        built = build_tables(records, number or (), only_measured)
        _write_new(out, lambda folder: write_tables(folder, built))
        typer.echo(f"{to_markdown(built)}\n{len(records)} records; tables are in {out}")


def _device(name: str) -> str:
    import torch

    return name or ("cuda" if torch.cuda.is_available() else "cpu")


def _write_new(out: Path, write: Callable[[Path], None]) -> None:
    """Fill a folder under another name and rename it when it is complete."""
    staging = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        write(staging)
        if out.exists():
            out.rmdir()  # checked to be empty
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
