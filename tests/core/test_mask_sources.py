"""Masks without a model: whole, never empty, as large as asked, and the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.measure import label
from skimage.transform import rotate

from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.masks.procedural import KINDS, AreaDistribution, perlin_noise, procedural_masks
from anomalydiffusion_core.masks.variation import VariationSettings, cropped, transform_shape, vary_masks

STILL = VariationSettings(max_degrees=0, min_scale=1, max_scale=1, max_shift=0, flips=False)


def real_masks() -> torch.Tensor:
    masks = torch.zeros(3, 1, 64, 64)
    masks[0, 0, 20:32, 10:40] = 1
    masks[0, 0, 26:32, 30:34] = 0
    masks[1, 0, 5, 5:60] = 1  # a line of one pixel
    masks[2, 0, 63, 63] = 1  # a dot in the corner
    return masks


def test_nothing_to_vary_gives_the_masks_in_turn() -> None:
    masks = real_masks()
    assert torch.equal(vary_masks(masks, 4, 0, STILL), masks[[0, 1, 2, 0]])
    assert torch.equal(vary_masks(masks, 2, 1, STILL), masks[[1, 2]])


def test_varied_masks_depend_on_their_own_seed_and_never_vanish() -> None:
    masks = real_masks()
    varied = vary_masks(masks, 60, 7)
    assert varied.shape == (60, 1, 64, 64)
    assert set(varied.unique().tolist()) == {0, 1}
    assert varied.flatten(1).amax(dim=1).all()
    assert torch.equal(vary_masks(masks, 1, 7 + 41), varied[41:42])
    assert len({mask.numpy().tobytes() for mask in varied[::3]}) == 20


def test_scale_shift_and_flips_do_what_they_say() -> None:
    masks = real_masks()[:1]
    doubled = vary_masks(masks, 1, 0, VariationSettings(0, 2, 2, 0, False))
    assert doubled.sum() == 4 * masks.sum()
    # Its middle (row 26, column 25) stays where it is: rows 14 to 37 and columns -5 to 54, moved into the image.
    shape, top, left = cropped(doubled[0, 0].numpy() > 0)
    assert (shape.shape, top, left) == ((24, 60), 14, 0)
    moved = vary_masks(masks, 200, 0, VariationSettings(0, 1, 1, 0.5, False))
    places = np.array([cropped(mask[0].numpy() > 0)[1:] for mask in moved])
    assert places.min() == 0 and set(moved.flatten(1).sum(dim=1).tolist()) == {float(masks.sum())}
    # 32 pixels from row 20 and column 10 on, and no further than a 12 x 30 shape may go.
    assert 46 <= places[:, 0].max() <= 52 and places[:, 1].max() == 34
    flipped = {mask.numpy().tobytes() for mask in vary_masks(masks, 40, 0, VariationSettings(0, 1, 1, 0, True))}
    window = masks[0, 0, 20:32, 10:40]
    wanted = set()
    for axes in ((), (0,), (1,), (0, 1)):
        mask = torch.zeros(1, 64, 64)
        mask[0, 20:32, 10:40] = torch.flip(window, axes)
        wanted.add(mask.numpy().tobytes())
    assert flipped == wanted


def test_a_shape_too_large_for_the_image_is_made_smaller() -> None:
    masks = torch.ones(1, 1, 32, 32)
    varied = vary_masks(masks, 8, 0, VariationSettings(180, 1, 3, 1))
    assert varied.shape == (8, 1, 32, 32)
    assert (varied.flatten(1).mean(dim=1) > 0.4).all()  # a square turned by 45 degrees covers half of its box
    assert torch.equal(vary_masks(masks, 1, 0, VariationSettings(0, 100, 100, 1)), masks)


def test_rotation_agrees_with_scikit_image() -> None:
    shape = np.zeros((41, 41), bool)
    shape[5:36, 8:15] = True
    shape[29:36, 8:33] = True
    for degrees in (0, 30, 90, 137):
        ours, _, _ = cropped(transform_shape(shape, np.deg2rad(-degrees), 1.0))
        theirs, _, _ = cropped(rotate(shape.astype(float), degrees, resize=True, order=1) >= 0.5)
        height, width = np.maximum(ours.shape, theirs.shape)
        assert np.abs(np.subtract(ours.shape, theirs.shape)).max() <= 1, degrees
        best = 0.0
        for down in range(abs(ours.shape[0] - theirs.shape[0]) + 1):
            for right in range(abs(ours.shape[1] - theirs.shape[1]) + 1):
                canvas = np.zeros((2, height, width), bool)
                for index, part in enumerate((ours, theirs)):
                    r, c = (down, right) if part.shape != (height, width) else (0, 0)
                    r, c = min(r, height - part.shape[0]), min(c, width - part.shape[1])
                    canvas[index, r : r + part.shape[0], c : c + part.shape[1]] = part
                best = max(best, (canvas[0] & canvas[1]).sum() / (canvas[0] | canvas[1]).sum())
        assert best > 0.9, degrees  # the two grids may differ by half a pixel


def test_quarter_turns_and_thin_lines_are_exact() -> None:
    line = np.ones((1, 30), bool)
    assert transform_shape(line, np.pi / 2, 1.0).shape == (30, 1)
    for degrees in range(0, 180, 7):
        turned = transform_shape(line, np.deg2rad(degrees), 0.5)
        assert label(turned, connectivity=2).max() == 1, degrees
        assert max(turned.shape) >= 10
    assert transform_shape(np.ones((1, 1), bool), 1.0, 0.01).sum() == 1


@pytest.mark.parametrize("kind", KINDS)
def test_procedural_masks_have_the_wanted_area_exactly(kind: str) -> None:
    masks = procedural_masks(kind, 6, 96, 3, AreaDistribution(0.05, 0.05))
    assert masks.shape == (6, 1, 96, 96)
    assert set(masks.unique().tolist()) == {0, 1}
    assert masks.flatten(1).sum(dim=1).tolist() == [round(0.05 * 96 * 96)] * 6
    assert torch.equal(procedural_masks(kind, 1, 96, 3 + 4, AreaDistribution(0.05, 0.05)), masks[4:5])
    assert len({mask.numpy().tobytes() for mask in masks}) == 6
    tiny = procedural_masks(kind, 3, 32, 0, AreaDistribution(1e-5, 1e-5))
    assert tiny.flatten(1).sum(dim=1).tolist() == [1, 1, 1]  # never empty
    whole = procedural_masks(kind, 2, 16, 0, AreaDistribution(1, 1))
    assert whole.all()


def test_strokes_cracks_and_blobs_are_one_part() -> None:
    for kind in ("stroke", "crack", "blob"):
        masks = procedural_masks(kind, 12, 128, 1, AreaDistribution(0.01, 0.05))
        parts = [label(mask[0].numpy(), connectivity=2).max() for mask in masks]
        assert max(parts) == 1, (kind, parts)
    thin = procedural_masks("stroke", 8, 128, 1, AreaDistribution(0.01, 0.01))
    long = [max(cropped(mask[0].numpy() > 0)[0].shape) for mask in thin]
    assert min(long) > 2 * (128 * 128 * 0.01 * 4 / np.pi) ** 0.5  # more than twice as long as a disc of that area


def test_areas_follow_the_examples() -> None:
    rng = np.random.default_rng(0)
    examples = np.exp(rng.normal(np.log(0.01), 0.6, 40)).clip(0.001, 0.2)
    areas = AreaDistribution.learned(examples.tolist())
    drawn = np.array([areas.draw(np.random.default_rng(i)) for i in range(2000)])
    assert drawn.min() >= 0.75 * examples.min() - 1e-12 and drawn.max() <= 1.25 * examples.max() + 1e-12
    for share in (10, 50, 90):
        assert np.log(np.percentile(drawn, share)) == pytest.approx(np.log(np.percentile(examples, share)), abs=0.3)
    one = AreaDistribution.learned([0.04])
    assert {round(one.draw(np.random.default_rng(i)), 9) for i in range(5)} == {0.04}


def test_perlin_noise_is_zero_at_its_grid_and_bounded() -> None:
    y, x = np.meshgrid(np.linspace(0, 5, 101), np.linspace(-3, 2, 101), indexing="ij")
    noise = perlin_noise(np.random.default_rng(0), y, x)
    assert np.abs(noise[::20, ::20]).max() < 1e-12  # Perlin: gradient noise vanishes at lattice points
    assert 0.3 < np.abs(noise).max() <= 1
    assert np.abs(np.diff(noise, axis=0)).max() < 0.2  # no seams


def test_impossible_settings_are_named() -> None:
    with pytest.raises(InputError, match="kind: unknown value 'star'.*mixed, perlin, stroke, crack, blob"):
        procedural_masks("star", 1, 64, 0)
    with pytest.raises(InputError, match="smallest_area: 0.5"):
        AreaDistribution(0.5, 0.1)
    with pytest.raises(InputError, match="no masks to learn"):
        AreaDistribution.learned([])
    with pytest.raises(InputError, match="min_scale: 2"):
        VariationSettings(min_scale=2, max_scale=1)
    with pytest.raises(InputError, match="entry 1 of 2 is empty"):
        vary_masks(torch.stack([torch.ones(1, 8, 8), torch.zeros(1, 8, 8)]), 1, 0)
    with pytest.raises(InputError, match="count: 0"):
        vary_masks(real_masks(), 0, 0)
