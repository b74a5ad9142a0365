"""Masks are placed where they may lie, or reported; nothing about their shape changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.signal import correlate2d

from anomalydiffusion_core.data.mvtec import load_dataset, load_images, load_pairs
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.masks.foreground import (
    METHODS,
    ForegroundSettings,
    describe_foreground,
    estimate_foreground,
)
from anomalydiffusion_core.masks.placement import place_masks, with_others
from anomalydiffusion_core.masks.procedural import AreaDistribution, procedural_masks
from anomalydiffusion_core.masks.variation import cropped, vary_masks


def region(size: int = 48) -> torch.Tensor:
    """A ring: most places of the image lie off it."""
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    radius = np.hypot(y, x)
    return torch.from_numpy(((radius < 22) & (radius > 10)).astype(np.float32))[None, None]


def shapes(count: int = 12) -> torch.Tensor:
    return procedural_masks("mixed", count, 48, 2, AreaDistribution(0.01, 0.04))


@pytest.mark.parametrize("share", [1.0, 0.7, 0.0])
def test_the_stated_share_lies_inside_and_shapes_stay(share: float) -> None:
    masks, ring = shapes(), region()
    placed = place_masks(masks, ring, share, seed=5)
    for before, after, entry in zip(masks, placed.masks, placed.placements, strict=True):
        old, top, left = cropped(before[0].numpy() > 0)
        new, new_top, new_left = cropped(after[0].numpy() > 0)
        assert np.array_equal(old, new)
        inside = float((after * ring[0]).sum() / after.sum())
        # By another way: the best share over all places.
        best = correlate2d(ring[0, 0].numpy(), old.astype(float), mode="valid").max() / old.sum()
        assert entry.placed == (best >= share - 1e-6)
        if entry.placed:
            assert inside >= max(share, 1 / old.sum()) - 1e-6 and entry.share == pytest.approx(inside)
            assert entry.moved == (new_top - top, new_left - left)
        else:
            assert torch.equal(before, after) and entry.share == pytest.approx(best)
    assert placed.failed or share < 1
    again = place_masks(masks, ring, share, seed=5)
    assert torch.equal(again.masks, placed.masks)
    alone = place_masks(masks[3:4], ring, share, seed=5 + 3)
    assert torch.equal(alone.masks[0], placed.masks[3])
    assert not torch.equal(place_masks(masks, ring, share, seed=6).masks, placed.masks)


def test_a_single_place_is_found_and_all_places_are_used() -> None:
    key = torch.zeros(1, 1, 40, 40)
    key[0, 0, 2:5, 2] = 1
    key[0, 0, 4, 2:9] = 1
    hole = torch.roll(key, (27, 31 - 2), dims=(2, 3))
    placed = place_masks(key, hole, 1.0, seed=0)
    assert torch.equal(placed.masks, hole) and placed.placements[0].moved == (27, 29)
    hole[0, 0, 29, 31] = 0
    failed = place_masks(key, hole, 1.0, seed=0)
    assert failed.failed == (0,) and failed.placements[0].share == pytest.approx(8 / 9)
    dot = torch.zeros(1, 1, 40, 40)
    dot[0, 0, 0, 0] = 1
    four = torch.zeros(1, 1, 40, 40)
    four[0, 0, [3, 9, 20, 39], [7, 0, 20, 39]] = 1
    found = [tuple(place_masks(dot, four, 1.0, seed=s).masks[0, 0].nonzero()[0].tolist()) for s in range(80)]
    assert set(found) == {(3, 7), (9, 0), (20, 20), (39, 39)}
    assert min(found.count(place) for place in set(found)) >= 8  # 20 each on average


def test_masks_inside_can_stay() -> None:
    masks = torch.zeros(2, 1, 48, 48)
    masks[0, 0, 5:8, 22:26] = 1  # on the ring
    masks[1, 0, 0:3, 0:3] = 1  # off it
    placed = place_masks(masks, region(), 1.0, seed=1, keep_inside=True)
    assert torch.equal(placed.masks[0], masks[0]) and placed.placements[0].moved == (0, 0)
    assert placed.placements[1].moved != (0, 0)


def test_what_fits_nowhere_is_reported_and_can_be_replaced() -> None:
    masks = torch.zeros(3, 1, 48, 48)
    masks[0, 0, :, 10:12] = 1  # as high as the image
    masks[1, 0, 5:8, 22:26] = 1
    masks[2, 0, 1, 1] = 1
    ring = region()
    placed = place_masks(masks, ring, 1.0, seed=3)
    assert placed.failed == (0,) and torch.equal(placed.masks[0], masks[0])
    assert placed.describe().startswith(
        "2 of 3 masks placed, 100.0% or more of each inside\nmask 0 fits nowhere: at mos"
    )
    filled = with_others(placed, masks, ring, 1.0, seed=3)
    assert filled.used_instead == {0: 1} and filled.failed == (0,)
    assert filled.masks[0].sum() == masks[1].sum() and (filled.masks[0] * (1 - ring[0])).sum() == 0
    assert not torch.equal(filled.masks[0], filled.masks[1])
    assert filled.describe().endswith("; mask 1 replaces it")


def test_each_mask_can_have_a_region_of_its_own() -> None:
    masks = shapes(2)
    left, right = torch.zeros(2, 1, 1, 48, 48)
    left[..., :24], right[..., 24:] = 1, 1
    placed = place_masks(masks, torch.cat([left, right]), 1.0, seed=0)
    assert placed.failed == ()
    assert placed.masks[0, :, :, 24:].sum() == 0 and placed.masks[1, :, :, :24].sum() == 0
    # The wide one fits into the second region only, so the first gets the other one.
    wide = torch.zeros(2, 1, 48, 48)
    wide[0, 0, 0, :30], wide[1, 0, 0, :3] = 1, 1
    regions = torch.cat([left, torch.ones_like(left)])
    placed = place_masks(wide, regions, 1.0, seed=0)
    assert with_others(placed, wide, regions, 1.0, seed=0).used_instead == {0: 1}


def test_impossible_inputs_are_named() -> None:
    masks = shapes(3)
    with pytest.raises(InputError, match="Give one region, or one"):
        place_masks(masks, region().expand(2, -1, -1, -1))
    with pytest.raises(InputError, match="region: entry 0 of 1 is empty"):
        place_masks(masks, torch.zeros(1, 1, 48, 48))
    with pytest.raises(InputError, match="share inside: 1.5"):
        place_masks(masks, region(), 1.5)


def scene(hole: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """A bluish object with a hole on a noisy light background that darkens to one side."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:80, :80]
    inside = np.hypot(y - 38, x - 42) < 24
    if hole:
        inside &= np.hypot(y - 38, x - 42) > 8
    pixels = np.full((80, 80, 3), 0.85) - 0.1 * (x / 80)[..., None]
    pixels[inside] = (0.25, 0.3, 0.5)
    pixels += rng.normal(0, 0.02, pixels.shape)
    image = torch.from_numpy(pixels.clip(0, 1).astype(np.float32)).permute(2, 0, 1)
    return image[None], torch.from_numpy(inside)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_object(method: str) -> None:
    image, inside = scene()
    filled = torch.from_numpy(ndimage.binary_fill_holes(inside.numpy()))
    mask = estimate_foreground(image, ForegroundSettings(method))[0, 0] > 0
    assert (mask != filled).float().mean() < 0.005
    open_mask = estimate_foreground(image, ForegroundSettings(method, fill_holes=False))[0, 0] > 0
    # The flood from the border does not reach what the object surrounds.
    wanted = filled if method == METHODS[0] else inside
    assert (open_mask != wanted).float().mean() < 0.01


