"""The loss that the demo prior is trained by, against sums made by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from anomalydiffusion_core.demo_prior.unet_training import (
    Prior,
    around_defects,
    denoising_loss,
    drop_words,
    named_ninth,
)
from anomalydiffusion_core.synthetic.captions import PLACES, Caption, caption_ids, normal_caption_ids, vocabulary

pytestmark = pytest.mark.core

IDS = torch.tensor([caption_ids(Caption("stone", "red", "hole", "none", "small", "bottom-left"))])
FIRST = vocabulary().index(f"place:{PLACES[0]}")
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
    assert torch.equal(named_ninth(ids, FIRST).flatten(1), torch.cat([torch.eye(9), torch.zeros(1, 9)]))
    assert not named_ninth(GOOD, FIRST).any()


def test_without_noise_the_defect_counts_by_its_weight() -> None:
    """With alpha = 1 the velocity is the noise, and the image that it implies is the input: no broad error."""
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
    place = functional.interpolate(named_ninth(IDS, FIRST), (24, 24), mode="bilinear", align_corners=False)
    # The deepest cells of the ninth at the bottom left count three times, those far from it once.
    assert place[0, 0, 20:, :4].eq(1).all() and place[0, 0, :12].eq(0).all()
    placed = 1 + 2 * place
    expected = (placed * squared).mean()
    for cells, share in ((4, 2), (8, 20)):
        expected += share * (functional.avg_pool2d(placed, 24 // cells) * broad[cells]).mean()
    assert loss(0.0, heavy, IDS) == pytest.approx(float(expected), rel=1e-5)


def test_a_placed_defect_has_half_of_its_weight_where_a_twentieth_of_the_image_is_left() -> None:
    ones, heavy = (torch.full((1, 1, 24, 24), weight) for weight in (1.0, 3.0))
    # All cells heavy: 1 + 2 / 2 where a place is named, 3 where none is.
    assert loss(0.05, heavy, IDS) == pytest.approx(2 * loss(0.05, ones, IDS), rel=1e-5)
    assert loss(0.05, heavy, GOOD) == pytest.approx(3 * loss(0.05, ones, GOOD), rel=1e-5)


def test_min_snr_weights_the_cells_of_a_velocity_by_the_capped_ratio() -> None:
    """At alpha = 0.5 the ratio is 1: weight 1 / 2, over the largest, 5 / 6. At 0.9 it is 9: min(9, 5) / 10."""
    ones = torch.ones(1, 1, 24, 24)

    def value(alpha: float, min_snr: float) -> float:
        schedule, generator = torch.full((1000,), alpha), torch.Generator().manual_seed(1)
        return float(denoising_loss(silent(), schedule, latents(), ones, GOOD, generator, min_snr=min_snr))

    for alpha, weight in ((0.5, 0.6), (0.9, 0.6), (1 / 6, 0.2)):
        generator = torch.Generator().manual_seed(1)
        for _ in range(2):
            torch.rand(1, generator=generator)
        noise = torch.randn(1, 4, 24, 24, generator=generator)
        velocity = alpha**0.5 * noise - (1 - alpha) ** 0.5 * latents()
        lost = (1 - weight) * float(velocity.square().mean())
        assert value(alpha, 0.0) - value(alpha, 5.0) == pytest.approx(lost, rel=1e-3)


def test_words_are_dropped_one_by_one_and_together() -> None:
    words = vocabulary()
    ids = torch.tensor([caption_ids(Caption("stone", "red", "hole", "none", "small", "top-left"))]).expand(20_000, -1)
    kept = (drop_words(ids, words, torch.Generator().manual_seed(0), single=0.2) != 0).double().mean(0)
    # Slots: surface and its colour 1 - 0.1 - 0.15, defect and its colour 1 - 0.1, size and place 1 - 0.1 - 0.25.
    expected = torch.tensor([0.75, 0.75, 0.9, 0.9, 0.65, 0.65]) * 0.8
    assert torch.allclose(kept, expected.double(), atol=0.02)
    normal = torch.tensor([caption_ids(Caption("stone", "red"))]).expand(2000, -1)
    rows = {tuple(row) for row in drop_words(normal, words, torch.Generator().manual_seed(0), single=0.0).tolist()}
    assert tuple(normal_caption_ids()) in rows and tuple([0] * 6) in rows


def test_a_part_of_an_image_holds_a_cell_of_its_defect_and_stays_aligned() -> None:
    rows, columns = torch.meshgrid(torch.arange(10.0), torch.arange(12.0), indexing="ij")
    latents = torch.stack([rows, columns])[None].repeat(200, 1, 1, 1)
    weights = torch.ones(200, 1, 10, 12)
    weights[:100, 0, 9, 3] = 3.0
    parts, kept = around_defects(latents, weights, 4, torch.Generator().manual_seed(0))
    assert parts.shape == (200, 2, 4, 4) and kept.shape == (200, 1, 4, 4)
    # Each part is a window of the image: its rows and columns count up by one.
    assert torch.equal(parts[:, 0, :, 0] - parts[:, 0, :1, 0], torch.arange(4.0).expand(200, 4))
    assert torch.equal(parts[:, 1, 0, :] - parts[:, 1, 0, :1], torch.arange(4.0).expand(200, 4))
    assert ((parts[:, 0] == 9) & (parts[:, 1] == 3))[kept[:, 0] > 1].all()
    assert (kept[:100].flatten(1).amax(1) == 3).all() and (kept[100:] == 1).all()
    # All offsets that hold the cell occur, and anywhere where there is no defect.
    assert set(parts[:100, 1, 0, 0].int().tolist()) == {0, 1, 2, 3}
    assert set(parts[100:, 1, 0, 0].int().tolist()) == set(range(9))


def test_an_image_no_larger_than_the_part_is_taken_whole() -> None:
    latents, weights = torch.randn(3, 2, 4, 4), torch.ones(3, 1, 4, 4)
    parts, kept = around_defects(latents, weights, 8, torch.Generator().manual_seed(0))
    assert torch.equal(parts, latents) and torch.equal(kept, weights)
