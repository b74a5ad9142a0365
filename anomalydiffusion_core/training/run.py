"""What all trainings share beside the loop: saving on the way, resuming, cancelling, and the time that is left."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..bundles.bundle import AnomalyBundle
from .loop import NonFiniteLossError, OnStep, Pause, StepReport, TrainingLoop
from .state import StateFile

SAVE_EVERY = 100
"""Steps between two states on disk."""


@dataclass(frozen=True)
class TrainingResult:
    """What was learned, and the loss of every step."""

    bundle: AnomalyBundle
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
        """Pictures [3, H, W] in [0, 1] that show what is learned: of type ``number`` modulo the number of types."""
        return []

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
        whatever ends it; it then goes on from there. A state that led to a loss that is not finite is deleted, that of
        a finished training is for the caller to delete once the result is safe. Exceptions as in TrainingLoop.run;
        NonFiniteLossError carries the result so far.
        """
        loop = self.loop
        saves: list[Pause] = []
        if state is not None:
            self.resumed = state.restore(loop)
            saves = [Pause(save_every, lambda _: None if loop.finished else state.save(loop))]
        started = loop.step
        try:
            loop.run(on_step, [*saves, *pauses])
        except NonFiniteLossError as error:
            error.result = self.result()
            if state is not None:
                state.remove()
            raise
        except BaseException:
            if state is not None and loop.step > started:
                state.save(loop)
            raise
        if state is not None and not loop.finished:
            state.save(loop)
        return self.result()


class Pace:
    """Says how far a training is and how long it will still take, from the speed of the latest steps."""

    def __init__(self, window: int = 50) -> None:
        self._times: deque[tuple[int, float]] = deque(maxlen=window + 1)

    def note(self, step: int) -> None:
        """A step has ended now."""
        self._times.append((step, time.monotonic()))

    @property
    def seconds_per_step(self) -> float | None:
        """Mean over the latest steps; None before the second."""
        if len(self._times) < 2:
            return None
        (first, begin), (last, end) = self._times[0], self._times[-1]
        return (end - begin) / (last - first) if last > first else None

    def text(self, report: StepReport) -> str:
        """``step 120 of 300, loss 0.0123, 0.42 s/step, 1 min 16 s left``."""
        text = f"step {report.step} of {report.total}, loss {report.loss:.4g}"
        pace = self.seconds_per_step
        if pace is None:
            return text
        return f"{text}, {pace:.3g} s/step, {duration(pace * (report.total - report.step))} left"


def duration(seconds: float) -> str:
    """``45 s``, ``1 min 16 s``, ``3 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"
