"""A small real training that can be run in a process of its own and killed there: `python long_training.py STATE`.

Prints the number of each finished step. It uses everything that a state must remember: gradient accumulation, a bank
that is renewed, images drawn uniformly.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from anomalydiffusion_core.backends.ldm import LdmDenoiser
from anomalydiffusion_core.training.inversion import AnomalyTrainer, InversionSettings
from anomalydiffusion_core.training.settings import LoopOptions, StepReport
from anomalydiffusion_core.training.state import StateFile

STEPS, SAVE_EVERY, IDENTITY = 9, 2, "long training"
OPTIONS = LoopOptions(accumulate=2, refresh_every=1, balance="pictures")
SETTINGS = InversionSettings(
    steps=STEPS, batch_size=2, resolution=64, augmented_copies=1, anomaly_tokens=2, spatial_tokens=2, options=OPTIONS
)


def make_trainer() -> AnomalyTrainer:
    """Two types of two pairs, always the same."""
    generator = torch.Generator().manual_seed(0)
    pairs = {}
    for shift, key in enumerate(("part/dent", "part/hole")):
        masks = torch.zeros(2, 1, 64, 64)
        masks[:, :, 8 : 24 + 8 * shift, 16:40] = 1
        pairs[key] = (torch.rand(2, 3, 64, 64, generator=generator) * 0.2 + 0.4 + masks * 0.3, masks)
    return AnomalyTrainer(LdmDenoiser.random(0, context_dim=32), pairs, SETTINGS)


def main(path: Path) -> None:
    """Train with a state at ``path``."""

    def show(report: StepReport) -> None:
        sys.stdout.write(f"{report.step}\n")
        sys.stdout.flush()

    make_trainer().run(show, state=StateFile(path, IDENTITY), save_every=SAVE_EVERY)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
