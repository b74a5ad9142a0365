"""Judging generated defects: how much of the mask they fill, how thick, in how many colours, of which type."""

from __future__ import annotations

import pytest
import torch

from anomalydiffusion_core.demo_prior.recognition import SIDE, Defects, Recogniser, colour_count, look, window

pytestmark = pytest.mark.core


def test_look_by_hand() -> None:
    normals, masks = torch.full((2, 3, 64, 64), 0.5), torch.zeros(2, 1, 64, 64)
    masks[0, :, 10:14, 4:44] = 1  # 4 x 40 px, of which 2 rows change
    masks[1, :, 10:14, 4:44] = 1  # nothing changes enough: 9 of 255
    images = normals.clone()
    images[0, :, 10:12, 4:44] = 0.9
    images[1, :, 10:14, 4:44] += 9 / 255
    found = look(Defects(images, normals, masks))
    assert found.fill == pytest.approx(0.0)  # torch's median of (0, 0.5) is the lower one
    assert found.thickness == pytest.approx(2, rel=0.06)
    assert found.colours == 1
    assert look(Defects(images[:1], normals[:1], masks[:1])).fill == pytest.approx(0.5)


def test_colours_are_counted_by_what_can_be_told_apart() -> None:
    image, mask = torch.zeros(3, 20, 20), torch.ones(1, 20, 20)
    image[:, :, :10] = torch.tensor([0.7, 0.1, 0.1])[:, None, None]
    image[:, :, 10:] = torch.tensor([0.1, 0.1, 0.7])[:, None, None]
    assert colour_count(image, mask) == 2
    image[:, :, 10:18] = image[:, :, :8]  # a tenth of the pixels is left: still a colour
    assert colour_count(image, mask) == 2
    image[:, :, 18:19] = image[:, :, :1]  # a twentieth is not
    assert colour_count(image, mask) == 1
    # Shades of one colour from dark to bright are one colour.
    image = torch.linspace(0.1, 0.9, 20).expand(3, 20, 20)
    assert colour_count(image, mask) == 1


def test_a_recogniser_learns_what_differs() -> None:
    generator = torch.Generator().manual_seed(0)
    windows = 0.5 + 0.05 * torch.randn(96, 3, SIDE, SIDE, generator=generator)
    labels = torch.arange(96) % 2
    windows[labels == 1, :, 30:34] = 0.9  # a bright bar
    recogniser = Recogniser(["spot", "bar"])
    recogniser.train(windows, labels, passes=4)
    images, masks = 0.5 + 0.05 * torch.randn(8, 3, 80, 80, generator=generator), torch.zeros(8, 1, 80, 80)
    masks[:, :, 20:60, 20:60] = 1
    images[:, :, 38:42] = 0.9
    assert recogniser.recognised(images, masks, "bar") == 1.0
    assert recogniser.recognised(images, masks, "spot") == 0.0
    assert window(images[0], masks[0]).shape == (3, SIDE, SIDE)
