"""Settings, reports and signals of the training loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..errors import TrainingError
from ..options import LARGEST_SEED, Settings, option
from ..scale import AUTO, VIEWS

COMPUTE_FORMATS = ("auto", "float32", "bfloat16", "float16")
"""Number formats of the frozen model in training. ``auto`` is the host's own, but bfloat16 in place of float16 where
the device has it: small gradients vanish in float16."""
OnStep = Callable[["StepReport"], None]
BALANCES = ("types", "pictures")
"""``types``: the defect types take turns. ``pictures``: every image is as likely (as in the authors' code)."""


@dataclass(frozen=True)
class StepReport:
    """One finished step: its number from 1, the number of steps in all, its loss before the update."""

    step: int
    total: int
    loss: float


@dataclass(frozen=True)
class Pause:
    """Something to do after every ``every`` steps while the model is not set up for training, like sampling."""

    every: int
    action: Callable[[StepReport], None]

    def due(self, step: int) -> bool:
        """Whether it is due after ``step`` finished steps."""
        return self.every > 0 and step % self.every == 0


class Frozen(Protocol):
    """A part beside the denoiser that gradients flow through, like a text encoder."""

    def training_mode(self) -> AbstractContextManager[None]:
        """As of a Denoiser."""
        ...


class StopTraining(Exception):  # noqa: N818 - a signal like StopIteration, not an error
    """Raised by ``on_step`` to end training early and keep what was learned."""


class NonFiniteLossError(TrainingError):
    """A loss or gradient was not finite. The weights are those of the last good step.

    step: the step that failed, from 1. result: what had been learned by then, set by the trainer where it can.
    """

    def __init__(self, step: int, what: str) -> None:
        super().__init__(
            f"training: the {what} is not finite at step {step}. What was learned before is kept; lower the learning "
            "rate or use float32."
        )
        self.step = step
        self.result: Any = None


@dataclass(frozen=True)
class LoopOptions(Settings):
    """What is rarely changed about a training loop."""

    early_stop: int = option(
        0,
        "Stop when the mean loss of so many steps has twice in a row not fallen below the best before. 0 never stops "
        "early.",
        min=0,
        max=1_000_000,
    )
    accumulate: int = option(
        1, "Batches whose gradients make one step: a large batch in the memory of a small one.", min=1, max=1024
    )
    balance: str = option(
        BALANCES[0],
        "types: the defect types take turns. pictures: every image is equally likely.",
        choices=BALANCES,
    )
    refresh_every: int = option(
        0, "Replace one augmented image by a new one every so many steps. 0 never does.", min=0, max=1_000_000
    )
    sample_latents: bool = option(
        False, "Sample latents from the VAE's posterior at each use, as the authors do, instead of taking its mean."
    )


def learning_rate(default: float, help: str) -> Any:
    """An option for the learning rate of Adam, above 0."""
    return option(default, help, min=0, max=1e38, step=0.0001, above=0, exact=True)


@dataclass(frozen=True)
class LoopSettings(Settings):
    """What every training has; the defaults follow the paper except for the number of steps."""

    steps: int = option(300, "Optimizer steps. More steps learn more faithfully.", min=1, max=1_000_000)
    batch_size: int = option(4, "Images in each step. Lower it to save memory.", min=1, max=256)
    learning_rate: float = learning_rate(0.005, "Learning rate of Adam; 0.005 in the paper.")
    resolution: int = option(
        256, "Side in pixels at which the images are learned. Sample at the same size.", min=32, max=2048, step=8
    )
    seed: int = option(0, "Same inputs and seed give the same result.", min=0, max=LARGEST_SEED)
    options: LoopOptions = field(default_factory=LoopOptions)

    @property
    def masked(self) -> bool:
        """Whether the loss counts inside the latent mask only (Eq. 5), else everywhere (Eq. 9)."""
        return False

    @property
    def area_normalized(self) -> bool:
        """Whether the loss of each sample is divided by the area of its mask."""
        return False


@dataclass(frozen=True)
class EmbeddingSettings(LoopSettings):
    """What both kinds of embedding trainings share."""

    augmented_copies: int = option(
        8, "Cropped, moved and turned versions of each pair, beside the pair itself.", min=0, max=1000
    )
    flips: bool = option(False, "Also mirror. Only where a mirrored part is a possible part.")
    view: str = option(
        AUTO,
        "What is looked at: whole images, made smaller without changing their aspect, or windows around each defect "
        "at one scale. auto takes windows where whole images would make the defects too small to be learned.",
        choices=VIEWS,
    )
    scale: float = option(
        0.0,
        "With windows: image pixels per learned pixel; 0.5 enlarges defects to twice their size. 0 chooses it by the "
        "defects of each type.",
        min=0,
        max=64,
        step=0.05,
        exact=True,
    )


@dataclass(frozen=True)
class TrainingChoices(Settings):
    """Options of the loop, and what changes nothing that is learned: saving, previews, memory."""

    save_every: int = option(
        100, "Steps between two saved states. A crash loses at most this many steps.", min=1, max=1_000_000
    )
    resume: bool = option(True, "Resume a stopped training of the same inputs. Off starts from scratch.")
    keep_state: bool = option(
        False, "Keep the state of a finished training, so that a higher number of steps continues it."
    )
    preview_every: int = option(
        100, "Steps between two preview images. 0 shows only the loss curve.", min=0, max=1_000_000
    )
    preview_steps: int = option(8, "Sampling steps of a preview image.", min=1, max=200)
    loop: LoopOptions = field(default_factory=LoopOptions)
    compute: str = option(
        COMPUTE_FORMATS[0],
        "Number format of the frozen model. The embeddings and the optimizer stay float32.",
        choices=COMPUTE_FORMATS,
    )
    checkpointing: bool = option(
        False, "Compute activations twice instead of keeping them: less memory, about a third slower."
    )
