"""No anomaly is ever lost, and label and image never disagree."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from augmented import augment_pair

from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.training.augment import AugmentSettings


def marked_pair(generator: torch.Generator, place: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three 3 x 3 dots, one per colour channel, as one anomaly; at corners and borders of the frame by turns."""
    height, width = (int(torch.randint(32, 72, (), generator=generator)) for _ in range(2))
    corners = [(0, 0), (0, width - 3), (height - 3, 0), (height - 3, width - 3), (height // 2, 0), (0, width // 2)]
    spots = [corners[place % 6]] if place % 7 else [corners[0], corners[3]]
    while len(spots) < 3:
        spots.append(
            (
                int(torch.randint(0, height - 2, (), generator=generator)),
                int(torch.randint(0, width - 2, (), generator=generator)),
            )
        )
    image = torch.zeros(3, height, width)
    for channel, (y, x) in enumerate(spots):
        image[channel, y : y + 3, x : x + 3] = 1
    return image, image.amax(dim=0, keepdim=True)


@pytest.mark.parametrize("draws", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_draw_loses_a_part_of_an_anomaly(draws: int) -> None:
    generator = torch.Generator().manual_seed(7)
    variants = [
        AugmentSettings(),
        AugmentSettings(max_degrees=45, flips=True),
        AugmentSettings(max_degrees=180, min_scale=0.3, overhang=0.3),
    ]
    for draw in range(draws):
        image, mask = marked_pair(generator, draw)
        size = (24, 40, 64)[draw % 3]
        new_image, new_mask = augment_pair(image, mask, generator, size, variants[draw % len(variants)])
        assert new_image.shape == (3, size, size) and new_mask.shape == (1, size, size)
        assert set(new_mask.unique().tolist()) <= {0.0, 1.0} and bool(new_mask.any())
        near = F.max_pool2d(new_mask[None], 3, stride=1, padding=1)[0, 0]
        for channel in new_image:
            # Each dot is there, and where it is brightest the label says so.
            assert channel.max() > 0.2, draw
            assert near.flatten()[channel.argmax()] == 1, draw


def test_label_covers_what_the_image_shows() -> None:
    generator = torch.Generator().manual_seed(3)
    for draw in range(200):
        mask = torch.zeros(1, 64, 64)
        y, x = (int(torch.randint(0, 44, (), generator=generator)) for _ in range(2))
        mask[0, y : y + 20, x : x + 20] = 1
        image, label = augment_pair(mask.expand(3, -1, -1), mask, generator, 64, AugmentSettings(flips=True))
        # The image is the mask: away from the blurred edge both must be equal, mirrored parts included.
        clear = (image[0] < 0.02) | (image[0] > 0.98)
        assert torch.equal(label[0][clear], (image[0][clear] > 0.5).float()), draw


def test_a_thin_line_survives_a_fourfold_reduction() -> None:
    mask = torch.zeros(1, 256, 256)
    mask[0, 40:200, 100] = 1
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        _, label = augment_pair(mask.expand(3, -1, -1), mask, generator, 64)
        rows = label[0].amax(dim=1).nonzero()
        # 160 of 256 px at a scale of at least 0.7 and at most 1 are 40 to 57 rows of 64, less for the rotation.
        assert int(rows.max() - rows.min()) >= 36


def test_a_whole_frame_anomaly_is_possible() -> None:
    mask = torch.ones(1, 32, 48)
    _, label = augment_pair(mask.expand(3, -1, -1), mask, torch.Generator().manual_seed(0), 32)
    assert label.mean() > 0.8


def test_same_generator_state_same_bytes_and_flips_are_off() -> None:
    image, mask = marked_pair(torch.Generator().manual_seed(1), 1)
    first = augment_pair(image, mask, torch.Generator().manual_seed(4), 32)
    second = augment_pair(image, mask, torch.Generator().manual_seed(4), 32)
    other = augment_pair(image, mask, torch.Generator().manual_seed(5), 32)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])
    # Left stays left without flips: a ramp from dark to bright never turns round.
    ramp = torch.linspace(0, 1, 32).expand(3, 32, 32)
    spot = torch.zeros(1, 32, 32)
    spot[0, 16, 16] = 1
    for seed in range(30):
        result, _ = augment_pair(ramp, spot, torch.Generator().manual_seed(seed), 32)
        assert result[0, :, 26].mean() > result[0, :, 6].mean()


def test_bad_input_is_named() -> None:
    generator = torch.Generator()
    with pytest.raises(InputError, match="empty"):
        augment_pair(torch.zeros(3, 8, 8), torch.zeros(1, 8, 8), generator, 8)
    with pytest.raises(InputError, match="min_scale"):
        AugmentSettings(min_scale=1.2)
