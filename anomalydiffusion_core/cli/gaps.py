"""The command ``gaps``: what a detector misses becomes a plan of pairs for the command ``generate``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..data.splits import SplitSettings
from ..devices import compute_device
from ..evaluation.localization.gaps import find_gaps
from ..evaluation.localization.sources import pairs_folder
from ..evaluation.settings import GapSettings, LocalizerSettings
from ..files import check_new
from .bars import TaskBars
from .errors import plain_errors
from .evaluation import Category, Data, Device
from .loading import load_and_show
from .options import with_settings


@with_settings(
    wanted=GapSettings,
    settings=LocalizerSettings,
    splitting=SplitSettings,
    leave_out=("selection", "check_every", "view", "tile_scale"),
    panels={"settings": "Detector", "splitting": "Data"},
)
def gaps(
    data: Data,
    category: Category,
    out: Annotated[Path, typer.Option(help="New folder for the plan.")],
    wanted: GapSettings,
    settings: LocalizerSettings,
    splitting: SplitSettings,
    pairs: Annotated[
        Path | None, typer.Option(help="Folder of generated pairs that the detector is trained on too.")
    ] = None,
    device: Device = "",
) -> None:
    """Plan the pairs that would teach a detector what it misses on real training defects held back from it.

    Writes plan.json with a type, a mask and a normal image for each pair, the masks, and gaps.md with every region.
    `generate --plan` takes the folder. The test set is never looked at.
    """
    with plain_errors():
        check_new(out)
        source = None if pairs is None else pairs_folder(pairs)
        dataset = load_and_show(data, category, splitting)
        with TaskBars() as bars:
            found = find_gaps(dataset, source, settings, wanted, bars.of("training"), compute_device(device))
        about = {"object": dataset.object, "threshold": found.threshold, "regions": [asdict(r) for r in found.regions]}
        found.plan.write(out, dataset, about, found.markdown())
        typer.echo(f"{found.markdown()}\n\nthe plan is in {out}")
