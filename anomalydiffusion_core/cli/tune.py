"""The command ``tune``: a small base model gets to know an object."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..data.splits import SplitSettings
from ..demo_prior.tuning import TuneSettings, tune_file
from .bars import TaskBars
from .errors import plain_errors
from .loading import load_and_show
from .options import with_settings


@with_settings(splitting=SplitSettings, settings=TuneSettings, panels={"splitting": "Data", "settings": "Training"})
def tune(
    model: Annotated[Path, typer.Option(help="A file like the demo prior's.")],
    data: Annotated[Path, typer.Option(help="Folder that holds the category's folder.")],
    category: Annotated[str, typer.Option(help="Name of the category's folder, for example bottle.")],
    out: Annotated[Path, typer.Option(help="Folder for the new model and its figures.")],
    splitting: SplitSettings,
    settings: TuneSettings,
    name: Annotated[
        str, typer.Option(help="Saved to OUT/NAME_00001.safetensors; the number increases with each run.")
    ] = "tuned",
) -> None:
    """Tune all weights of a small model, and its autoencoder, on the normal images of a category.

    Where `adapt` is not enough: a small model that has never seen the object. The result is a model of its own, which
    every other command and Load LDM Checkpoint take; bundles of the model before do not fit it. The control is
    measured before and after. Run again to resume a stopped tuning.
    """
    with plain_errors(ValueError):
        dataset = load_and_show(data, category, splitting)
        with TaskBars() as bars:
            made = tune_file(model, dataset, settings, out, name, bars.of("tuning"))
        typer.echo(f"written: {made.path}. {made.describe()}")
