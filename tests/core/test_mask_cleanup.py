"""Every rule rejects what it says, and nothing empty gets through."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.measure import label

from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.masks.cleanup import MaskRegion, MaskRules, binarise, clean_masks


def drawn(*boxes: tuple[int, int, int, int], size: int = 30) -> torch.Tensor:
    image = torch.zeros(1, 3, size, size)
    for top, bottom, left, right in boxes:
        image[..., top:bottom, left:right] = 1
    return image


def reason(image: torch.Tensor, **rules: object) -> str:
    result = clean_masks(image, MaskRules(**rules))  # type: ignore[arg-type]
    return result.rejected[0][1] if result.rejected else ""


def test_threshold_is_the_authors_on_the_channel_mean() -> None:
    image = torch.tensor([0.95, 0.95, 0.81]).view(1, 3, 1, 1)  # mean 0.9033, on -1..1: 0.807
    assert binarise(image).item() == 1
    assert binarise(image - 0.004).item() == 0  # on -1..1: 0.799


def test_each_rule() -> None:
    blob = drawn((10, 20, 10, 20))  # 100 of 900 pixels
    assert reason(blob) == ""
    assert reason(drawn()).startswith("empty")
    assert reason(blob, smallest_area=0.12).startswith("too small")
    assert reason(blob, largest_area=0.11).startswith("too large")
    two = drawn((2, 6, 2, 6), (20, 24, 20, 24))
    assert reason(two, most_components=1).startswith("too many parts: 2")
    assert reason(two, most_components=2) == ""
    assert reason(drawn((2, 6, 2, 6), (6, 9, 6, 9)), most_components=1) == ""  # touching at a corner is one part


def test_border_rule_is_more_than_a_third_of_one_side() -> None:
    assert reason(drawn((0, 3, 5, 15))) == ""  # 10 of 30 is not more than a third
    assert reason(drawn((0, 3, 5, 16))).startswith("border: covers 11 of 30 pixels of the top")
    assert reason(drawn((5, 16, 27, 30))).startswith("border: covers 11 of 30 pixels of the right")
    assert reason(drawn((5, 16, 27, 30)), border_rule=False) == ""


def test_specks_are_removed_and_holes_filled() -> None:
    image = drawn((10, 20, 10, 20), (2, 3, 2, 3))
    result = clean_masks(image, MaskRules(speck_area=0.005))
    assert result.masks.sum() == 100
    assert reason(drawn((2, 3, 2, 3)), speck_area=0.005).startswith("specks only")
    image = drawn((10, 20, 10, 20))
    image[..., 14:16, 14:16] = 0
    assert clean_masks(image).masks.sum() == 96
    assert clean_masks(image, MaskRules(fill_holes=True)).masks.sum() == 100


def test_regions_reject_by_share_and_cut_the_rest() -> None:
    left = np.zeros((30, 30), bool)
    left[:, :16] = True
    blob = drawn((10, 20, 10, 20))  # 60 of its 100 pixels lie in the left part

    def judged(share: float, **rules: object) -> tuple[float, str]:
        result = clean_masks(blob, MaskRules(**rules), [MaskRegion("foreground", left, share)])  # type: ignore[arg-type]
        return float(result.masks.sum()), result.rejected[0][1] if result.rejected else ""

    assert judged(0.6) == (60, "")
    assert judged(0.61)[1] == "off the foreground: 60% lies on it, at least 61% is required"
    assert judged(0.6, smallest_area=0.1)[1].startswith("too small: covers 6.667%")  # judged after the cut
    away = MaskRegion("allowed region", np.pad(np.ones((5, 5), bool), ((0, 25), (0, 25))))
    assert clean_masks(blob, None, [away]).rejected[0][1].startswith("off the allowed region: 0% lies on it")
    both = clean_masks(blob, None, [MaskRegion("foreground", left), MaskRegion("allowed region", left.T)])
    assert both.masks.sum() == 36 and both.masks[0, 0, 10:16, 10:16].all()


def test_the_cut_leaves_no_crumbs() -> None:
    strip = np.ones((30, 30), bool)
    strip[:, 12:18] = False
    result = clean_masks(drawn((10, 20, 10, 19)), MaskRules(speck_area=0.02), [MaskRegion("foreground", strip)])
    assert result.masks.sum() == 20  # 10 pixels to the right of the gap are below 18


def test_impossible_regions_are_named() -> None:
    with pytest.raises(InputError, match="foreground: marks nothing"):
        MaskRegion("foreground", np.zeros((4, 4), bool))
    with pytest.raises(InputError, match="foreground overlap: 2"):
        MaskRegion("foreground", np.ones((4, 4), bool), 2)
    with pytest.raises(InputError, match=r"foreground: has the size \(4, 4\), the masks \(30, 30\)"):
        clean_masks(drawn(), None, [MaskRegion("foreground", np.ones((4, 4), bool))])


def test_random_images_obey_the_rules_and_are_counted() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(60, 1, 24, 24, generator=generator)
    images = torch.nn.functional.avg_pool2d(images, 5, stride=1, padding=2)
    images = images * torch.rand(60, 1, 1, 1, generator=generator) * 3
    rules = MaskRules(threshold=0.6, smallest_area=0.02, largest_area=0.6, most_components=3, speck_area=0.01)
    result = clean_masks(images.expand(-1, 3, -1, -1), rules)
    assert len(result.accepted) + len(result.rejected) == 60 and result.accepted and result.rejected
    assert sorted([*result.accepted, *(place for place, _ in result.rejected)]) == list(range(60))
    for mask in result.masks[:, 0].numpy():
        assert set(np.unique(mask)) == {0, 1} or mask.all()
        assert 0.02 <= mask.mean() <= 0.6
        assert label(mask, connectivity=2).max() <= 3


def test_nothing_accepted_keeps_the_size() -> None:
    assert clean_masks(drawn()).masks.shape == (0, 1, 30, 30)


def test_impossible_rules_are_named() -> None:
    with pytest.raises(InputError, match="smallest_area: 0.5"):
        MaskRules(smallest_area=0.5, largest_area=0.2)
    with pytest.raises(InputError, match="threshold"):
        MaskRules(threshold=1.0)
    with pytest.raises(InputError, match="shape"):
        clean_masks(torch.zeros(3, 8, 8))
