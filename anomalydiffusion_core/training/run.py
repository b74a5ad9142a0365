"""What all trainings share beside the loop: saving on the way, resuming, cancelling, and what is learned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from .loop import TrainingLoop
from .settings import NonFiniteLossError, OnStep, Pause
from .state import StateFile

SAVE_EVERY = 100
"""Steps between two states on disk."""


class Learned(Protocol):
    """What a training makes: a bundle or a LoRA. ``metadata`` is written with it."""

    metadata: dict[str, Any]

    def to_bytes(self) -> bytes:
        """The content of its file, the same for the same result."""
        ...


@dataclass(frozen=True)
class TrainingResult:
    """What was learned, and the loss of every step."""

    bundle: Any
    losses: tuple[float, ...]


class Trainer(ABC):
    """A training that can be run, saved, resumed and asked for its result at any time. ``loop`` is its one loop."""

    loop: TrainingLoop
    resumed = ""
    """What became of a stored state, in words; "" when there was none."""

    @abstractmethod
    def result(self) -> TrainingResult:
        """What has been learned so far, as copies on the CPU."""

    def preview(self, number: int, steps: int = 8) -> list[Tensor]:
        """Images [3, H, W] in [0, 1] that show what is learned: of type ``number`` modulo the number of types."""
        return []

    def computing(self) -> AbstractContextManager[None]:
        """Entered around all steps."""
        return nullcontext()

    def run(
        self,
        on_step: OnStep | None = None,
        *,
        pauses: Sequence[Pause] = (),
        state: StateFile | None = None,
        save_every: int = SAVE_EVERY,
    ) -> TrainingResult:
        """Train to the end or an early stop, from a stored state where there is one of this training.

        With ``state`` the training is saved there every ``save_every`` steps and when it ends before its time,
        whatever ends it; it resumes from there. A state that led to a loss that is not finite is deleted, that of
        a finished training is for the caller to delete once the result is safe. Exceptions as in TrainingLoop.run;
        NonFiniteLossError carries the result so far.
        """
        loop = self.loop
        saves: list[Pause] = []
        if state is not None:
            self.resumed = state.restore(loop)
            saves = [Pause(save_every, lambda _: None if loop.finished else state.save_if_possible(loop))]
        started = loop.step
        try:
            with self.computing():
                loop.run(on_step, [*saves, *pauses])
        except NonFiniteLossError as error:
            error.result = self.result()
            if state is not None:
                state.remove()
            raise
        except BaseException:
            if state is not None and loop.step > started:
                state.save_if_possible(loop)
            raise
        if state is not None and not loop.finished:
            state.save_if_possible(loop)
        return self.result()
