"""The list of bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import plain_errors


def bundles(
    folder: Annotated[Path, typer.Argument(help="Folder of bundles, for example ComfyUI's models/anomalydiffusion.")],
) -> None:
    """List the bundles below a folder: kind, types, base model, tokens of a type (k) and of a mask (n), route."""
    with plain_errors():
        from ..bundles.listing import bundle_table, list_bundles

        found, left_out = list_bundles(folder)
        for problem in left_out:
            typer.echo(problem, err=True)
        typer.echo(bundle_table(found, folder) if found else f"no bundle in {folder}")
