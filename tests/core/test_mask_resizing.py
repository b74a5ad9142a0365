"""Thin parts of masks survive any change of size, part by part."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from augmented import augment_pair
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.morphology import skeletonize

from anomalydiffusion_core.data.mask_resizing import resize_mask, skeleton
from anomalydiffusion_core.evaluation.metrics.pixels import fit_ground_truth
from anomalydiffusion_core.training.augment import AugmentSettings

EIGHT = np.ones((3, 3))


def drawn(height: int, width: int, seed: int) -> NDArray[np.bool_]:
    """A blob, thin lines of all directions, dots of 1 to 9 pixels, and a ring."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    mask = (y - height * 0.3) ** 2 + (x - width * 0.3) ** 2 < (min(height, width) * 0.12) ** 2
    radius = np.hypot(y - height * 0.7, x - width * 0.75)
    mask |= np.abs(radius - min(height, width) * 0.15) < 0.8
    for angle in rng.uniform(0, math.pi, 5):
        top, left, long = rng.uniform(0.1, 0.9) * height, rng.uniform(0.1, 0.9) * width, min(height, width) * 0.3
        steps = np.linspace(-long / 2, long / 2, 4 * int(long))
        rows, columns = top + steps * math.sin(angle), left + steps * math.cos(angle)
        kept = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        mask[rows[kept].astype(int), columns[kept].astype(int)] = True
    for side in (1, 1, 2, 2, 3):
        top, left = int(rng.integers(height - side)), int(rng.integers(width - side))
        mask[top : top + side, left : left + side] = True
    return mask


@pytest.mark.parametrize(("factor", "seed"), [(0.95, 0), (0.5, 1), (1 / 3, 2), (0.25, 3), (0.2, 4), (1 / 8, 5)])
def test_every_part_keeps_its_skeleton_and_stays_one(factor: float, seed: int) -> None:
    mask = drawn(517, 380, seed)
    target = (round(517 * factor), round(380 * factor))
    small = resize_mask(torch.from_numpy(mask).float()[None, None], target)[0, 0].numpy() > 0
    parts, count = ndimage.label(mask, structure=EIGHT)
    regions, _ = ndimage.label(small, structure=EIGHT)
    for part in range(1, count + 1):
        rows, columns = np.nonzero(skeletonize(parts == part))
        if not len(rows):  # the thinning of 2 x 2 pixels is empty
            rows, columns = np.nonzero(parts == part)
            touched = regions[(rows * target[0]) // 517, (columns * target[1]) // 380]
            assert touched.any()
            continue
        touched = regions[
            ((rows + 0.5) * target[0] / 517).astype(int), ((columns + 0.5) * target[1] / 380).astype(int)
        ]
        assert touched.all(), f"part {part} lost pixels of its skeleton"
        assert len(set(touched.tolist())) == 1, f"part {part} broke"


def test_the_line_beside_a_blob_of_the_report_survives() -> None:
    mask = torch.zeros(1, 1, 1024, 1024)
    mask[0, 0, 100:300, 100:300] = 1
    mask[0, 0, 700, 200:500] = 1
    mask[0, 0, 701, 300:400] = 1
    small = resize_mask(mask, 256)[0, 0]
    assert small[175, 50:125].all()  # 300 px are 75 cells; they were 0 of 75
    assert small[25:75, 25:75].all() and small.sum() == 75 + 50 * 50


def test_resize_mask_follows_the_area_rule_by_hand() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], dtype=torch.float32)[None, None]
    # quarters filled: 3/4, 1/4, 0, 1; the part of the first quarter ends in the second, and its skeleton with it
    resized = resize_mask(mask, 2)[0, 0]
    assert resized[0, 0] == 1 and resized[1].tolist() == [0.0, 1.0]
    block = torch.zeros(1, 1, 8, 8)
    block[0, 0, 2:6, 1:7] = 1  # 6 x 4 pixels in cells of 4: a half or less of each but for none
    assert resize_mask(block, (8, 4))[0, 0, 2:6].tolist() == [[0.0, 1.0, 1.0, 0.0]] * 4


@pytest.mark.parametrize("size", [7, 32, 300])
def test_resize_never_empties_a_mask(size: int) -> None:
    masks = torch.zeros(3, 1, 256, 256)
    masks[0, 0, 200, 31] = 1
    masks[1, 0, :, 100] = 1
    resized = resize_mask(masks, size)
    assert resized.amax(dim=(1, 2, 3)).tolist() == [1.0, 1.0, 0.0]
    assert set(resized.unique().tolist()) == {0.0, 1.0}


def test_thick_parts_keep_their_area() -> None:
    y, x = torch.meshgrid(torch.arange(800), torch.arange(800), indexing="ij")
    mask = ((y - 400) ** 2 + (x - 380) ** 2 < 250**2).float()[None, None]
    for size in (400, 200, 100):
        assert float(resize_mask(mask, size).mean()) == pytest.approx(float(mask.mean()), rel=0.01)


def test_one_axis_may_grow_while_the_other_shrinks() -> None:
    mask = torch.zeros(1, 1, 64, 16)
    mask[0, 0, :, 5] = 1
    resized = resize_mask(mask, (8, 40))[0, 0]
    # column 5 of 16 covers the columns 12.5 to 15 of 40; the centres of 12.5 to 14.5 lie in it
    assert resized[:, 13:15].all() and not resized[:, :12].any() and not resized[:, 15:].any()


def test_the_skeleton_of_what_thinning_removes_is_one_pixel() -> None:
    mask = np.zeros((9, 9), dtype=bool)
    mask[2:4, 2:4] = True
    mask[7, 7] = True
    thin = skeleton(mask)
    assert thin[2:4, 2:4].sum() >= 1 and thin[7, 7] and not (thin & ~mask).any()
    assert not skeleton(np.zeros((4, 4), dtype=bool)).any()


def test_metrics_and_augmentation_follow_the_same_rule() -> None:
    mask = drawn(512, 512, 9)
    whole = torch.from_numpy(mask).float()[None]
    assert (fit_ground_truth(mask.astype(np.float32), (64, 64)) == resize_mask(whole[None], 64)[0, 0].numpy()).all()
    still = AugmentSettings(max_degrees=0, min_scale=1, max_scale=1, overhang=0)
    image = whole.expand(3, -1, -1)
    label = augment_pair(image, whole, torch.Generator().manual_seed(0), 64, still)[1][0].numpy() > 0
    near = ndimage.binary_dilation(label, EIGHT)
    rows, columns = np.nonzero(skeletonize(mask))
    assert near[rows * 64 // 512, columns * 64 // 512].all()


def test_no_real_region_vanishes(shared_data: Path) -> None:
    folder = shared_data / "magnetic_tile" / "ground_truth"
    vanished = regions = 0
    for path in sorted(folder.rglob("*.png")):
        mask = np.asarray(Image.open(path)) > 0
        small = fit_ground_truth(mask.astype(np.float32), (mask.shape[0] // 4, mask.shape[1] // 4)) > 0
        parts, count = ndimage.label(mask, structure=EIGHT)
        rows, columns = np.nonzero(mask)
        shape = np.array(small.shape) / np.array(mask.shape)
        hit = small[((rows + 0.5) * shape[0]).astype(int), ((columns + 0.5) * shape[1]).astype(int)]
        vanished += count - len(np.unique(parts[rows, columns][hit]))
        regions += count
    assert regions > 100 and vanished == 0
