"""The sheet of all pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anomalydiffusion_core.data.images import write_image, write_mask
from anomalydiffusion_core.data.pairs import load_exported
from anomalydiffusion_core.data.sheets import CELL, pairs_sheet
from anomalydiffusion_core.figures import GAP, LABEL, OUTLINE, outlined

pytestmark = pytest.mark.core


def write_pairs(folder: Path, count: int) -> None:
    for number in range(count):
        image = torch.full((3, 64, 64), 0.1 * (number + 1))
        mask = torch.zeros(1, 64, 64)
        mask[0, 20:30, 20:30] = 1
        write_image(folder / "part" / "test" / "dot" / f"{number:03d}.png", image)
        write_mask(folder / "part" / "ground_truth" / "dot" / f"{number:03d}_mask.png", mask)


def test_every_pair_is_there_in_its_order(tmp_path: Path) -> None:
    write_pairs(tmp_path, 6)
    sheet = pairs_sheet(load_exported(tmp_path))
    step = CELL + GAP
    assert sheet.shape[1] == LABEL + 2 * GAP + 2 * step  # four in the first row, two in the second
    left = sheet.shape[2] - 8 * step
    for number in range(6):
        row, column = divmod(number, 4)
        top = LABEL + 2 * GAP + row * step
        for cell in (0, 1):  # the whole image and the enlarged defect have the same grey
            middle = left + (2 * column + cell) * step + CELL // 2
            grey = sheet[0, top + 5 if cell == 0 else top + CELL // 2, middle]
            assert float(grey) == pytest.approx(0.1 * (number + 1), abs=0.01)


def test_of_many_every_nth_is_shown(tmp_path: Path) -> None:
    write_pairs(tmp_path, 8)
    assert pairs_sheet(load_exported(tmp_path), most=4).shape[1] == LABEL + 2 * GAP + CELL + GAP


def test_the_outline_leaves_the_defect_as_it_is() -> None:
    image, mask = torch.zeros(3, 16, 16), torch.zeros(1, 16, 16)
    mask[0, 4:8, 4:8] = 1
    shown = outlined(image, mask)
    assert bool((shown[:, 4:8, 4:8] == 0).all())
    assert tuple(shown[:, 3, 5].tolist()) == pytest.approx(OUTLINE)
    assert int((shown.sum(0) > 0).sum()) == 36 - 16
