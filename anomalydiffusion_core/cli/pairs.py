"""Commands about finished folders of pairs: labels that fit, a gate, and a review."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..data.splits import SplitSettings
from ..masks.refine import RefineSettings
from .errors import plain_errors
from .options import with_settings

Pairs = Annotated[Path, typer.Argument(help="Folder of pairs from Export Pairs, generate or a baseline.")]
Data = Annotated[
    Path | None, typer.Option(help="Folder that holds the category, in the MVTec layout.", rich_help_panel="Data")
]
Category = Annotated[
    str, typer.Option(help="Name of the category's folder, for example bottle.", rich_help_panel="Data")
]


@with_settings(settings=RefineSettings, splitting=SplitSettings, panels={"splitting": "Data"}, leave_out=("refine",))
def refine(
    pairs: Pairs,
    settings: RefineSettings,
    splitting: SplitSettings,
    mode: Annotated[
        str,
        typer.Option(
            help="What the label is. One of: keep (the drawn mask), drop (its parts that do not show are left out), "
            "cut (what really changed), auto (whatever makes the labels of a type most like the real ones)."
        ),
    ] = "auto",
    model: Annotated[
        Path | None,
        typer.Option(help="The model that the pairs were made with, for the noise of its autoencoder."),
    ] = None,
    data: Data = None,
    category: Category = "",
    device: Annotated[str, typer.Option(help="For example cpu or cuda; by default a GPU where there is one.")] = "",
    dtype: Annotated[str, typer.Option(help="The model computes in float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Make the labels of a folder of pairs cover what really changed inside their drawn masks.

    The same as the option of Export Pairs and of generate. The drawn masks stay in <object>/drawn and can be had back
    with --mode keep; manifest.jsonl names both masks and the share that is kept.
    """
    with plain_errors():
        from dataclasses import replace

        from ..backends.models import open_model
        from ..data.pairs import load_exported
        from ..masks.change import reconstruction_of
        from ..masks.relabel import relabel
        from .bars import TaskBars
        from .loading import load_and_show

        chosen = replace(settings, refine=mode)
        dataset = None if data is None else load_and_show(data, category, splitting)
        opened = None if model is None else open_model(model, device, dtype)
        reconstruct = None if opened is None else reconstruction_of(opened.denoiser, opened.denoiser.device)
        with TaskBars() as bars:
            bar = bars.of("labels")(len(load_exported(pairs, every=True)))
            done = relabel(pairs, chosen, reconstruct, dataset, bar)
        typer.echo(done.report)
