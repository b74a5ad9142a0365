"""The command ``anomalydiffusion``, put together. Commands import inside themselves, so that --help is quick."""

from __future__ import annotations

import typer

from . import bundles, comfyui, demo_prior, evaluation, train

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Few-shot anomaly generation: a few defect images in, image and mask pairs and a measured detector out.",
)
for command in (
    comfyui.demo,
    comfyui.run,
    train.train,
    evaluation.evaluate,
    evaluation.tables,
    comfyui.ablate,
    bundles.bundles,
    comfyui.ui,
    demo_prior.demo_data,
    demo_prior.check_demo_prior,
    demo_prior.pretrain_demo_prior,
):
    app.command()(command)
