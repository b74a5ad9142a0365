"""The nodes around masks: their sources, foreground, placement and report."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image


def test_real_masks_are_varied(extension: Any, dataset: Any, data: Any) -> None:
    values = {"dataset": dataset, "defect_type": "part/bar", "count": 5, "size": 0}
    masks, report = extension.run("VaryRealMasks", **values).args
    assert masks.shape == (5, 64, 64) and masks.flatten(1).amax(dim=1).all()
    assert report.startswith("part/bar: 5 masks from 2 real ones, ")
    assert torch.equal(extension.run("VaryRealMasks", **values, seed=2).args[0][:3], masks[2:])
    still = {"max_degrees": 0, "min_scale": 1, "max_scale": 1, "max_shift": 0, "flips": False}
    same = extension.run("VaryRealMasks", **values, **still).args[0]
    for place in range(2):
        path = data / "part" / "ground_truth" / "bar" / f"{place:03d}_mask.png"
        assert np.array_equal(same[place].numpy() * 255, np.asarray(Image.open(path)))
    assert extension.run("VaryRealMasks", **{**values, "size": 32}).args[0].shape == (5, 32, 32)
    with pytest.raises(extension.errors.InputError, match="defect_type: is empty. Choose one of: part/bar, part/dot"):
        extension.run("VaryRealMasks", dataset=dataset)


def test_procedural_masks_take_the_areas_of_real_ones(extension: Any, dataset: Any) -> None:
    masks, report = extension.run("ProceduralMasks", count=12, size=64, dataset=dataset, defect_type="part/dot").args
    # Both training masks are squares of 12 x 12 px.
    assert set(masks.flatten(1).sum(dim=1).tolist()) == {144.0} and "like those of 2 training masks" in report
    both = extension.run("ProceduralMasks", count=12, size=64, dataset=dataset).args[0].flatten(1).sum(dim=1)
    assert 0.75 * 4 * 24 <= both.min() < 144 * 0.9 and both.max() <= 1.25 * 144
    limits = {"smallest_area": 0.1, "largest_area": 0.2}
    free, report = extension.run("ProceduralMasks", kind="blob", count=6, size=64, **limits).args
    assert all(0.1 <= area <= 0.2 for area in free.mean(dim=(1, 2)).tolist()) and report.startswith("blob: 6 masks")


def plate() -> tuple[torch.Tensor, torch.Tensor]:
    """Two white images with a dark plate, and the plates."""
    plates = torch.zeros(2, 64, 64)
    plates[0, 10:50, 20:60], plates[1, 4:60, 4:30] = 1, 1
    return (1 - 0.8 * plates)[..., None].expand(-1, -1, -1, 3).clone(), plates


def test_masks_are_placed_on_the_estimated_foreground(extension: Any) -> None:
    images, plates = plate()
    foreground, report = extension.run("EstimateForeground", image=images).args
    assert torch.equal(foreground, plates)
    assert report == "2 foregrounds, 35.5% to 39.1% of the image"
    masks = extension.box_mask(2)[:, :, ::2]
    masks = torch.nn.functional.pad(masks, (0, 32))  # 15 wide: they fit on both
    placed, report = extension.run("PlaceMasks", mask=masks, foreground=foreground, seed=4).args
    assert report == "2 of 2 masks placed, 100.0% or more of each inside"
    assert (placed * (1 - plates)).sum() == 0 and not torch.equal(placed, masks)
    assert torch.equal(placed.flatten(1).sum(dim=1), masks.flatten(1).sum(dim=1))


def test_what_cannot_be_placed_follows_the_option(extension: Any) -> None:
    _, plates = plate()
    masks = extension.box_mask(3)
    masks[1] = 0
    masks[1, 30, 0:62] = 1  # a line longer than any plate
    values = {"mask": masks, "foreground": plates[:1]}
    placed, report = extension.run("PlaceMasks", **values).args
    assert placed.shape == (3, 64, 64) and (placed * (1 - plates[0])).sum() == 0
    assert placed[1].sum() == masks[2].sum() and "mask 1 fits nowhere" in report and "mask 2 replaces" in report
    fewer = extension.run("PlaceMasks", **values, impossible="leave out").args[0]
    assert torch.equal(fewer, placed[[0, 2]])
    with pytest.raises(extension.errors.InputError, match="mask 1 fits nowhere: at most 64.5% of it can be inside"):
        extension.run("PlaceMasks", **values, impossible="error")
    with pytest.raises(extension.errors.InputError, match="0 of 1 masks placed"):
        extension.run("PlaceMasks", mask=masks[1], foreground=plates[:1])


def test_regions_meet_and_are_checked(extension: Any) -> None:
    _, plates = plate()
    masks = extension.box_mask(4)[:, :, ::2][:, :, :32]
    masks = torch.nn.functional.pad(masks, (0, 32))
    upper = torch.zeros(128, 128)
    upper[:60] = 1
    placed, report = extension.run("PlaceMasks", mask=masks, foreground=plates[:1], allowed=upper).args
    assert placed[:, 30:].sum() == 0 and (placed * (1 - plates[0])).sum() == 0
    assert "the allowed is 128x128 px, the mask 64x64 px: it was resized" in report
    lower = 1 - upper
    lower[:100] = 0
    error = extension.errors.InputError
    with pytest.raises(error, match="allowed: entry 0"):
        extension.run("PlaceMasks", mask=masks, foreground=plates[:1], allowed=lower)
    with pytest.raises(error, match="foreground, allowed: none"):
        extension.run("PlaceMasks", mask=masks)
    with pytest.raises(error, match="foreground: 2 for 4 masks"):
        extension.run("PlaceMasks", mask=masks, foreground=plates)


def test_report_finds_copies_of_training_masks(extension: Any, dataset: Any) -> None:
    still = {"max_degrees": 0, "min_scale": 1, "max_scale": 1, "max_shift": 0, "flips": False}
    values = {"dataset": dataset, "defect_type": "part/bar"}
    copies = extension.run("VaryRealMasks", **values, count=2, size=0, **still).args[0]
    plot, report = extension.run("MaskDiversityReport", mask=copies, **values).args
    assert plot.ndim == 4 and plot.shape[0] == 1 and plot.shape[3] == 3
    assert report.startswith("part/bar\n2 masks, 2 training masks")
    assert "IoU with the nearest training mask: median 1.00, largest 1.00; 2 above 0.8" in report
    alone = extension.run("MaskDiversityReport", mask=copies[:1]).args[1]
    assert "training" not in alone and "area: 2.34% to 2.34%" in alone  # 4 x 24 of 64 x 64
