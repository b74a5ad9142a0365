"""Windows around small masks: where they lie, what they keep, and that nothing around them changes."""

from __future__ import annotations

import pytest
import torch

from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.sampling.reweighting import common_windows
from anomalydiffusion_core.sampling.windows import (
    CropSettings,
    Window,
    around,
    cut_image,
    cut_mask,
    join,
    plan_windows,
    stitch,
)
from anomalydiffusion_core.scale import TrainedView


def box(height: int, width: int, top: int, left: int, tall: int, wide: int) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, top : top + tall, left : left + wide] = 1
    return mask


def plan_window(mask: torch.Tensor, settings: CropSettings, downscale: int) -> Window | None:
    """The one window of a mask that is no long thin line."""
    found = plan_windows(mask, settings, downscale)
    assert len(found) < 2
    return found[0] if found else None


def test_window_by_hand() -> None:
    # A box of 4 x 6 px with 10 px around the longer side: 26 px, centred on (52, 63), enlarged to 104 px, 4 times.
    settings = CropSettings("always", crop_margin=10, crop_size=104)
    window = plan_window(box(200, 300, 50, 60, 4, 6), settings, 8)
    assert window is not None
    assert window.box == (39, 50, 26, 26)
    assert window.sampled == (104, 104)


def test_window_moves_inwards_at_the_border_and_is_cut_to_flat_images() -> None:
    settings = CropSettings("always", crop_margin=20, crop_size=100)
    corner = plan_window(box(200, 300, 198, 0, 2, 1), settings, 8)
    assert corner is not None and corner.box == (200 - 42, 0, 42, 42)
    flat = plan_window(box(16, 300, 4, 150, 2, 2), settings, 8)
    # 42 px are wanted, the image is 16 px high; the longer side is enlarged to 100 px, the other by the same factor.
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
        image = torch.rand(3, height, width, generator=generator)
        part = cut_image(image, window)
        assert part.shape == (3, *window.sampled)
        result = stitch(torch.rand(part.shape, generator=generator), image, window)
        around = torch.ones(height, width, dtype=torch.bool)
        around[top : top + tall, left : left + wide] = False
        assert torch.equal(result[:, around], image[:, around])


def test_a_part_that_was_not_changed_comes_back_nearly_as_it_was() -> None:
    rows = torch.linspace(0, 1, 60)
    image = (rows[:, None] * rows[None, :]).expand(3, -1, -1).contiguous()
    window = plan_window(box(60, 60, 28, 30, 3, 3), CropSettings("always", crop_margin=8, crop_size=76), 8)
    assert window is not None and window.box[2] == 19
    result = stitch(cut_image(image, window), image, window)
    assert float((result - image).abs().max()) < 0.01
    with pytest.raises(InputError, match="Stitch what was sampled"):
        stitch(torch.rand(3, 19, 19), image, window)


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


def line(side: int, length: int, thick: int = 1) -> torch.Tensor:
    """A horizontal line in the middle of a square image."""
    return box(side, side, side // 2, (side - length) // 2, thick, length)


def covered(mask: torch.Tensor, windows: list[Window]) -> bool:
    inside = torch.zeros_like(mask)
    for one in windows:
        inside[:, one.top : one.top + one.height, one.left : one.left + one.width] = 1
    return bool((inside >= mask).all())


def test_a_long_thin_line_is_tiled_by_its_thickness() -> None:
    # Scale not known: 1 px with 32 px around is 65 px, enlarged to 256; a quarter (16 px) is shared: steps of 49 px.
    mask = line(512, 400)
    tiles = plan_windows(mask, CropSettings(crop_size=256), 8)
    assert len(tiles) == -(-400 // 49) and {(one.height, one.width) for one in tiles} == {(65, 65)}
    assert {one.sampled for one in tiles} == {(256, 256)} and covered(mask, tiles)
    # What is thick enough, or learned on whole images as it is drawn, stays one view, as it was.
    view = TrainedView(False, 256, 256, 1.0, 0.8, 1.2, 60.0, (256, 256))
    assert [one.scale for one in plan_windows(mask, CropSettings(), 8, view)] == [2.0]
    assert plan_windows(line(512, 400, 2), CropSettings(crop_size=256), 8) == []
    assert plan_windows(mask, CropSettings("off"), 8, view) == []


def test_a_line_beyond_the_largest_window_is_tiled_at_the_trained_scale() -> None:
    view = TrainedView(True, 128, 128, 1.0, 0.9, 1.1, 40.0, (2000, 2000))
    assert len(plan_windows(line(2000, 200), CropSettings(), 8, view)) == 1, "two trained sides are one window"
    tiles = plan_windows(line(2000, 1500, 3), CropSettings(), 8, view)
    assert {one.scale for one in tiles} == {1.0} and len(tiles) == -(-1500 // 96)
    assert len(plan_windows(line(2000, 1500, 80), CropSettings(), 8, view)) == 1
    crossed = torch.maximum(line(2000, 1990), line(2000, 1990).transpose(1, 2))
    for y in range(0, 2000, 40):
        crossed[:, y] = 1
    grid = plan_windows(crossed, CropSettings(), 8, view)
    assert 1 < len(grid) <= 64 and covered(crossed, grid), "a net of lines gets larger tiles, not more of them"


def test_tiles_join_without_a_seam_and_leave_the_rest_alone() -> None:
    mask, image = line(128, 120), torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))
    tiles = plan_windows(mask, CropSettings(crop_size=64, crop_margin=15), 8)
    assert len(tiles) > 2
    whole = (0, 0, 128, 128)
    flat = join([torch.full((3, *one.sampled), 0.25) for one in tiles], image, tiles, whole)
    assert torch.allclose(flat[:, mask[0] > 0], torch.tensor(0.25), atol=1e-6), "equal parts have no seam"
    away = torch.ones(128, 128, dtype=torch.bool)
    away[min(one.top for one in tiles) : max(one.top + one.height for one in tiles)] = False
    assert torch.equal(flat[:, away], image[:, away])
    box_of = (60, 10, 9, 100)
    assert torch.allclose(
        join([torch.full((3, *one.sampled), 0.25) for one in tiles], image, tiles, box_of), flat[:, 60:69, 10:110]
    )
    steps = join([torch.full((3, *one.sampled), n / len(tiles)) for n, one in enumerate(tiles)], image, tiles, whole)
    row = steps[0, 64, mask[0, 64] > 0]
    assert float((row[1:] - row[:-1]).abs().max()) < 1 / len(tiles) / 4, "neighbours fade into each other"
    assert around(tiles) is not None and around(tiles).tiles == len(tiles)  # type: ignore[union-attr]
