"""Evaluate Localization: does a detector find real defects better with the generated pairs?"""

from __future__ import annotations

import json
from collections.abc import Callable

from comfy_api.latest import io

from ..anomalydiffusion_core.data.mvtec import AnomalyDataset
from ..anomalydiffusion_core.export import load_exported
from ..anomalydiffusion_core.localization.comparison import ComparisonStep
from ..anomalydiffusion_core.localization.training import LocalizerSettings
from ..anomalydiffusion_core.localization_report import evaluate_pairs
from . import host
from .sockets import CATEGORY, Dataset, shown


class EvaluateLocalization(io.ComfyNode):
    """One small detector trained without and with the pairs, tested on held-out real defects."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionEvaluateLocalization",
            display_name="Evaluate Localization",
            category=f"{CATEGORY}/evaluation",
            description=(
                "Trains a segmentation network on the few real training pairs and normals, then anew with the "
                "generated pairs added, on several seeds, and tests both on the real defects kept for testing. The "
                "test set chooses nothing."
            ),
            inputs=[
                Dataset.Input("dataset", tooltip="Gives normals, the few training pairs, and the test set."),
                io.String.Input(
                    "pairs",
                    default="",
                    tooltip="Folder of pairs: from Export Pairs, absolute, or relative to ComfyUI's output folder.",
                ),
                io.Int.Input(
                    "size",
                    default=256,
                    min=32,
                    max=2048,
                    step=32,
                    tooltip="Side in pixels at which the network is trained and tested.",
                ),
                io.Int.Input("width", default=16, min=1, max=256, tooltip="Channels of the network; 64 in the paper."),
                io.Int.Input("steps", default=200, min=1, max=1000000, tooltip="Training steps of each network."),
                io.Int.Input(
                    "batch_size", default=8, min=2, max=256, tooltip="Pictures in each step, half of them good."
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.001,
                    min=0.0,
                    max=1.0,
                    step=0.0001,
                    round=False,
                    tooltip="Learning rate of Adam.",
                ),
                io.Boolean.Input(
                    "flips", default=True, tooltip="Mirror the training pictures, where that is possible."
                ),
                io.Boolean.Input("rotations", default=True, tooltip="Turn the training pictures by quarter turns."),
                io.Float.Input(
                    "generated_share",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of generated pairs among the defects that the second network sees.",
                ),
                io.Int.Input("runs", default=3, min=1, max=20, tooltip="Networks of each kind, for mean and spread."),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**31 - 1, tooltip="Seed of the first run; the next use +1."
                ),
                io.String.Input(
                    "folder",
                    default="anomalydiffusion/evaluation",
                    tooltip="Name of the folder inside ComfyUI's output folder; a number is added.",
                ),
            ],
            outputs=[
                io.String.Output("table", display_name="table", tooltip="Mean and spread of all metrics, Markdown."),
                io.Image.Output(
                    "heat_maps",
                    display_name="heat maps",
                    tooltip="Test picture, mask, heat map without and with the generated pairs.",
                ),
                io.Image.Output(
                    "contact_sheet",
                    display_name="contact sheet",
                    tooltip="Normal, mask, generated picture, and the heat map of a test picture.",
                ),
                io.String.Output("metrics", display_name="metrics", tooltip="All runs and their settings as JSON."),
                io.String.Output(
                    "evaluation_folder", display_name="evaluation folder", tooltip="The folder with all of this."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, dataset: AnomalyDataset, pairs: str, runs: int, seed: int, folder: str, **options: int | float | bool
    ) -> io.NodeOutput:
        settings = LocalizerSettings(**options)  # type: ignore[arg-type]
        settings.check()
        pairs_folder = host.readable_folder(pairs, "pairs", host.output_root())
        report = evaluate_pairs(
            dataset,
            load_exported(pairs_folder),
            settings,
            range(seed, seed + runs),
            on_step=_reporter(2 * runs * settings.steps),
            device=host.compute_device(),
        )
        report.metrics["pairs_folder"] = host.relative_to_output(pairs_folder)
        with host.new_output_folder(folder) as (draft, final):
            report.write(draft)
        where, metrics = host.relative_to_output(final), json.dumps(report.metrics)
        images = [host.output_picture(final / name) for name in ("contact_sheet.png", "heat_maps.png")]
        return io.NodeOutput(
            report.table,
            host.to_host_images(report.heat_sheet),
            host.to_host_images(report.pair_sheet),
            metrics,
            final.as_posix(),
            ui={**shown(report.table, evaluation_folder=[where], metrics=[metrics]), "images": images},
        )


def _reporter(total: int) -> Callable[[ComparisonStep], None]:
    """Moves the progress bar, and lets the user interrupt, at every training step."""
    progress = host.Progress(total)
    return lambda step: progress.at(step.done)
