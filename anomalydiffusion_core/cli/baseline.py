"""The command ``baseline``: pairs of an earlier method, to compare with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..baselines.folder import METHODS, BaselinePlan, write_pairs
from ..data.export import ExportSettings
from ..data.selection import NormalSettings
from ..data.splits import SplitSettings, listed_names
from ..errors import InputError
from ..options import declared
from .bars import TaskBars
from .errors import plain_errors
from .loading import load_and_show
from .options import with_settings


@with_settings(
    normals=NormalSettings,
    export=ExportSettings,
    splitting=SplitSettings,
    panels={"splitting": "Data", "export": "Files"},
    leave_out=("min_effect",),
)
def baseline(
    method: Annotated[str, typer.Argument(help=f"One of: {', '.join(METHODS)}.")],
    data: Annotated[Path, typer.Option(help="Folder that holds the category's folder.", rich_help_panel="Data")],
    category: Annotated[str, typer.Option(help="Name of the category's folder.", rich_help_panel="Data")],
    out: Annotated[Path, typer.Option(help="New folder for the pairs.")],
    normals: NormalSettings,
    export: ExportSettings,
    splitting: SplitSettings,
    types: Annotated[
        str, typer.Option("--type", help="Types as object/defect, separated by commas. Empty makes all.")
    ] = "",
    textures: Annotated[
        Path | None,
        typer.Option(help="Folder of texture images for draem and prn; without it procedural surfaces are rendered."),
    ] = None,
    on_object: Annotated[
        bool, typer.Option(help="Put anomalies on the object, where one stands out from a plain background.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="An option of the method as NAME=VALUE; may be given several times."),
    ] = None,
) -> None:
    """Make pairs by an earlier method, from the training defects or without any, to compare with.

    The same pairs as of the nodes Crop and Paste, CutPaste, DRAEM Anomalies, PRN Anomalies and Poisson Blending, in a
    folder that `evaluate --other NAME=FOLDER` takes. Pair i of a type uses seed + i.
    """
    with plain_errors():
        plan = BaselinePlan(method, normals, _options(method, set_ or ()), textures, on_object)
        dataset = load_and_show(data, category, splitting)
        wanted = listed_names(types)
        with TaskBars() as bars:
            bar = bars.of(f"pairs of {method}")(normals.count * len(plan.types(dataset, wanted)))
            done = write_pairs(out, dataset, plan, export, bar, wanted)
        typer.echo(done.report(str(out)))


def _options(method: str, given: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """NAME=VALUE as values; texts stay texts where the option is one."""
    known = declared(METHODS[method]) if method in METHODS else {}
    found: dict[str, Any] = {}
    for one in given:
        name, equals, text = one.partition("=")
        if not equals:
            raise InputError(f"set: '{one}' is no NAME=VALUE. Give for example --set max_scale=1.2.")
        try:
            found[name] = text if name in known and known[name].type is str else json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"{name}: '{text}' is no number, true or false. Give one.") from error
    return found
