"""Commands about finished folders of pairs: labels that fit, a gate, and a review."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..data.splits import SplitSettings
from ..evaluation.settings import ScoreSettings
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


@with_settings(settings=ScoreSettings, splitting=SplitSettings, panels={"splitting": "Data"})
def score_pairs(
    pairs: Pairs,
    data: Annotated[Path, typer.Option(help="Folder that holds the category, in the MVTec layout.")],
    category: Annotated[str, typer.Option(help="Name of the category's folder, for example bottle.")],
    settings: ScoreSettings,
    splitting: SplitSettings,
    device: Annotated[str, typer.Option(help="For example cpu or cuda; by default a GPU where there is one.")] = "",
) -> None:
    """Score each pair against the real ones' own scores, list what is worse, and leave it out on request.

    The same as the node Score Pairs. Scores and reasons are written to manifest.jsonl of the pairs.
    """
    with plain_errors():
        from ..data.mvtec import load_dataset
        from ..data.pairs import load_exported
        from ..devices import compute_device
        from ..evaluation.gate.gate import score_pairs as score
        from .bars import TaskBars

        dataset = load_dataset(data, category, splitting)
        with TaskBars() as bars:
            bar = bars.of("scoring")(len(load_exported(pairs, every=True)))
            gate = score(pairs, dataset, settings, compute_device(device), bar)
        typer.echo(gate.report())


def review(
    pairs: Pairs,
    decisions: Annotated[
        Path | None, typer.Option(help="File that the page saved. Its decisions are written to manifest.jsonl.")
    ] = None,
) -> None:
    """Make review.html of a folder of pairs, to accept and reject them with keys, or bring decisions back.

    The same as the node Review Pairs. Open the page in any browser, save the decisions, then run the command again
    with --decisions. Evaluations do not use rejected pairs.
    """
    with plain_errors():
        from ..data.pairs import load_exported
        from ..data.review import merge_decisions, write_review
        from .bars import TaskBars

        merged = None if decisions is None else merge_decisions(pairs, decisions)
        with TaskBars() as bars:
            page = write_review(pairs, bars.of("review")(len(load_exported(pairs, every=True))))
        typer.echo(merged.report() if merged else f"open {page} in a browser, then give its file with --decisions")
