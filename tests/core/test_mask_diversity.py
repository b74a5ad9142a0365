"""Copies of training masks are seen, also at another place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.masks.diversity import measure_diversity, plot_diversity
from anomalydiffusion_core.masks.procedural import AreaDistribution, procedural_masks


def boxes(*places: tuple[int, int, int, int], size: int = 40) -> torch.Tensor:
    masks = torch.zeros(len(places), 1, size, size)
    for mask, (top, bottom, left, right) in zip(masks, places, strict=True):
        mask[0, top:bottom, left:right] = 1
    return masks


def test_iou_with_the_nearest_by_hand() -> None:
    training = boxes((0, 10, 0, 10), (20, 30, 20, 40))
    masks = boxes((0, 10, 0, 10), (5, 15, 0, 10), (2, 12, 15, 25))
    found = measure_diversity(masks, training)
    assert found.nearest == pytest.approx((1.0, 50 / 150, 0.0))
    assert found.nearest_place[:2] == (0, 0)
    assert found.centred == pytest.approx((1.0, 1.0, 1.0))  # the same square everywhere
    assert found.among == pytest.approx((50 / 150, 50 / 150, 0.0))
    assert found.training_among == (0.0, 0.0)
    assert found.shapes.area == pytest.approx((100 / 1600,) * 3)
    assert found.centres[0] == pytest.approx((5 / 40, 5 / 40)) and found.centres[2] == pytest.approx((20 / 40, 7 / 40))
    # Training areas are 100 and 200 pixels, those of the masks 100: exp(log(2) / 2) apart.
    assert found.distances()["area"] == pytest.approx(2**0.5)
    text = found.describe()
    assert "3 masks, 2 training masks" in text
    assert "a factor 1.41 apart" in text
    assert "IoU with the nearest training mask: median 0.33, largest 1.00; 1 above 0.8" in text
    assert "both moved to one centre: median 1.00, largest 1.00; 3 above 0.8" in text


def test_iou_agrees_with_scikit_learn() -> None:
    masks = procedural_masks("mixed", 5, 64, 0, AreaDistribution(0.1, 0.3))
    training = procedural_masks("mixed", 4, 64, 90, AreaDistribution(0.1, 0.3))
    found = measure_diversity(masks, training)
    for mask, value in zip(masks, found.nearest, strict=True):
        wanted = max(jaccard_score(other.flatten().numpy(), mask.flatten().numpy()) for other in training)
        assert value == pytest.approx(wanted, abs=1e-6)
    assert all(centred <= 1 + 1e-6 for centred in found.centred)


def test_moved_copies_and_other_shapes_are_told_apart() -> None:
    training = procedural_masks("blob", 6, 96, 1, AreaDistribution(0.02, 0.05))
    training = torch.nn.functional.pad(training, (16, 16, 16, 16))
    moved = torch.cat([torch.roll(mask[None], (9, -7), dims=(2, 3)) for mask in training])
    copies = measure_diversity(moved, training)
    assert min(copies.centred) > 0.9
    others = measure_diversity(procedural_masks("stroke", 6, 128, 50, AreaDistribution(0.01, 0.03)), training)
    assert max(others.centred) < 0.8


def test_without_training_masks_and_alone() -> None:
    alone = measure_diversity(boxes((0, 4, 0, 4)))
    assert alone.among == () and alone.nearest == ()
    assert "training" not in alone.describe()
    plot = plot_diversity(alone, "part/dot", (600, 240))
    assert plot.shape == (3, 240, 600) and 0 <= plot.min() < plot.max() <= 1
    full = plot_diversity(measure_diversity(boxes((0, 4, 0, 4), (3, 9, 2, 8)), boxes((0, 4, 0, 4))))
    assert len(np.unique(full.numpy())) > 10
    with pytest.raises(InputError, match="masks: entry 0 of 1 is empty"):
        measure_diversity(torch.zeros(1, 1, 8, 8))


def test_training_masks_of_another_size_are_compared_at_one() -> None:
    found = measure_diversity(boxes((0, 20, 0, 20)), boxes((0, 40, 0, 40), size=80))
    assert found.nearest == (1.0,)
    large = measure_diversity(boxes((0, 300, 0, 300), size=600), boxes((0, 300, 0, 300), size=600))
    assert large.nearest == (1.0,) and large.shapes.area == pytest.approx((0.25,))
