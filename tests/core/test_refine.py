"""Labels that cover what changed: each rule on cases worked out by hand, and the choice between the rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from anomalydiffusion_core.data.images import write_image, write_mask
from anomalydiffusion_core.data.mvtec import AnomalyDataset, load_dataset
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.masks.change import MARGIN, Change, measure_change, unchanged
from anomalydiffusion_core.masks.label_choice import (
    LabelFit,
    RealLabels,
    choice_of,
    label_fit,
    refine_like_real,
)
from anomalydiffusion_core.masks.refine import MODES, RefineSettings, label_of, refine_masks

SIDE = 96


def _normal() -> Tensor:
    return torch.full((3, SIDE, SIDE), 0.5)


def _mask(rows: slice = slice(40, 60), columns: slice = slice(20, 60)) -> Tensor:
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, rows, columns] = 1
    return mask


def _noisy(level: float, share: float = 1.0) -> object:
    """An autoencoder whose errors are exactly ``level`` of 255 on a share of the rows."""

    def reconstruct(images: Tensor) -> Tensor:
        changed = images.clone()
        changed[..., : round(share * images.shape[-2]), :] += level / 255
        return changed

    return reconstruct


def _change(image: Tensor, mask: Tensor, noise: float = 0.0) -> Change:
    return measure_change(image, _normal(), mask, _noisy(noise) if noise else unchanged)  # type: ignore[arg-type]


def _with(mask: Tensor, levels: float) -> Tensor:
    return _normal() + mask * (levels / 255)


def test_the_threshold_is_twice_the_noise_of_the_reconstruction() -> None:
    # An error of 5 everywhere stays 5 however it is smoothed; without any, the least threshold counts.
    assert _change(_normal(), _mask(), 5).noise == pytest.approx(5, abs=0.01)
    assert _change(_normal(), _mask(), 5).threshold == pytest.approx(10, abs=0.02)
    assert _change(_normal(), _mask()).threshold == 2.0
    assert RefineSettings(refine_threshold=30.0).threshold(_change(_normal(), _mask(), 5)) == 30.0


def test_a_pixel_that_is_only_reconstructed_did_not_change() -> None:
    image = _normal() + 5 / 255  # what the autoencoder makes of it, and nothing else
    change = _change(image, _mask(), 5)
    assert change.levels.max() == pytest.approx(0, abs=0.01)
    # 12 levels from the normal image are 7 from its reconstruction: the smaller one counts.
    assert _change(_normal() + 12 / 255, _mask(), 5).levels[change.mask] == pytest.approx(7, abs=0.05)


def test_only_the_part_around_the_mask_is_looked_at() -> None:
    change = _change(_normal(), _mask())
    assert (change.box.top, change.box.bottom) == (40 - MARGIN, 60 + MARGIN)
    assert (change.box.left, change.box.right) == (0, 60 + MARGIN)
    assert change.mask.shape == (84, 92) and change.mask.sum() == 20 * 40


def test_the_border_of_the_mask_is_not_dimmed_by_what_lies_outside() -> None:
    change = _change(_with(_mask(), 40), _mask())
    assert change.levels[change.mask] == pytest.approx(40, abs=0.1)
    assert change.levels[~change.mask].max() == 0


def test_cut_is_what_changed_and_closes_gaps() -> None:
    mask = _mask()
    shown = _mask(columns=slice(20, 40))
    shown[:, :, 30:32] = 0  # a gap of two pixels, as wide as a closing of one bridges
    settings = RefineSettings("cut", refine_closing=2)
    label = refine_masks(_with(shown, 60)[None], _normal()[None], mask[None], unchanged, settings)
    wanted = _mask(columns=slice(20, 40))
    # Smoothing moves an edge of 60 levels by at most two pixels at a threshold of 2.
    assert (label.masks[0] * (1 - _mask(columns=slice(20, 43)))).sum() == 0
    assert (wanted * (1 - label.masks[0])).sum() == 0
    assert label.shares[0] == pytest.approx(0.5, abs=0.08)


def test_holes_specks_and_convexity_are_options() -> None:
    mask = _mask(slice(20, 76), slice(20, 76))
    ring = _mask(slice(24, 56), slice(24, 56)) - _mask(slice(34, 46), slice(34, 46))
    speck = _mask(slice(70, 73), slice(70, 73))
    image = _with(torch.maximum(ring, speck), 80)

    def area(**values: object) -> tuple[float, float, float]:
        settings = RefineSettings("cut", **{"refine_threshold": 40.0, "refine_closing": 0, **values})  # type: ignore[arg-type]
        label = refine_masks(image[None], _normal()[None], mask[None], unchanged, settings).masks[0]
        hole, small = _mask(slice(36, 44), slice(36, 44)), _mask(slice(69, 74), slice(69, 74))
        return float((label * hole).sum()), float((label * small).sum()), float(label.sum())

    assert area()[:2] == (64, 0), "the hole of 8 x 8 in the middle is filled, a speck of 9 pixels dropped"
    assert area(refine_holes=False)[0] == 0
    assert area(refine_parts=0.0)[1] == pytest.approx(9, abs=4)
    ell = _mask(slice(24, 60), slice(24, 36)) + _mask(slice(48, 60), slice(36, 60))
    image = _with(ell, 80)
    hull = 36 * 36 - 24 * 24 / 2  # an L of arms 12 wide: the square but for the triangle opposite of its corner
    assert area()[2] == pytest.approx(float(ell.sum()), rel=0.05)
    assert area(refine_convex=True)[2] == pytest.approx(hull, rel=0.06)


def test_drop_leaves_out_whole_parts_that_do_not_show() -> None:
    left, right, third = _mask(columns=slice(10, 20)), _mask(columns=slice(30, 40)), _mask(columns=slice(50, 60))
    mask = left + right + third
    barely = _mask(slice(40, 41), slice(50, 60))  # a row of twenty: 5 % of the third part, below a tenth
    image = _with(left, 60) + barely * 60 / 255
    label = refine_masks(image[None], _normal()[None], mask[None], unchanged, RefineSettings("drop", 30.0))
    assert torch.equal(label.masks[0], left)
    assert label.shares == pytest.approx([1 / 3])


@pytest.mark.parametrize("mode", ["keep", "drop", "cut"])
@pytest.mark.parametrize("convex", [False, True])
def test_a_label_never_leaves_its_drawn_mask_and_is_never_empty(mode: str, convex: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    for number in range(12):
        blobs = torch.rand(1, 1, 12, 12, generator=generator)
        mask = (torch.nn.functional.interpolate(blobs, size=SIDE, mode="bilinear")[0] > 0.55).float()
        image = (_normal() + torch.rand(3, SIDE, SIDE, generator=generator) * number / 40).clamp(0, 1)
        settings = RefineSettings(mode, refine_convex=convex, refine_closing=number)
        label = refine_masks(image[None], _normal()[None], mask[None], unchanged, settings)
        assert ((label.masks[0] > mask).sum()) == 0
        assert label.masks.any() and set(label.masks.unique().tolist()) <= {0.0, 1.0}
        kept = float(label.masks.sum() / mask.sum())
        assert label.shares[0] == pytest.approx(kept)


def test_where_nothing_shows_the_drawn_mask_stays_and_is_told() -> None:
    for mode in ("drop", "cut"):
        made = refine_masks(_normal()[None], _normal()[None], _mask()[None], unchanged, RefineSettings(mode))
        assert torch.equal(made.masks[0], _mask()) and made.shows == [False]
        assert "in 1 pairs nothing shows" in made.describe()
        assert not label_of(_change(_normal(), _mask()), mode, RefineSettings(mode)).any()


def test_what_is_missing_is_named() -> None:
    one = _normal()[None]
    with pytest.raises(InputError, match="refine_threshold: is 0"):
        refine_like_real(one, one, _mask()[None], None, RefineSettings("cut"))
    with pytest.raises(InputError, match="refine: auto"):
        refine_like_real(one, one, _mask()[None], unchanged, RefineSettings("auto"))
    with pytest.raises(InputError, match="normals: 2 for 3"):
        refine_masks(one.expand(3, -1, -1, -1), one.expand(2, -1, -1, -1), _mask()[None], unchanged, RefineSettings())
    with pytest.raises(InputError, match="96x96, 96x96, 48x96"):
        measure_change(_normal(), _normal(), _mask()[:, :, :48], unchanged)
    with pytest.raises(InputError, match="refine: unknown value 'crop'"):
        RefineSettings("crop")
    assert MODES == ("keep", "drop", "cut", "auto")


def test_the_fit_of_a_label_takes_off_what_is_there_by_mistake() -> None:
    label, levels = np.zeros((30, 30), bool), np.zeros((30, 30), np.float32)
    label[5:25, 5:25] = True
    levels[5:15, 5:25] = 20  # half of it, and of its border
    assert label_fit(label, levels, 10) == LabelFit(0.5, pytest.approx(0.5, abs=0.06))  # type: ignore[arg-type]
    assert label_fit(label, levels, 10, mistaken=0.2).fill == pytest.approx((0.5 - 0.2) / 0.8)
    assert label_fit(label, levels, 10, mistaken=0.7).fill == 0
    levels[:] = 0
    levels[7:23, 7:23] = 20  # all but a border of two pixels, which is what counts at 20 x 20
    assert label_fit(label, levels, 10) == LabelFit(256 / 400, 0)


def test_the_mode_nearest_to_the_real_labels_wins_and_a_tie_keeps() -> None:
    fits = {"keep": LabelFit(0.78, 0.6), "drop": LabelFit(0.8, 0.6), "cut": LabelFit(0.98, 0.97)}
    assert choice_of(fits, LabelFit(0.97, 0.95)).mode == "cut"
    assert choice_of(fits, LabelFit(0.6, 0.55)).mode == "keep"
    assert choice_of(fits, LabelFit(0.84, 0.6)).mode == "keep", "a hundredth is not worth a change"
    assert choice_of({**fits, "drop": LabelFit(0.9, 0.8)}, LabelFit(0.9, 0.8)).mode == "drop"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> AnomalyDataset:
    """Grey parts with a bright left edge. Labels of `tight` are full of defect, those of `loose` half."""
    root, generator = tmp_path_factory.mktemp("real"), torch.Generator().manual_seed(0)

    def part() -> Tensor:
        image = _normal() + (torch.rand(3, SIDE, SIDE, generator=generator) - 0.5) * 6 / 255
        image[:, :, :4] = 0.9
        return image

    for number in range(7):
        write_image(root / "part" / "train" / "good" / f"{number}.png", part())
    for defect, width in (("tight", 40), ("loose", 20)):
        for number in range(3):
            image = part()
            image[:, 40:60, 20 : 20 + width] += 60 / 255
            write_image(root / "part" / "test" / defect / f"{number}.png", image)
            write_mask(root / "part" / "ground_truth" / defect / f"{number}_mask.png", _mask())
    return load_dataset(root, "part")


def test_real_labels_are_measured_without_their_normal_image(real: AnomalyDataset) -> None:
    labels = RealLabels(real)
    assert labels.fit("part/tight", 10) == LabelFit(pytest.approx(1), pytest.approx(1))  # type: ignore[arg-type]
    assert labels.fit("part/loose", 10).fill == pytest.approx(0.5, abs=0.06)
    # At this threshold about a third of the noise counts, around the label as well as inside: it is no fill.
    assert labels.fit("part/loose", 1.8).fill == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize(("key", "mode"), [("part/tight", "cut"), ("part/loose", "keep")])
def test_auto_makes_labels_like_the_real_ones(real: AnomalyDataset, key: str, mode: str) -> None:
    # Half of the drawn mask is filled: as in the real labels of one type, and unlike those of the other.
    image = _with(_mask(columns=slice(20, 40)), 60)[None]
    settings = RefineSettings("auto", refine_threshold=10.0)
    label, report = refine_like_real(image, _normal()[None], _mask()[None], None, settings, real, key)
    assert report.startswith(f"{key}: {mode} (real labels")
    assert float(label.sum()) == pytest.approx(800 if mode == "keep" else 400, rel=0.08)
