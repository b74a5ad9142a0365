"""What a training will take of the memory, told before it starts.

Activations are measured, not guessed: one forward pass at a small size counts what autograd keeps for the backward
pass, which grows with the number of latent cells and of samples. Everything else follows from sizes.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ..devices import size_text
from ..errors import InputError
from .loop import TrainingLoop

PROBE_CELLS = 16
"""Largest side in latent cells of the measured pass."""
HEADROOM = 1.15
"""What allocators and temporary results add."""
COPIES = 5
"""Of each trained weight: itself, its gradient, two moments of Adam, and the last good value."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a training adds to what is loaded already.

    activations: kept for the backward pass of one batch. trained: weights with gradients and optimizer. bank: encoded
    images, there before the first step.
    """

    activations: int
    trained: int
    bank: int

    @property
    def needed(self) -> int:
        """What the steps will take; the bank is in memory by now."""
        return round(HEADROOM * (self.activations + self.trained))

    def text(self) -> str:
        """For reports."""
        parts = (("activations", self.activations), ("trained weights", self.trained), ("images", self.bank))
        return "memory about " + ", ".join(f"{size_text(value)} {name}" for name, value in parts)


def estimate_memory(loop: TrainingLoop) -> MemoryEstimate:
    """Estimate ``loop`` before it runs. Costs a forward pass at a small size and changes nothing."""
    trained = sum(p.numel() * p.element_size() for p in loop.module.parameters())
    return MemoryEstimate(_activations(loop), COPIES * trained, loop.bank.nbytes)


def _activations(loop: TrainingLoop) -> int:
    """Linear in samples and cells: two passes give each slope and what does not grow, like cast weights."""
    height, width = loop.bank.latents.shape[-2:]
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(loop.denoiser.training_mode())
        for part in loop.frozen:
            stack.enter_context(part.training_mode())
        masks = loop.bank.masks[:1].to(loop.denoiser.device, torch.float32)
        with _Kept() as for_one:
            context = loop.module((0,), masks)
        with _Kept() as for_two:
            loop.module((0, 0), masks.expand(2, -1, -1, -1))
        sample = for_two.bytes - for_one.bytes
        if min(height, width) < PROBE_CELLS:
            constant, slope = 0.0, _kept(loop, height, width, context) / (height * width)
        else:
            large, small = PROBE_CELLS, PROBE_CELLS // 2
            many, few = (_kept(loop, side, side, context) for side in (large, small))
            slope = (many - few) / (large**2 - small**2)
            constant = max(0.0, few - slope * small**2)
    constant += for_one.bytes - sample
    return round(constant + loop.settings.batch_size * (sample + slope * height * width))


def _kept(loop: TrainingLoop, height: int, width: int, context: Tensor) -> int:
    t = torch.zeros(1, dtype=torch.int64, device=loop.denoiser.device)
    with _Kept() as kept:
        loop.denoiser.predict_noise(loop.bank.latents[:1, :, :height, :width], t, context)
    return kept.bytes


class _Kept:
    """Counts the bytes that autograd keeps, each storage once and no parameter: weights are in memory anyway."""

    def __init__(self) -> None:
        self.bytes = 0
        self._seen: set[int] = set()
        self._alive: list[Tensor] = []
        self._hooks = saved_tensors_hooks(self._pack, lambda value: value)

    def _pack(self, value: Tensor) -> Tensor:
        place = value.untyped_storage().data_ptr()
        if place not in self._seen and not isinstance(value if value._base is None else value._base, nn.Parameter):
            self._seen.add(place)
            self._alive.append(value.detach())  # so that no other tensor comes to lie at the same place
            self.bytes += value.untyped_storage().nbytes()
        return value

    def __enter__(self) -> _Kept:
        self._hooks.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._hooks.__exit__(*details)
        self._alive.clear()


def check_memory(estimate: MemoryEstimate, available: int) -> None:
    """Raise InputError, saying what to lower, when a training cannot fit into ``available`` bytes."""
    if estimate.needed <= available:
        return
    lower = "batch_size (and raise accumulate), or the resolution, or switch on checkpointing"
    if estimate.trained > estimate.activations:
        lower = "the size of what is trained: the encoder light, fewer tokens"
    raise InputError(
        f"memory: the training needs about {size_text(estimate.needed)} more, {size_text(available)} are free "
        f"({estimate.text()}). Lower {lower}."
    )
