"""The loss that the demo prior is trained by, against sums made by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from anomalydiffusion_core.demo_prior.unet_training import Prior, denoising_loss, named_ninth
from anomalydiffusion_core.synthetic.captions import PLACES, Caption, caption_ids

pytestmark = pytest.mark.core

IDS = torch.tensor([caption_ids(Caption("stone", "red", "hole", "none", "small", "bottom-left"))])
GOOD = torch.tensor([caption_ids(Caption("stone", "red"))])


def silent() -> Prior:
    """A network whose last layer is zero, so that it predicts 0 everywhere."""
    prior = Prior()
    last = prior.unet.out[2]
    assert isinstance(last, torch.nn.Conv2d) and last.bias is not None
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    return prior.requires_grad_(False)


def loss(alpha: float, weights: torch.Tensor, ids: torch.Tensor) -> float:
    """At one noise level, of the latents below."""
    schedule = torch.full((1000,), alpha)
    return float(denoising_loss(silent(), schedule, latents(), weights, ids, torch.Generator().manual_seed(1)))


def latents() -> torch.Tensor:
    return torch.randn(1, 4, 24, 24, generator=torch.Generator().manual_seed(0))


def test_a_caption_names_its_ninth_and_a_good_or_empty_one_none() -> None:
    ids = torch.tensor([caption_ids(Caption("mask", place=place)) for place in PLACES] + [caption_ids(None)])
    assert torch.equal(named_ninth(ids).flatten(1), torch.cat([torch.eye(9), torch.zeros(1, 9)]))
    assert not named_ninth(GOOD).any()


def test_without_noise_the_defect_counts_by_its_weight() -> None:
    """With alpha = 1 the velocity is the noise, and the picture that it implies is the input: no broad error."""
    weights = torch.ones(1, 1, 24, 24)
    weights[..., :6] = 3.0
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):  # the noise level, and from which part of the levels it is
        torch.rand(1, generator=generator)
    noise = torch.randn(1, 4, 24, 24, generator=generator)
    expected = float((noise.square() * weights).mean())
    assert loss(1.0, weights, GOOD) == pytest.approx(expected, rel=1e-5)


def test_at_full_noise_a_defect_counts_by_its_place_if_that_is_named_and_by_its_weight_if_not() -> None:
    """With alpha = 0 the velocity is minus the clean latent, whose averages are the broad error."""
    heavy = torch.full((1, 1, 24, 24), 3.0)
    squared = latents().square()
    broad = {cells: functional.avg_pool2d(latents(), 24 // cells).square() for cells in (4, 8)}
    expected = squared.mean() + 2 * broad[4].mean() + 20 * broad[8].mean()
    assert loss(0.0, heavy, GOOD) == pytest.approx(float(3 * expected), rel=1e-5)
    place = functional.interpolate(named_ninth(IDS), (24, 24), mode="bilinear", align_corners=False)
    # The deepest cells of the ninth at the bottom left count three times, those far from it once.
    assert place[0, 0, 20:, :4].eq(1).all() and place[0, 0, :12].eq(0).all()
    placed = 1 + 2 * place
    expected = (placed * squared).mean()
    for cells, share in ((4, 2), (8, 20)):
        expected += share * (functional.avg_pool2d(placed, 24 // cells) * broad[cells]).mean()
    assert loss(0.0, heavy, IDS) == pytest.approx(float(expected), rel=1e-5)


def test_a_placed_defect_has_half_of_its_weight_where_a_twentieth_of_the_picture_is_left() -> None:
    ones, heavy = (torch.full((1, 1, 24, 24), weight) for weight in (1.0, 3.0))
    # All cells heavy: 1 + 2 / 2 where a place is named, 3 where none is.
    assert loss(0.05, heavy, IDS) == pytest.approx(2 * loss(0.05, ones, IDS), rel=1e-5)
    assert loss(0.05, heavy, GOOD) == pytest.approx(3 * loss(0.05, ones, GOOD), rel=1e-5)
