"""Training Options: what is rarely changed about a training, for all training nodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from comfy_api.latest import io

from ..anomalydiffusion_core.training.run import SAVE_EVERY
from ..anomalydiffusion_core.training.settings import BALANCES, LoopOptions
from .host.compute import FORMATS
from .sockets import CATEGORY, TrainingOptions


@dataclass(frozen=True)
class TrainingChoices:
    """Options of the loop, and what changes nothing that is learned: saving, previews, memory.

    preview_every: steps between preview pictures, 0 for none. keep_state: whether a finished training can go on.
    """

    loop: LoopOptions = field(default_factory=LoopOptions)
    save_every: int = SAVE_EVERY
    resume: bool = True
    keep_state: bool = False
    preview_every: int = 100
    preview_steps: int = 8
    compute: str = FORMATS[0]
    checkpointing: bool = False


class TrainingOptionsNode(io.ComfyNode):
    """Saving, previews, memory and the finer points of the loop."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionTrainingOptions",
            display_name="Training Options",
            category=f"{CATEGORY}/training",
            description=(
                "What is rarely changed about a training: how often it is saved, previews, memory, and the finer "
                "points of the loop. For the input options of the training nodes."
            ),
            inputs=[
                io.Int.Input(
                    "save_every",
                    default=SAVE_EVERY,
                    min=1,
                    max=1000000,
                    tooltip="Steps between two saved states. A crash costs at most so many steps.",
                ),
                io.Boolean.Input(
                    "resume",
                    default=True,
                    tooltip="Go on where a stopped training of the same inputs was. Off starts anew.",
                ),
                io.Boolean.Input(
                    "keep_state",
                    default=False,
                    tooltip="Keep the state of a finished training, so that a higher number of steps trains it on.",
                ),
                io.Int.Input(
                    "preview_every",
                    default=100,
                    min=0,
                    max=1000000,
                    tooltip="Steps between two preview pictures. 0 shows the loss curve alone.",
                ),
                io.Int.Input(
                    "preview_steps", default=8, min=1, max=200, tooltip="Sampling steps of a preview picture."
                ),
                io.Int.Input(
                    "early_stop",
                    default=0,
                    min=0,
                    max=1000000,
                    tooltip=(
                        "Stop when the mean loss of so many steps has twice in a row not fallen below the best "
                        "before. 0 never stops early."
                    ),
                ),
                io.Int.Input(
                    "accumulate",
                    default=1,
                    min=1,
                    max=1024,
                    tooltip="Batches whose gradients make one step: a large batch in the memory of a small one.",
                ),
                io.Combo.Input(
                    "balance",
                    options=list(BALANCES),
                    default=BALANCES[0],
                    tooltip="types: the defect types take turns. pictures: every picture is as likely.",
                ),
                io.Int.Input(
                    "refresh_every",
                    default=0,
                    min=0,
                    max=1000000,
                    tooltip="After every so many steps one augmented picture is replaced by a new one. 0 never does.",
                ),
                io.Boolean.Input(
                    "sample_latents",
                    default=False,
                    tooltip="Draw latents from the VAE's posterior anew at each use as the authors do, else its mean.",
                ),
                io.Combo.Input(
                    "compute",
                    options=list(FORMATS),
                    default=FORMATS[0],
                    tooltip="Number format of the frozen model. The embeddings and the optimizer stay float32.",
                ),
                io.Boolean.Input(
                    "checkpointing",
                    default=False,
                    tooltip="Compute activations twice instead of keeping them: less memory, about a third slower.",
                ),
            ],
            outputs=[
                TrainingOptions.Output(
                    "options", display_name="options", tooltip="For the input options of a training node."
                ),
            ],
        )

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        names = ("accumulate", "balance", "refresh_every", "sample_latents", "early_stop")
        loop = LoopOptions(**{name: values.pop(name) for name in names})
        return io.NodeOutput(TrainingChoices(loop, **values))
