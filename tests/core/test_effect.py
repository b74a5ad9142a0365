"""The effect score by hand."""

from __future__ import annotations

import pytest
import torch

from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.sampling.effect import effect_score


def scene() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    normal = torch.full((1, 3, 4, 4), 100 / 255)
    reconstruction = torch.full((1, 3, 4, 4), 104 / 255)
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2, :] = 1
    return normal, reconstruction, mask


def test_by_hand() -> None:
    normal, reconstruction, mask = scene()
    image = normal.clone()
    # Two of eight mask pixels: 30 levels above the reconstruction in one channel, 3 in the others; mean 12.
    image[0, :, 0, 0] = torch.tensor([134, 107, 107]) / 255
    # One mask pixel 40 below the normal image, 44 below the reconstruction: the smaller one counts.
    image[0, :, 1, 3] = 60 / 255
    image[0, 2, 3, 3] = 93 / 255
    result = effect_score(image, reconstruction, normal, mask, threshold=10)
    assert result.effect.tolist() == pytest.approx([(12 + 40) / 8], abs=1e-3)
    assert result.fill_share.tolist() == [2 / 8]
    assert result.outside_max_abs_diff.tolist() == [7]


def test_the_normal_image_and_its_reconstruction_have_no_effect() -> None:
    normal, reconstruction, mask = scene()
    for image in (normal, reconstruction):
        result = effect_score(image, reconstruction, normal, mask)
        assert result.effect.tolist() == [0] and result.fill_share.tolist() == [0]


def test_samples_are_scored_alone_and_a_full_mask_has_no_outside() -> None:
    normal, reconstruction, mask = scene()
    image = torch.cat([normal, normal + 50 / 255])
    masks = torch.cat([mask, torch.ones_like(mask)])
    result = effect_score(image, reconstruction.expand(2, -1, -1, -1), normal.expand(2, -1, -1, -1), masks)
    assert result.effect.tolist() == pytest.approx([0, 46], abs=1e-3)
    assert result.fill_share.tolist() == [0, 1]
    assert result.outside_max_abs_diff.tolist() == [0, 0]


def test_an_empty_mask_is_refused() -> None:
    normal, reconstruction, mask = scene()
    with pytest.raises(InputError, match="empty"):
        effect_score(normal, reconstruction, normal, torch.zeros_like(mask))
    with pytest.raises(InputError, match="must agree"):
        effect_score(normal, reconstruction, normal[:, :, :3], mask)
