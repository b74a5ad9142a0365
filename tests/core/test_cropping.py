"""Windows around small masks: where they lie, what they keep, and that nothing around them changes."""

from __future__ import annotations

import pytest
import torch

from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.sampling.reweighting import common_windows
from anomalydiffusion_core.sampling.windows import (
    CropSettings,
    cut_image,
    cut_mask,
    plan_window,
    stitch,
)


def box(height: int, width: int, top: int, left: int, tall: int, wide: int) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, top : top + tall, left : left + wide] = 1
    return mask


def test_window_by_hand() -> None:
    # A box of 4 x 6 px with 10 px around the longer side: 26 px, centred on (52, 63), enlarged to 104 px, 4 times.
    settings = CropSettings("always", crop_margin=10, crop_size=104)
    window = plan_window(box(200, 300, 50, 60, 4, 6), settings, 8)
    assert window is not None
    assert window.box == (39, 50, 26, 26)
    assert window.sampled == (104, 104)


def test_window_moves_inwards_at_the_border_and_is_cut_to_flat_pictures() -> None:
    settings = CropSettings("always", crop_margin=20, crop_size=100)
    corner = plan_window(box(200, 300, 198, 0, 2, 1), settings, 8)
    assert corner is not None and corner.box == (200 - 42, 0, 42, 42)
    flat = plan_window(box(16, 300, 4, 150, 2, 2), settings, 8)
    # 42 px are wanted, the picture is 16 px high; the longer side is enlarged to 100 px, the other by the same factor.
    assert flat is not None and flat.box == (0, 130, 16, 42) and flat.sampled == (38, 100)


def test_large_windows_are_never_shrunk() -> None:
    settings = CropSettings("always", crop_margin=10, crop_size=64)
    window = plan_window(box(300, 300, 50, 50, 100, 100), settings, 8)
    assert window is not None and window.sampled == (120, 120)
    assert plan_window(box(64, 64, 0, 0, 64, 64), settings, 8) is None


def test_auto_counts_touched_cells() -> None:
    # 3 x 3 px across the corner of four cells touch 4 of them; inside one cell they touch 1.
    across, within = box(256, 256, 7, 7, 3, 3), box(256, 256, 9, 9, 3, 3)
    assert plan_window(across, CropSettings("auto", crop_cells=4), 8) is None
    assert plan_window(across, CropSettings("auto", crop_cells=5), 8) is not None
    assert plan_window(within, CropSettings("auto", crop_cells=1), 8) is None
    assert plan_window(within, CropSettings("auto", crop_cells=2), 8) is not None
    assert plan_window(within, CropSettings("off", crop_cells=2), 8) is None


def test_windows_of_random_masks_keep_every_marked_pixel_and_change_nothing_around() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    for _ in range(60):
        height, width = draw(8, 90), draw(8, 90)
        mask = (torch.rand(1, height, width, generator=generator) > 0.995).float()
        mask[0, draw(0, height), draw(0, width)] = 1
        settings = CropSettings("always", crop_margin=draw(0, 20), crop_size=draw(8, 120))
        window = plan_window(mask, settings, 8)
        if window is None:
            continue
        top, left, tall, wide = window.box
        assert 0 <= top <= height - tall and 0 <= left <= width - wide
        assert float(mask[:, top : top + tall, left : left + wide].sum()) == float(mask.sum())
        assert window.sampled[0] >= tall and window.sampled[1] >= wide
        small = cut_mask(mask, window)
        assert small.shape[-2:] == window.sampled and set(small.unique().tolist()) <= {0.0, 1.0}
        # Each marked pixel covers at least one sampled pixel of its own.
        assert float(small.sum()) >= float(mask.sum())
        picture = torch.rand(3, height, width, generator=generator)
        part = cut_image(picture, window)
        assert part.shape == (3, *window.sampled)
        result = stitch(torch.rand(part.shape, generator=generator), picture, window)
        around = torch.ones(height, width, dtype=torch.bool)
        around[top : top + tall, left : left + wide] = False
        assert torch.equal(result[:, around], picture[:, around])


def test_a_part_that_was_not_changed_comes_back_nearly_as_it_was() -> None:
    rows = torch.linspace(0, 1, 60)
    picture = (rows[:, None] * rows[None, :]).expand(3, -1, -1).contiguous()
    window = plan_window(box(60, 60, 28, 30, 3, 3), CropSettings("always", crop_margin=8, crop_size=76), 8)
    assert window is not None and window.box[2] == 19
    result = stitch(cut_image(picture, window), picture, window)
    assert float((result - picture).abs().max()) < 0.01
    with pytest.raises(InputError, match="Stitch what was sampled"):
        stitch(torch.rand(3, 19, 19), picture, window)


def test_windows_of_one_size_for_a_batch() -> None:
    cells = torch.zeros(2, 1, 10, 12)
    cells[0, 0, 0, 0] = 1
    cells[1, 0, 5:8, 6:11] = 1
    corners, size = common_windows(cells, 1)
    assert size == (5, 7)
    assert corners == [(0, 0), (4, 5)]
    assert common_windows(cells, 50) == ([(0, 0), (0, 0)], (10, 12))


def test_wrong_settings_are_named() -> None:
    for values, word in (
        ({"crop": "maybe"}, "crop"),
        ({"crop_margin": -1}, "crop_margin"),
        ({"crop_size": -1}, "crop_size"),
    ):
        with pytest.raises(InputError, match=word):
            CropSettings(**values)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="empty"):
        plan_window(torch.zeros(1, 20, 20), CropSettings(), 8)
