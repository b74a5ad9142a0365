"""The commands of data sets: ``convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..data.convert import ConvertSettings, open_source
from ..data.convert import convert as convert_dataset
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
