"""Commands about numbers: evaluate generated images without ComfyUI, and collect the results of many runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..data.splits import SplitSettings, listed_names
from ..evaluation.settings import (
    ClassifierData,
    ClassifierSettings,
    GenerationSettings,
    LocalizerSettings,
    OverlapSettings,
    RowSettings,
    RunSettings,
)
from .errors import plain_errors
from .options import with_settings

if TYPE_CHECKING:
    from ..evaluation.results import Result

Out = Annotated[Path, typer.Option(help="New folder for the results.")]
OutOrSame = Annotated[
    Path, typer.Option(help="New folder for the results. A result of the same evaluation there is read again.")
]
Data = Annotated[Path, typer.Option(help="Folder that holds the category's folder.")]
Category = Annotated[str, typer.Option(help="Name of the category's folder, for example bottle.")]
Categories = Annotated[
    list[str],
    typer.Option(
        help="Name of the category's folder, for example bottle. Give it several times to evaluate several objects, "
        "each with networks of its own, and their mean."
    ),
]
Device = Annotated[str, typer.Option(help="For example cpu or cuda; by default a GPU where there is one.")]
Pairs = typer.Option(help="Folder of generated images; give it several times to use several together.")


@with_settings(
    rows=RowSettings,
    settings=LocalizerSettings,
    repeated=RunSettings,
    splitting=SplitSettings,
    overlap=OverlapSettings,
    leave_out=("validation_share",),
    panels={"rows": "Training", "settings": "Training", "repeated": "Training", "splitting": "Data"},
)
def evaluate(
    pairs: Annotated[
        list[Path],
        typer.Option(
            help="Folder of pairs: from Export Pairs, or with test/ and ground_truth/. Several folders are sets that "
            "were made independently, with other seeds of training and generation: the spread is then over the sets."
        ),
    ],
    data: Data,
    category: Categories,
    out: Out,
    rows: RowSettings,
    settings: LocalizerSettings,
    repeated: RunSettings,
    splitting: SplitSettings,
    overlap: OverlapSettings,
    method: Annotated[str, typer.Option(help="What made the pairs, for the tables; by default the manifest's.")] = "",
    other: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER",
            help="Pairs of another method, for rows of its own. A name given several times has so many sets.",
        ),
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FILE", help="A trained network that is only tested.")
    ] = None,
    device: Device = "",
    kept: Annotated[
        Path | None,
        typer.Option(help="Folder of finished and unfinished networks; by default evaluation_runs beside --out."),
    ] = None,
) -> None:
    """Train a detector without and with generated pairs and test it on held-out real defects, without ComfyUI.

    The same as the node Evaluate Localization. Writes table.md, results.csv, evaluation.json, results.json,
    contact_sheet.png, heat_maps.png, curves.png and single heat maps. Run the same command again to resume; a finished
    network is never trained again.
    """
    with plain_errors():
        from ..devices import compute_device
        from ..evaluation.localization.amounts import listed_counts, with_counts
        from ..evaluation.localization.objects import evaluate_objects
        from ..evaluation.localization.rows import OURS, methods_of, named_values, rows_of
        from ..evaluation.localization.runs import RunStore
        from ..evaluation.localization.sources import pairs_folder
        from ..evaluation.localization.table import RUNS_FOLDER
        from ..evaluation.results import ResultPlace
        from .bars import TaskBars
        from .loading import load_and_show

        place = ResultPlace(out)
        place.check()
        own = [pairs_folder(folder) for folder in pairs]
        own = [replace(one, method=method or one.method) for one in own]
        sources = methods_of(own, "\n".join(other or ()), lambda text, _: Path(text), "--other")
        files = named_values("\n".join(weights or ()), "--weights", "NAME=FILE")
        networks = {name: Path(file) for name, file in files.items()}
        chosen = rows_of(listed_names(rows.training_sets), sources, networks)
        chosen = with_counts(chosen, listed_counts(rows.pair_counts))
        dataset = load_and_show(data, category, splitting)
        store = RunStore(kept or out.absolute().parent / RUNS_FOLDER)
        with TaskBars() as bars:
            report = evaluate_objects(
                dataset,
                chosen,
                settings,
                repeated.seeds,
                sources[OURS][0],
                store,
                bars.of("training"),
                compute_device(device),
                allow_overlap=overlap.allow_overlap,
                pairs_folder=", ".join(folder.as_posix() for folder in pairs),
            )
        with place.new() as made:
            report.write(made.path)
        typer.echo(f"{report.table}\n\nresults are in {out}")


@with_settings(
    trained_on=ClassifierData,
    settings=ClassifierSettings,
    repeated=RunSettings,
    splitting=SplitSettings,
    overlap=OverlapSettings,
    panels={"trained_on": "Training", "settings": "Training", "repeated": "Training", "splitting": "Data"},
)
def classify(
    data: Data,
    category: Categories,
    out: OutOrSame,
    trained_on: ClassifierData,
    settings: ClassifierSettings,
    repeated: RunSettings,
    splitting: SplitSettings,
    overlap: OverlapSettings,
    pairs: Annotated[list[Path] | None, Pairs] = None,
    device: Device = "",
) -> None:
    """Train a classifier of defect types on generated images and test it on held-out real ones, without ComfyUI.

    The same as the node Evaluate Classification. Writes classification.json, classification.csv, results.json,
    table.md and confusion.png.
    """
    with plain_errors():
        from ..devices import compute_device
        from ..errors import InputError
        from ..evaluation.classification.objects import classification_table
        from ..evaluation.results import ResultPlace
        from .bars import TaskBars
        from .loading import load_and_show

        if trained_on.uses_generated and not pairs:
            raise InputError("pairs: none. Give --pairs, or --training-set 'few real'.")
        dataset = load_and_show(data, category, splitting)
        table = classification_table(dataset, pairs or (), trained_on, settings, repeated, overlap)
        names = [path.as_posix() for path in table.folders]
        with TaskBars() as bars:
            result = table.result(ResultPlace(out), bars.of("training"), compute_device(device), pairs_folders=names)
        _show(result)


@with_settings(settings=GenerationSettings, splitting=SplitSettings, panels={"splitting": "Data"})
def score(
    pairs: Annotated[list[Path], Pairs],
    data: Data,
    category: Category,
    out: OutOrSame,
    settings: GenerationSettings,
    splitting: SplitSettings,
    device: Device = "",
) -> None:
    """Measure generated images: Inception Score, IC-LPIPS, effect score, and how near they are to training defects.

    The same as the node Evaluate Generation. Writes generation.json, generation.csv, table.md, nearest.png and, unless
    the networks are stand-ins, results.json.
    """
    with plain_errors():
        from ..devices import compute_device
        from ..evaluation.generation.table import GenerationTable
        from ..evaluation.results import ResultPlace
        from .bars import TaskBars
        from .loading import load_and_show

        where = compute_device(device)
        table = GenerationTable(load_and_show(data, category, splitting), pairs, settings, where)
        names = [path.as_posix() for path in table.folders]
        with TaskBars() as bars:
            result = table.result(ResultPlace(out), bars.of("measuring"), where, pairs_folders=names)
        _show(result)


def tables(
    results: Annotated[list[Path], typer.Argument(help="Folders with results.json anywhere below, or such files.")],
    out: Out,
    number: Annotated[list[int] | None, typer.Option("--table", help="Number of a table; by default all 12.")] = None,
    only_measured: Annotated[bool, typer.Option(help="Only the rows that something was measured for.")] = False,
) -> None:
    """Show measured results in the paper's Tables 1 to 12, beside the published numbers.

    Writes tables.md, tables.csv, tables.tex and an image of each table.
    """
    with plain_errors():
        from ..evaluation.tables.build import build_tables
        from ..evaluation.tables.files import write_tables
        from ..evaluation.tables.records import find_records
        from ..evaluation.tables.text import to_markdown
        from ..files import check_new, new_folder

        check_new(out)
        records = find_records(results)
        built = build_tables(records, number or (), only_measured)
        with new_folder(out) as draft:
            write_tables(draft, built)
        typer.echo(f"{to_markdown(built)}\n{len(records)} records; tables are in {out}")


def _show(result: Result) -> None:
    again = "the same evaluation was made before; its " if result.again else ""
    typer.echo(f"{result.table}\n\n{again}results are in {result.folder}")
