"""What a detector misses becomes a plan of pairs, which the command generate takes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from anomalydiffusion_core.cli.app import app
from anomalydiffusion_core.data.images import write_image, write_mask
from anomalydiffusion_core.data.mvtec import load_dataset
from anomalydiffusion_core.data.pair_plan import read_plan
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.evaluation.localization.gaps import (
    Region,
    nearest_normals,
    placed_shape,
    plan_pairs,
    regions_of,
    score_at,
    share_out,
)
from anomalydiffusion_core.evaluation.settings import GapSettings

pytestmark = pytest.mark.core


def test_the_threshold_lets_so_many_normal_pixels_pass() -> None:
    maps = np.arange(100.0).reshape(1, 10, 10)
    masks = np.zeros((1, 10, 10), dtype=bool)
    assert (maps > score_at(maps, masks, 0.05)).sum() == 5
    assert (maps > score_at(maps, masks, 0.0)).sum() == 0
    masks[0, 9] = True  # the scores 90 to 99 are defects: 10 % of the 90 others are 81 to 89
    assert score_at(maps, masks, 0.1) == 80


def test_regions_with_size_place_contrast_and_what_was_found() -> None:
    """A square of 2 x 2 in the middle of 10 x 10, half of it found, .5 brighter; a pixel in a corner, missed."""
    masks, maps = np.zeros((1, 10, 10), dtype=bool), np.zeros((1, 10, 10))
    masks[0, 4:6, 4:6], masks[0, 0, 9] = True, True
    maps[0, 4, 4:6] = 1.0
    image = torch.full((1, 3, 10, 10), 0.25)
    image[:, :, 4:6, 4:6] = 0.75
    corner, square = sorted(regions_of(maps, masks, image, ["a/b"], 0.5), key=lambda region: region.area)
    assert (square.area, square.place, square.found) == (pytest.approx(0.04), pytest.approx((0.5, 0.5)), 0.5)
    assert square.contrast == pytest.approx(0.5, abs=1e-6)
    assert (corner.area, corner.found, corner.missed) == (pytest.approx(0.01), 0.0, 1.0)
    assert corner.place == pytest.approx((0.05, 0.95))
    assert corner.contrast == pytest.approx(0.0, abs=1e-6)


def test_pairs_are_shared_out_by_what_was_missed() -> None:
    assert share_out([1.0, 0.5, 0.0], 9) == [6, 3, 0]
    assert share_out([1.0, 1.0, 1.0], 5) == [2, 2, 1]  # 1.67 each: the first two get the remainders
    with pytest.raises(InputError, match="misses nothing"):
        share_out([0.0, 0.0], 3)


def test_normals_are_compared_outside_the_mask() -> None:
    """The defect is white on dark: with it, the light normal image would be nearer."""
    image, mask = torch.full((1, 3, 64, 64), 0.2), torch.zeros(1, 1, 64, 64)
    image[:, :, :48], mask[:, :, :48] = 1.0, 1.0
    normals = torch.stack([torch.full((3, 64, 64), value) for value in (0.9, 0.5, 0.25)])
    assert nearest_normals(image, mask, normals) == [[2, 1, 0]]


def test_a_shape_gets_its_area_and_place() -> None:
    mask = np.zeros((64, 64), dtype=bool)
    mask[10:14, 10:14] = True
    placed = placed_shape(mask, 64 / 64**2, (0.5, 0.25), 0.0)
    rows, columns = placed[0].nonzero(as_tuple=True)
    assert (int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())) == (28, 35, 12, 19)
    corner = placed_shape(mask, 64 / 64**2, (0.0, 1.0), math.pi / 2)
    assert int(corner.sum()) == 64 and bool(corner[0, :8, 56:].all())


def test_a_plan_follows_the_regions() -> None:
    regions = [Region("a/b", 0, 0.01, (0.5, 0.5), 0.1, 0.75), Region("a/c", 1, 0.04, (0.2, 0.8), 0.2, 0.25)]
    shape = torch.zeros(1, 1, 50, 50)
    shape[:, :, 20:30, 20:30] = 1
    normals = [Path(name) for name in "xyz"]
    settings = GapSettings(count=4, nearest=2)
    plan = plan_pairs(regions, [[0, 1, 2], [2, 0, 1]], normals, {"a/b": shape, "a/c": shape}, settings)
    assert [pair.key for pair in plan.pairs] == ["a/b", "a/c", "a/c", "a/c"]  # .25 and .75 missed
    assert [pair.normal.name for pair in plan.pairs] == ["x", "z", "x", "z"]
    for pair, area in zip(plan.pairs, (0.01, 0.04, 0.04, 0.04), strict=True):
        assert float(pair.mask.mean()) == pytest.approx(area, rel=0.15)
    again = plan_pairs(regions, [[0, 1, 2], [2, 0, 1]], normals, {"a/b": shape, "a/c": shape}, settings)
    assert all(torch.equal(one.mask, two.mask) for one, two in zip(plan.pairs, again.pairs, strict=True))


def test_the_command_writes_a_plan_that_is_read_again(tmp_path: Path) -> None:
    base = tmp_path / "data" / "part"
    for number in range(4):
        pixels = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(number))
        write_image(base / "train" / "good" / f"{number}.png", pixels)
        for defect in ("bar", "dot"):
            mask = torch.zeros(1, 32, 32)
            mask[:, 6 : 14 + number, 10:20] = 1
            write_image(base / "test" / defect / f"{number}.png", torch.where(mask > 0, 1 - pixels, pixels))
            write_mask(base / "ground_truth" / defect / f"{number}_mask.png", mask)
    arguments = ["gaps", "--data", tmp_path / "data", "--category", "part", "--out", tmp_path / "plan", "--count", 5]
    small = ["--size", 32, "--width", 2, "--steps", 2, "--batch-size", 2, "--device", "cpu", "--split", "first n"]
    done = CliRunner().invoke(app, [str(one) for one in [*arguments, *small, "--train-count", 2]])
    assert done.exit_code == 0, done.output
    stored = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert len(stored["pairs"]) == 5 and {one["type"] for one in stored["pairs"]} <= {"part/bar", "part/dot"}
    plan = read_plan(tmp_path / "plan", load_dataset(tmp_path / "data", "part"))
    assert [pair.normal.name for pair in plan.pairs] == [Path(one["normal"]).name for one in stored["pairs"]]
    assert sum(len(plan.masks(key)[0]) for key in plan.keys) == 5
    stored["pairs"][0]["normal"] = "train/good/9.png"
    (tmp_path / "plan" / "plan.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match="plan: the normal image train/good/9.png is not in"):
        read_plan(tmp_path / "plan", load_dataset(tmp_path / "data", "part"))
