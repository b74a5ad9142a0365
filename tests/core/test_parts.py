"""Gradients of a batch by several threads are those of the whole batch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from anomalydiffusion_core.demo_prior.parts import Parts


def squared(model: nn.Module, part: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    inputs, wanted = part
    error: Tensor = model(inputs) - wanted
    return error.square().mean()


@pytest.mark.parametrize(("threads", "rows"), [(1, 6), (2, 6), (3, 7), (4, 2)])
def test_gradients_are_those_of_the_whole_batch(threads: int, rows: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 2)).double()
    inputs, wanted = torch.randn(rows, 3).double(), torch.randn(rows, 2).double()
    expected = torch.autograd.grad(squared(model, (inputs, wanted), torch.Generator()), list(model.parameters()))
    with Parts(model, [torch.Generator() for _ in range(threads)]) as parts:
        for _ in range(2):  # gradients of an earlier step do not add up
            loss = parts.backward(squared, inputs, wanted)
    whole = squared(model, (inputs, wanted), torch.Generator()).item()
    assert loss.item() == pytest.approx(whole, rel=1e-12)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-15)


def test_all_threads_see_what_an_optimizer_changes() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    ones, zeros = torch.ones(4, 1).double(), torch.zeros(4, 1).double()
    with Parts(model, [torch.Generator(), torch.Generator()]) as parts:
        for wanted in (0.5, 0.25, 0.125):  # the gradient of w squared is 2 w, so each step halves the weight
            parts.backward(squared, ones, zeros)
            optimizer.step()
            assert model.weight.item() == wanted
