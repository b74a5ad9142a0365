"""The command ``detect``: anomaly detectors of anomalib beside a network trained on pairs, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..data.splits import SplitSettings, listed_names
from ..devices import compute_device
from ..errors import InputError
from ..evaluation.localization.anomalib_detector import detector_rows
from ..evaluation.localization.rows import OURS, methods_of, rows_of
from ..evaluation.localization.runs import RunStore
from ..evaluation.localization.sources import pairs_folder
from ..evaluation.localization.table import RUNS_FOLDER, evaluate_localization
from ..evaluation.results import ResultPlace
from ..evaluation.settings import DetectorSettings, LocalizerSettings, OverlapSettings, RowSettings, RunSettings
from .bars import TaskBars
from .errors import plain_errors
from .evaluation import Category, Data, Device, Out
from .loading import load_and_show
from .options import with_settings


@with_settings(
    detectors=DetectorSettings,
    rows=RowSettings,
    settings=LocalizerSettings,
    repeated=RunSettings,
    splitting=SplitSettings,
    overlap=OverlapSettings,
    leave_out=("validation_share", "view", "tile_scale"),
    panels={
        "detectors": "Detectors",
        "rows": "Network trained on pairs",
        "settings": "Network trained on pairs",
        "repeated": "Repetitions",
        "splitting": "Data",
    },
)
def detect(
    data: Data,
    category: Category,
    out: Out,
    detectors: DetectorSettings,
    rows: RowSettings,
    settings: LocalizerSettings,
    repeated: RunSettings,
    splitting: SplitSettings,
    overlap: OverlapSettings,
    models: Annotated[
        str,
        typer.Option(
            help="Detectors, separated by commas: patchcore, padim, cfa, cflow, fastflow, reverse_distillation, "
            "stfpm, draem, sspcab."
        ),
    ] = "patchcore",
    pairs: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of generated pairs, for the rows of our network; none measures detectors alone."),
    ] = None,
    device: Device = "",
    kept: Annotated[
        Path | None, typer.Option(help="Folder of finished runs; by default evaluation_runs beside --out.")
    ] = None,
) -> None:
    """Train anomaly detectors on normal images and test them beside our network, on the same test set and metrics.

    Detectors are those of the package anomalib, which may live in an environment of its own (--environment). With
    --pairs the rows of the command evaluate stand in the same table. Writes what evaluate writes; results.json fills
    Tables 5 and 12.
    """
    with plain_errors():
        place = ResultPlace(out)
        place.check()
        names = listed_names(models)
        if not names:
            raise InputError("models: none. Give for example patchcore,padim.")
        found = detector_rows(names, detectors)
        own = [pairs_folder(folder) for folder in pairs or ()]
        if own:
            found = [*rows_of(listed_names(rows.training_sets), methods_of(own, "", _no_folder, OURS)), *found]
        dataset = load_and_show(data, category, splitting)
        store = RunStore(kept or out.absolute().parent / RUNS_FOLDER)
        with TaskBars() as bars:
            report = evaluate_localization(
                dataset,
                found,
                settings,
                repeated.seeds,
                own[0] if own else None,
                store,
                bars.of("training"),
                compute_device(device),
                allow_overlap=overlap.allow_overlap,
                pairs_folder=", ".join(folder.as_posix() for folder in pairs or ()),
            )
        with place.new() as made:
            report.write(made.path)
        typer.echo(f"{report.table}\n\nresults are in {out}")


def _no_folder(text: str, _: str) -> Path:
    return Path(text)
