"""Thickness and elongation of masks, and how far two sets of them differ."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.draw import disk, line
from skimage.measure import regionprops

from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.masks.cleanup import MaskRules, clean_masks
from anomalydiffusion_core.masks.shape import ShapeLimits, Shapes, factor_apart, mask_shapes

pytestmark = pytest.mark.core


def strip(width: int, length: int, size: int = 100) -> torch.Tensor:
    mask = torch.zeros(1, 1, size, size)
    mask[0, 0, 20 : 20 + width, 10 : 10 + length] = 1
    return mask


def shape_of(mask: torch.Tensor) -> tuple[float, float, float]:
    found = mask_shapes(mask)
    return found.area[0], found.thickness[0], found.elongation[0]


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_a_long_strip_is_as_thick_as_it_is_wide(width: int) -> None:
    area, thickness, elongation = shape_of(strip(width, 80))
    assert area == pytest.approx(width * 80 / 10_000)
    # Its ends take a little: at most as many border pixels as there are rows, of 80 columns.
    assert thickness * 100 == pytest.approx(width, rel=0.04)
    assert elongation == pytest.approx(80 / width)  # n pixels in a row spread over n^2 / 12


def test_a_disc_has_two_thirds_of_its_diameter_and_no_direction() -> None:
    mask = torch.zeros(1, 1, 200, 400)
    mask[0, 0][disk((100, 150), 60)] = 1
    _, thickness, elongation = shape_of(mask)
    assert thickness * 400 == pytest.approx(80, rel=0.02)  # mean distance r / 3 (Bertrand), times four
    assert elongation == pytest.approx(1, abs=0.01)


def test_elongation_is_that_of_scikit_image() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        pixels = np.zeros((90, 120), np.uint8)
        for _ in range(3):
            pixels[line(*rng.integers(5, 85, 4))] = 1
        found = regionprops(pixels)[0]
        wanted = found.axis_major_length / found.axis_minor_length
        # scikit-image takes pixels as points, which matters little here.
        assert shape_of(torch.from_numpy(pixels).float()[None, None])[2] == pytest.approx(wanted, rel=1e-3)


def test_factor_apart_by_hand() -> None:
    assert factor_apart((1, 2, 4), (4, 1, 2)) == pytest.approx(1)
    assert factor_apart((2, 4, 8), (1, 2, 4)) == pytest.approx(2)
    # One half fits, the other is nine times as large: exp(log(9) / 2).
    assert factor_apart((1, 9), (1, 1)) == pytest.approx(3)


def test_a_thick_mask_is_rejected_beside_thin_training_masks() -> None:
    training = mask_shapes(torch.cat([strip(2, 60), strip(3, 80)]))
    limits = ShapeLimits.around(training, 1.3)
    images = torch.cat([strip(2, 70), strip(9, 30), strip(3, 20)]).expand(-1, 3, -1, -1)
    judged = clean_masks(images, MaskRules(speck_area=0, smallest_area=0), limits=limits)
    assert judged.accepted == (0,)
    reasons = dict(judged.rejected)
    # Areas from 1.20 / 1.3 to 1.3 x 2.40 % are allowed: the second one, of 2.70 %, is too thick instead.
    assert reasons[1].startswith("thickness unlike training")
    assert reasons[2] == "area unlike training: 0.60%, 0.92% to 3.12% is allowed"


def test_bad_factor_is_named() -> None:
    with pytest.raises(InputError, match=r"shape_range: 0\.5"):
        ShapeLimits.around(mask_shapes(strip(2, 60)), 0.5)


def test_record_round_trip() -> None:
    shapes = mask_shapes(torch.cat([strip(2, 60), strip(3, 80)]))
    again = Shapes.from_record(shapes.to_record())
    for name in ("area", "thickness", "elongation"):
        for one, other in zip(getattr(shapes, name), getattr(again, name), strict=True):
            assert math.isclose(one, other, rel_tol=1e-4)
