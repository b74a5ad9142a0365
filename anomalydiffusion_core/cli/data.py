"""The commands of data sets: ``convert`` and ``check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..data.checking import check_pairs
from ..data.convert import ConvertSettings, open_source
from ..data.convert import convert as convert_dataset
from ..data.mvtec import load_dataset
from ..data.pairs import MANIFEST
from ..data.splits import SplitSettings
from .bars import TaskBars
from .errors import plain_errors
from .options import with_settings


@with_settings(settings=ConvertSettings, splitting=SplitSettings, panels={"splitting": "Split of COCO and YOLO"})
def convert(
    source: Annotated[Path, typer.Argument(help="Folder of one category, in any form that is known.")],
    out: Annotated[Path, typer.Argument(help="New folder for the category in its other form.")],
    settings: ConvertSettings,
    splitting: SplitSettings,
) -> None:
    """Write a data set anew as MVTec AD, COCO or YOLO, whatever form it has."""
    with plain_errors(), TaskBars() as bars:
        dataset = open_source(source, settings, splitting)
        done = convert_dataset(dataset, out, settings, bars.of("converting")(0))
        bars.close()
        for notice in dataset.notices:
            typer.echo(f"notice: {notice}")
        typer.echo(done)


def check(
    folder: Annotated[Path, typer.Argument(help="Folder of exported pairs, or of one category of a data set.")],
) -> None:
    """Verify a folder: of pairs, each line, hash, size and mask; of a data set, what loading it would find.

    Nothing is changed. The exit code is 1 when there are problems.
    """
    with plain_errors():
        place = folder.absolute()
        if not (place / MANIFEST).is_file():
            typer.echo(load_dataset(place.parent, place.name, SplitSettings("first n", 1)).describe())
            return
        found = check_pairs(place)
        typer.echo(found.report(folder))
        if found.problems:
            raise typer.Exit(1)
