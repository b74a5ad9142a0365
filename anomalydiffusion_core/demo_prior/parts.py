"""Gradients of one batch by several threads, each on a part of it.

The noise predictor is small: on a CPU most of its operations are too short to be shared. Two threads with half a batch
each finish a step in three quarters of the time that two threads inside of each operation take.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Parts(Generic[M]):
    """A network with as many copies as there are threads; all share its weights, each has gradients of its own.

    Args:
        model: gets the gradients; its weights must be changed in place, as optimizers do.
        generators: one for each thread.
    """

    def __init__(self, model: M, generators: Sequence[torch.Generator]) -> None:
        self.generators = list(generators)
        self.models = [model, *(copy.deepcopy(model) for _ in self.generators[1:])]
        for other in self.models[1:]:
            for own, shared in zip(other.parameters(), model.parameters(), strict=True):
                own.data = shared.data
        self._pool = ThreadPoolExecutor(len(self.models))

    def __enter__(self) -> Parts[M]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def backward(self, loss_of: Callable[[M, Sequence[Tensor], torch.Generator], Tensor], *batch: Tensor) -> Tensor:
        """Leave the gradient of the batch's mean loss in the model; returns that loss, without its graph.

        Args:
            loss_of: the mean loss of a part, by a network with the model's weights, with random numbers of its own.
            batch: tensors with the batch's rows first; with fewer rows than threads some threads have nothing to do.
        """
        rows = len(batch[0])
        pieces = zip(*(tensor.tensor_split(len(self.models)) for tensor in batch), strict=True)

        def work(model: M, part: Sequence[Tensor], generator: torch.Generator) -> Tensor | None:
            model.zero_grad(set_to_none=True)
            if not len(part[0]):
                return None
            loss = loss_of(model, part, generator) * (len(part[0]) / rows)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()

        losses = [loss for loss in self._pool.map(work, self.models, pieces, self.generators) if loss is not None]
        for parameters in zip(*(model.parameters() for model in self.models), strict=True):
            gradients = [one.grad for one in parameters if one.grad is not None]
            if gradients:
                parameters[0].grad = sum(gradients[1:], start=gradients[0])
        return torch.stack(losses).sum()
