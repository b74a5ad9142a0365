"""The estimate of memory before a training, beside what autograd really keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from anomalydiffusion_core.backends.ldm import LdmDenoiser
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.training.inversion import AnomalyTrainer, InversionSettings
from anomalydiffusion_core.training.memory import MemoryEstimate, check_memory, estimate_memory, size_text

SETTINGS = InversionSettings(steps=2, batch_size=3, resolution=192, augmented_copies=1, anomaly_tokens=2)


def make_trainer(settings: InversionSettings) -> AnomalyTrainer:
    side = settings.resolution
    masks = torch.zeros(1, 1, side, side)
    masks[:, :, 8:40, 8:40] = 1
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    pairs = {"part/dent": (images, masks)}
    return AnomalyTrainer(LdmDenoiser.random(0, context_dim=32), pairs, settings)


def kept_by_a_step(trainer: AnomalyTrainer) -> int:
    """Bytes of all tensors that the graph of one whole batch holds, each once, without parameters."""
    storages: dict[int, int] = {}
    alive = []

    def pack(value: torch.Tensor) -> torch.Tensor:
        source = value if value._base is None else value._base
        if not isinstance(source, torch.nn.Parameter):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            alive.append(value.detach())
        return value

    loop = trainer.loop
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        loop._loss(loop._draw())
    return sum(storages.values())


@pytest.mark.parametrize("change", [{}, {"batch_size": 1}, {"resolution": 64}, {"encoder": "resnet50_fpn"}])
def test_estimate_is_near_what_a_step_keeps(change: dict[str, object]) -> None:
    settings = replace(SETTINGS, **change)  # type: ignore[arg-type]
    trainer = make_trainer(settings)
    estimate = estimate_memory(trainer.loop)
    assert estimate.activations == pytest.approx(kept_by_a_step(trainer), rel=0.15)
    weights = sum(p.numel() for p in trainer.module.parameters())
    assert estimate.trained == 5 * 4 * weights
    cells = settings.resolution // 8
    assert estimate.bank == 2 * (4 * cells**2 * 4 + cells**2 * 4 + settings.resolution**2)


def test_estimating_changes_nothing() -> None:
    small = replace(SETTINGS, resolution=64)
    plain = make_trainer(small).run()
    trainer = make_trainer(small)
    estimate_memory(trainer.loop)
    assert trainer.run().losses == plain.losses


def test_too_little_memory_is_an_error_that_says_what_to_lower() -> None:
    estimate = MemoryEstimate(activations=6_000_000_000, trained=200_000_000, bank=40_000_000)
    check_memory(estimate, 7_130_000_000)
    with pytest.raises(InputError, match=r"about 7.1 GB more, 7.1 GB are free .*6.0 GB activations.*Lower batch_size"):
        check_memory(estimate, 7_129_000_000)
    with pytest.raises(InputError, match="Lower the size of what is trained"):
        check_memory(replace(estimate, trained=9_000_000_000), 1_000_000_000)
    assert [size_text(x) for x in (10, 850e6, 3.21e9)] == ["1 MB", "850 MB", "3.2 GB"]
