"""What the trainings of all evaluations share: the authors' optimizer and schedule, and exact norm statistics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

DECAY_AT = (0.8, 0.9)
DECAY = 0.2
RECALIBRATION_BATCHES = 16


def adam(
    network: nn.Module, learning_rate: float, steps: int
) -> tuple[torch.optim.Adam, torch.optim.lr_scheduler.MultiStepLR]:
    """Adam and its schedule: the rate drops to a fifth at 80 and again at 90 percent of `steps`."""
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    milestones = [max(1, round(part * steps)) for part in DECAY_AT]
    return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, DECAY)


def recalibrate(network: nn.Module, draw: Callable[[], Tensor]) -> None:
    """Recompute the statistics of the norm layers for the present weights, from batches that `draw` gives.

    Running averages lag behind the weights, which in a short training costs more than a few forward passes.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches that follow
    with torch.no_grad():
        for _ in range(RECALIBRATION_BATCHES):
            network(draw())
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
