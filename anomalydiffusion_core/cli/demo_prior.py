"""Commands about the demo prior and its rendered images, and the list of bundles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..demo_prior.settings import PretrainSettings
from .errors import plain_errors
from .options import with_settings


@with_settings(settings=PretrainSettings)
def pretrain_demo_prior(
    minutes: Annotated[float, typer.Option(help="Training time, counted over all calls with this folder.")],
    out: Annotated[Path, typer.Option(help="Folder of the checkpoints and of demo_prior.safetensors.")],
    settings: PretrainSettings,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the images and the weights.")] = 0,
    start: Annotated[
        Path | None, typer.Option(help="A finished prior to start from; its autoencoder stays as it is.")
    ] = None,
) -> None:
    """Train the small demo model on rendered images, by default from nothing. Run again to resume."""
    with plain_errors(ValueError, FileNotFoundError):
        from ..demo_prior import pretrain
        from .bars import StageBars

        with StageBars() as bars:
            path = pretrain.run(out, minutes, seed, bars, start, settings)
        typer.echo(f"written: {path}")


def check_demo_prior(
    path: Annotated[
        Path | None, typer.Argument(help="Stored prior; by default the one that is shipped with this extension.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for contact sheets.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the fresh images.")] = 0,
    photographs: Annotated[
        Path | None, typer.Option(help="Folder of real images, on which the autoencoder is measured too.")
    ] = None,
) -> None:
    """Measure the demo model on fresh images: autoencoder, control, and inversion of defects it has not seen."""
    with plain_errors(ValueError, FileNotFoundError):
        from ..demo_prior import check
        from ..server.runs import DEMO_PRIOR

        figures = check.run(path or DEMO_PRIOR, out, seed, lambda text: typer.echo(text, err=True), photographs)
        typer.echo(json.dumps(figures, indent=2))


def demo_data(
    folder: Annotated[Path, typer.Argument(help="Folder to render into.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the images.")] = 0,
) -> None:
    """Render the images of the demo in the MVTec layout, for use in a ComfyUI of your own."""
    with plain_errors(FileExistsError):
        from ..synthetic import render_fewshot_set

        typer.echo(f"written: {render_fewshot_set(folder, seed)}")
