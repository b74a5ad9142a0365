"""What the two training stages share: a time budget that survives interruption, and a moving average of weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn

from ..files import replacing
from ..restricted_pickle import read_restricted

SAVE_EVERY = 60.0
# Called with (stage, share of the stage done in 0..1, text of the latest figures).
Report = Callable[[str, float, str], None]


def mixed_precision(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU; on a CPU single precision, which is as quick there without AVX-512 BF16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


class Budget:
    """Seconds of training, counted over interruptions; `share` runs from 0 to 1."""

    def __init__(self, seconds: float, spent: float = 0.0) -> None:
        self.seconds = seconds
        self._before = spent
        self._started = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds of training so far, earlier runs included."""
        return self._before + time.monotonic() - self._started

    @property
    def share(self) -> float:
        """Share of the budget that is spent, 0 to 1; 1 when there is no budget."""
        return min(self.spent / self.seconds, 1.0) if self.seconds > 0 else 1.0

    def restart(self) -> None:
        """Forget the time since creation (preparations that are not training)."""
        self._started = time.monotonic()


def cosine_rate(share: float, peak: float, warm_up: float = 0.02, floor: float = 0.03) -> float:
    """Learning rate at a share of the budget: linear warm-up, then a cosine down to `floor` of the peak."""
    if share < warm_up:
        return peak * max(share / warm_up, 0.05)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share)))


class MovingAverage:
    """Exponential average of a module's parameters; short at first, so that early checkpoints are usable."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.values = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's present parameters."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in module.state_dict().items():
            self.values[name].lerp_(value, 1 - decay)


class Stage:
    """A network in training: everything that `advance` changes survives an interruption.

    As a context manager it also saves when Ctrl+C ends the training, so that nothing is lost; what ends it any other
    way costs at most the last minute.

    Args:
        path: checkpoint; training resumes from it when it exists.
        seconds: the whole budget, counted over all calls.
        steps: train for so many steps instead.
    """

    def __init__(
        self,
        path: Path,
        model: nn.Module,
        peak_rate: float,
        decay: float,
        weight_decay: float,
        seconds: float = 0.0,
        steps: int = 0,
    ) -> None:
        self.path, self.model, self.peak_rate, self.steps = path, model, peak_rate, steps
        self.average = MovingAverage(model, decay)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=peak_rate, weight_decay=weight_decay, betas=(0.9, 0.99)
        )
        self.step = 0
        spent = 0.0
        state = StageState.load(path)
        if state is not None:
            model.load_state_dict(state.module)
            self.optimizer.load_state_dict(state.optimizer)
            for name, value in self.average.values.items():
                value.copy_(state.average[name])
            self.average.steps = self.step = state.steps
            spent = state.spent
        self.budget = Budget(seconds, spent)
        self._last_save = spent
        self._stepping = False

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # In the middle of a step weights, moments and average belong to different steps.
        if isinstance(error, KeyboardInterrupt) and not self._stepping:
            self.save()

    @property
    def share(self) -> float:
        """Share of the steps that is done, or of the time, 0 to 1."""
        return min(self.step / self.steps, 1.0) if self.steps else self.budget.share

    def advance(self, loss: Tensor) -> None:
        """One optimizer step for a loss; a checkpoint once a minute."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.step_with_gradients()

    def step_with_gradients(self) -> None:
        """The same for gradients that the model has already."""
        for group in self.optimizer.param_groups:
            group["lr"] = cosine_rate(self.share, self.peak_rate)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._stepping = True
        self.optimizer.step()
        self.average.update(self.model)
        self.step += 1
        self._stepping = False
        if self.budget.spent - self._last_save > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write the checkpoint now."""
        self._last_save = self.budget.spent
        StageState(
            self.model.state_dict(), self.average.values, self.optimizer.state_dict(), self.step, self.budget.spent
        ).save(self.path)

    def finish(self) -> None:
        """Save, and leave the averaged weights in the frozen network."""
        self.save()
        self.model.load_state_dict(self.average.values)
        self.model.eval().requires_grad_(False)


@dataclass
class StageState:
    """Everything a stage needs to resume: weights, average, optimizer, steps and seconds spent."""

    module: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, object]
    steps: int
    spent: float

    def save(self, path: Path) -> None:
        """Write the state to a file; an interruption leaves the previous file whole."""
        with replacing(path) as partial:
            torch.save(vars(self), partial)

    @staticmethod
    def load(path: Path) -> StageState | None:
        """Read a saved state, or return None when there is no such file."""
        if not path.is_file():
            return None
        return StageState(**read_restricted(path))
