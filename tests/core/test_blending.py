"""Latent masks, padding and the pixel composite."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.measure import block_reduce

from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.sampling.blending import (
    check_mask,
    composite,
    crop_back,
    inward_feather,
    latent_mask,
    pad_mask_to_multiple,
    pad_to_multiple,
)


def random_mask(generator: torch.Generator, height: int, width: int, share: float = 0.1) -> torch.Tensor:
    mask = (torch.rand(1, 1, height, width, generator=generator) < share).float()
    mask[0, 0, height // 2, width // 2] = 1
    return mask


def test_one_pixel_marks_exactly_its_latent_cell() -> None:
    mask = torch.zeros(1, 1, 32, 48)
    mask[0, 0, 15, 40] = 1
    expected = torch.zeros(1, 1, 4, 6)
    expected[0, 0, 1, 5] = 1
    assert torch.equal(latent_mask(mask, 8), expected)


def test_latent_mask_equals_block_maximum() -> None:
    generator = torch.Generator().manual_seed(1)
    for height, width in ((64, 64), (40, 72), (37, 50)):
        mask = random_mask(generator, height, width, 0.02)
        expected = block_reduce(mask[0, 0].numpy(), (8, 8), np.max)
        assert np.array_equal(latent_mask(mask, 8)[0, 0].numpy(), expected)


@pytest.mark.parametrize("size", [(333, 500), (64, 64), (5, 9), (1, 70), (63, 65)])
def test_padding_reaches_the_multiple_and_crops_back_exactly(size: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    padded, padding = pad_to_multiple(image, 64)
    assert padded.shape[-2] % 64 == 0 and padded.shape[-1] % 64 == 0
    assert padded.shape[-2] - size[0] < 64 and padded.shape[-1] - size[1] < 64
    assert torch.equal(crop_back(padded, padding), image)
    assert 0 <= padded.min() and padded.max() <= 1


def test_the_padding_of_a_mask_marks_nothing() -> None:
    mask = torch.ones(1, 1, 10, 12)
    padded = pad_mask_to_multiple(mask, 8)
    assert padded.shape == (1, 1, 16, 16)
    assert padded.sum() == 120


@pytest.mark.parametrize(
    ("width", "expected"),
    [(1, [1]), (2, [1, 1]), (3, [1 / 2, 1, 1 / 2]), (7, [1 / 3, 2 / 3, 1, 1, 1, 2 / 3, 1 / 3])],
)
def test_feather_by_hand_on_strips(width: int, expected: list[float]) -> None:
    mask = torch.zeros(1, 1, 9, 17)
    mask[..., 4 : 4 + width] = 1
    row = inward_feather(mask, 2)[0, 0, 4]
    assert torch.allclose(row[4 : 4 + width], torch.tensor(expected, dtype=torch.float32))
    assert row.sum() == pytest.approx(sum(expected))


def test_feather_of_a_thick_region_is_its_chessboard_distance() -> None:
    mask = torch.zeros(1, 1, 40, 40)
    mask[..., 5:33, 8:35] = 1
    distance = ndimage.distance_transform_cdt(mask[0, 0].numpy(), metric="chessboard")
    expected = np.clip(distance / 4, 0, 1)
    assert np.allclose(inward_feather(mask, 3)[0, 0].numpy(), expected)


def test_feather_zero_is_the_mask() -> None:
    mask = random_mask(torch.Generator().manual_seed(3), 20, 30)
    assert torch.equal(inward_feather(mask, 0), mask)


def test_outside_is_bit_identical_over_ten_cycles_with_eight_bit_round_trips() -> None:
    generator = torch.Generator().manual_seed(5)
    for case in range(20):
        height, width = 20 + case, 45 - case
        mask = random_mask(generator, height, width, 0.3)
        original = torch.rand(1, 3, height, width, generator=generator)
        eight_bit = (original * 255).round()
        image = original
        for _ in range(10):
            generated = torch.rand(1, 3, height, width, generator=generator)
            result = composite(generated, image, mask, feather=2)
            changed = (result != image).any(dim=1, keepdim=True)
            assert not bool((changed & (mask == 0)).any())
            assert 0 <= result.min() and result.max() <= 1
            image = (result * 255).round() / 255
            outside = ((image * 255).round() != eight_bit) & (mask == 0)
            assert not bool(outside.any())


def test_composite_takes_the_generated_pixels_in_the_middle() -> None:
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 2:14, 2:14] = 1
    result = composite(torch.full((1, 3, 16, 16), 0.7), torch.full((1, 3, 16, 16), 0.1), mask, feather=2)
    assert torch.equal(result[..., 4:12, 4:12], torch.full((1, 3, 8, 8), 0.7))
    assert torch.allclose(result[..., 2, 4:12], torch.full((1, 3, 8), 0.1 + 0.6 / 3))


def test_bad_masks_are_named() -> None:
    with pytest.raises(InputError, match="entry 1 of 2 is empty"):
        check_mask(torch.stack([torch.ones(1, 4, 4), torch.zeros(1, 4, 4)]))
    with pytest.raises(InputError, match="other than 0 and 1"):
        check_mask(torch.full((1, 1, 4, 4), 0.5))
    with pytest.raises(InputError, match=r"\(4, 4\)"):
        check_mask(torch.ones(4, 4))
    check_mask(torch.zeros(1, 1, 4, 4), allow_empty=True)
    with pytest.raises(InputError, match="must agree"):
        composite(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), torch.ones(1, 1, 5, 4))


def test_small_images_are_padded_to_a_smallest_side() -> None:
    image, mask = torch.rand(1, 3, 9, 40), torch.ones(1, 1, 9, 40)
    padded, padding = pad_to_multiple(image, 8, 32)
    assert padded.shape[-2:] == (32, 40) and torch.equal(crop_back(padded, padding), image)
    assert bool((padded[:, :, 9:] == image[:, :, 8:]).all())
    assert pad_mask_to_multiple(mask, 8, 32).sum() == 360 and pad_mask_to_multiple(mask, 8, 32).shape[-2:] == (32, 40)
