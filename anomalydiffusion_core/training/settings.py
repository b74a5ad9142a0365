"""Settings, reports and signals of the training loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..errors import InputError, TrainingError

OnStep = Callable[["StepReport"], None]
BALANCES = ("types", "pictures")
"""``types``: the defect types take turns. ``pictures``: every picture is as likely (as in the authors' code)."""


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
class LoopOptions:
    """What is rarely changed about a training.

    accumulate: batches whose gradients make one step. balance: one of BALANCES. refresh_every: after every so many
    steps one augmented picture of the bank is replaced by a new one, 0 never. sample_latents: draw latents anew from
    the VAE's posterior at every use (as in the authors' code), else take its mean. early_stop: stop when the mean loss
    of so many steps has twice in a row not fallen below the best such mean before, 0 never.
    """

    accumulate: int = 1
    balance: str = BALANCES[0]
    refresh_every: int = 0
    sample_latents: bool = False
    early_stop: int = 0

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise InputError(f"accumulate: {self.accumulate} is not possible. Give at least 1.")
        if self.balance not in BALANCES:
            raise InputError(f"balance: there is no rule {self.balance!r}. Choose one of {', '.join(BALANCES)}.")
        if self.refresh_every < 0 or self.early_stop < 0:
            raise InputError(
                f"refresh and early stop: {self.refresh_every} and {self.early_stop} steps are not possible. Give 0 "
                "or more."
            )


@dataclass(frozen=True)
class LoopSettings:
    """Steps, pictures per batch, Adam's learning rate, seed; whether the loss is divided by the mask's area.

    masked: count the loss inside the latent mask only (Eq. 5), else everywhere (Eq. 9).
    """

    steps: int
    batch_size: int
    learning_rate: float
    seed: int = 0
    masked: bool = True
    normalize_by_mask_area: bool = False
    options: LoopOptions = field(default_factory=LoopOptions)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps: {self.steps} is not possible. Give at least 1.")
        if self.batch_size < 1:
            raise InputError(f"batch size: {self.batch_size} is not possible. Give at least 1.")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning rate: {self.learning_rate} is not possible. Give one above 0, like 0.005.")
