"""Detectors at native scale: windows to train on, tiles to test with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from anomalydiffusion_core.data.mvtec import load_dataset
from anomalydiffusion_core.data.splits import SplitSettings
from anomalydiffusion_core.evaluation.localization.rows import rows_of
from anomalydiffusion_core.evaluation.localization.runs import RunStore
from anomalydiffusion_core.evaluation.localization.sources import held_out_images, normal_images, real_pairs
from anomalydiffusion_core.evaluation.localization.table import evaluate_localization
from anomalydiffusion_core.evaluation.localization.testing import score_tests_tiled
from anomalydiffusion_core.evaluation.localization.tiles import normal_windows, pair_windows, score_tiles, tile_starts
from anomalydiffusion_core.evaluation.settings import TILES, LocalizerSettings

SMALL = LocalizerSettings(size=32, width=2, steps=2, batch_size=2, view=TILES)


def test_tiles_reach_from_border_to_border_and_overlap() -> None:
    assert tile_starts(20, 32) == [0] and tile_starts(32, 32) == [0]
    assert tile_starts(56, 32) == [0, 24]  # a quarter of 32 px in common
    starts = tile_starts(200, 32)
    assert starts[0] == 0 and starts[-1] == 168
    assert max(later - earlier for earlier, later in zip(starts, starts[1:], strict=False)) <= 24


@pytest.mark.parametrize("size", [(150, 70), (20, 90), (33, 32)])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_stitching_what_does_not_depend_on_the_tile_gives_it_back(size: tuple[int, int], scale: float) -> None:
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    plain = (y + x).float() / 300
    stitched = score_tiles(lambda tiles: tiles[:, 0], plain.expand(3, -1, -1), replace(SMALL, tile_scale=scale), 4)
    # a slope survives halving and doubling up to the border of what is mirrored or clamped
    assert stitched.shape == size and float((stitched - plain).abs().max()) < (1e-6 if scale == 1 else 0.02)


def write_data(root: Path) -> None:
    rng = np.random.default_rng(0)
    for part in ("train/good", "test/good", "test/pit", "ground_truth/pit"):
        (root / "screw" / part).mkdir(parents=True)
    for number in range(4):
        size = (60, 140) if number % 2 else (80, 100)
        image = rng.integers(90, 110, (*size, 3)).astype(np.uint8)
        for part in ("train/good", "test/good"):
            Image.fromarray(image + rng.integers(0, 3, image.shape).astype(np.uint8)).save(
                root / "screw" / part / f"{number}.png"
            )
        mask = np.zeros(size, dtype=np.uint8)
        mask[20:26, 70 + number : 78 + number] = 255
        Image.fromarray(np.where(mask[..., None] > 0, 230, image).astype(np.uint8)).save(
            root / "screw" / "test" / "pit" / f"{number}.png"
        )
        Image.fromarray(mask).save(root / "screw" / "ground_truth" / "pit" / f"{number}_mask.png")


def test_windows_hold_a_part_of_a_defect_at_its_own_size(tmp_path: Path) -> None:
    write_data(tmp_path)
    dataset = load_dataset(tmp_path, "screw", SplitSettings("first n", 2))
    images, masks = pair_windows(real_pairs(dataset), SMALL)["screw/pit"]
    assert images.shape == (12, 3, 32, 32) and bool(masks.flatten(1).any(dim=1).all())
    assert float(images[:, :1][masks > 0].min()) > 0.85 > 0.6 > float(images[:, :1][masks == 0].max())
    assert float(masks.sum(dim=(1, 2, 3)).max()) <= 6 * 8
    assert normal_windows(normal_images(dataset), SMALL).shape == (24, 3, 32, 32)


def test_metrics_are_those_of_the_original_pixels(tmp_path: Path) -> None:
    write_data(tmp_path)
    dataset = load_dataset(tmp_path, "screw", SplitSettings("first n", 2))
    tests = held_out_images(dataset)

    class Bright(torch.nn.Module):
        """Logits that rise with the brightness of each pixel."""

        def __init__(self) -> None:
            super().__init__()
            self.own = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.zeros_like(images[:, :1]), images[:, :1] * 4], dim=1)

    scored = score_tests_tiled(Bright(), tests, SMALL)  # type: ignore[arg-type]
    assert [one.shape for one in scored.maps][:2] == [(80, 100), (60, 140)] and len(scored.maps) == 6
    truth = np.concatenate([mask.ravel() for mask in scored.masks])
    scores = np.concatenate([one.ravel() for one in scored.maps])
    assert scored.measure().pixel_ap == pytest.approx(average_precision_score(truth, scores), abs=1e-6)
    assert truth.sum() == 2 * 6 * 8 and scored.measure().pixel_ap > 0.99
    assert scored.shown([0, 1]).shape == (2, 32, 32)


def test_a_table_on_tiles_says_so(tmp_path: Path) -> None:
    write_data(tmp_path)
    dataset = load_dataset(tmp_path, "screw", SplitSettings("first n", 2))
    rows = rows_of(["few real"], {})
    report = evaluate_localization(dataset, rows, SMALL, [0], None, RunStore(tmp_path / "runs"))
    assert "on tiles of 32 image px" in report.table
    assert report.records[0].budget["view"] == TILES and report.records[0].reduced
