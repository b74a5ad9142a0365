"""What the two training stages share: a time budget that survives interruption, and a moving average of weights."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

# Called with (stage, share of the stage done in 0..1, text of the latest figures).
Report = Callable[[str, float, str], None]


class Budget:
    """Seconds of training, counted over interruptions; `share` runs from 0 to 1."""

    def __init__(self, seconds: float, spent: float = 0.0) -> None:
        self.seconds = seconds
        self._before = spent
        self._started = time.monotonic()

    @property
    def spent(self) -> float:
        return self._before + time.monotonic() - self._started

    @property
    def share(self) -> float:
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
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in module.state_dict().items():
            self.values[name].lerp_(value, 1 - decay)


@dataclass
class StageState:
    """Everything a stage needs to go on: weights, average, optimizer, steps and seconds spent."""

    module: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, object]
    steps: int
    spent: float

    def save(self, path: Path) -> None:
        temporary = path.with_suffix(".partial")
        torch.save(vars(self), temporary)
        os.replace(temporary, path)

    @staticmethod
    def load(path: Path) -> StageState | None:
        if not path.is_file():
            return None
        return StageState(**torch.load(path, weights_only=True, map_location="cpu"))