def test_margin_shrinks_and_grows_and_cover_is_judged() -> None:
    image, _ = scene(hole=False)
    areas = [estimate_foreground(image, ForegroundSettings(margin=m)).sum().item() for m in (0, 4, -4)]
    for area, radius in zip(areas, (24, 20, 28), strict=True):
        assert area == pytest.approx(np.pi * radius**2, rel=0.05)
    assert describe_foreground(image, estimate_foreground(image)).count("\n") == 0
    texture = torch.rand(1, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    both = torch.cat([image, texture])
    assert "background on image 1: check" in describe_foreground(both, estimate_foreground(both))
    assert "background on image 0: check" in describe_foreground(image, torch.ones(1, 1, 80, 80))
    with pytest.raises(InputError, match="no object was found on image 1 of 2"):
        estimate_foreground(torch.cat([image, torch.full_like(image, 0.5)]))


def test_where_no_object_stands_out_the_whole_image_can_stand_for_it() -> None:
    image, _ = scene(hole=False)
    texture = torch.rand(1, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    plain = torch.full_like(image, 0.5)
    masks = estimate_foreground(torch.cat([image, texture, plain]), ForegroundSettings(unclear="whole picture"))
    assert torch.equal(masks[:1], estimate_foreground(image)), "a clear object stays as it is found"
    assert bool((masks[1:] == 1).all())
    assert "background on image 1, 2: check" in describe_foreground(torch.cat([image, texture, plain]), masks)
    with pytest.raises(InputError, match="unclear: unknown value 'maybe'"):
        ForegroundSettings(unclear="maybe")


@pytest.mark.parametrize("count", [80, pytest.param(500, marks=pytest.mark.slow)])
def test_no_mask_lies_off_a_bottle(shared_data: Path, count: int) -> None:
    dataset = load_dataset(shared_data, "bottle")
    normals = load_images(dataset.normals[::42], None)
    foreground = estimate_foreground(normals)
    # Against the images themselves: the background is nearly white and the bottle dark, but for reflections.
    brightness = normals.amin(dim=1, keepdim=True)
    assert (foreground[brightness > 0.95] == 0).float().mean() > 0.98
    assert (foreground[brightness < 0.5] == 1).all()
    real = torch.cat([load_pairs(kind.train, None)[1] for kind in dataset.types])
    masks = torch.cat(
        [vary_masks(real, count // 2, 0), procedural_masks("mixed", count // 2, 256, 0, AreaDistribution(0.002, 0.05))]
    )
    regions = foreground[torch.arange(count) % len(foreground)]
    placed = place_masks(masks, regions, 1.0, seed=0)
    filled = with_others(placed, masks, regions, 1.0, seed=0)
    assert len(filled.masks) == count and set(filled.used_instead) == set(placed.failed)
    off = (filled.masks * (1 - regions)).flatten(1).sum(dim=1)
    assert (off > 0).sum() == 0
    assert filled.masks.flatten(1).amax(dim=1).all()
    # Real defects lie on the object too, so the estimate is no smaller than it.
    images, own = (torch.cat(x) for x in zip(*(load_pairs(k.train, None) for k in dataset.types), strict=True))
    ground = estimate_foreground(images)
    assert float((own * ground).sum() / own.sum()) > 0.97
