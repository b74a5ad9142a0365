"""Noise and sharpness: measured where they are known, and made equal inside a mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anomalydiffusion_core.data.camera import Camera, match_camera, measure

pytestmark = pytest.mark.core


def _noise(shape: tuple[int, ...], levels: float, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * levels / 255


def _scene(seed: int = 0) -> Tensor:
    """Soft shapes with edges two pixels wide, [1, 3, 128, 128]."""
    coarse = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(seed))
    return 0.25 + 0.5 * (F.interpolate(coarse, size=(128, 128), mode="bilinear", align_corners=False) > 0.5).float()


def _soft(image: Tensor, times: int) -> Tensor:
    for _ in range(times):
        image = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return image


@pytest.mark.parametrize("levels", [1.0, 4.0, 10.0])
def test_noise_is_read_on_flat_and_on_structured_images(levels: float) -> None:
    flat = torch.full((2, 3, 64, 96), 0.5)
    ramp = torch.linspace(0.2, 0.8, 96).expand(2, 3, 64, 96)
    for scene in (flat, ramp, _soft(_scene(), 2)):
        found = measure(scene + _noise(tuple(scene.shape), levels, 3)).noise * 255
        assert found == pytest.approx(levels, rel=0.2)
    assert measure(flat).noise == 0


def test_noise_is_added_inside_the_mask_only() -> None:
    clean = _soft(_scene(), 2)
    normal = clean + _noise((1, 3, 128, 128), 5.0, 1)
    mask = torch.zeros(1, 128, 128)
    mask[:, 30:100, 20:90] = 1
    image = torch.where(mask > 0, clean[0], normal[0])
    changed, record = match_camera(image, mask, measure(normal), seed=7)
    assert torch.equal(changed[:, mask[0] == 0], image[:, mask[0] == 0])
    assert measure(changed[None], mask[None]).noise * 255 == pytest.approx(5.0, rel=0.2)
    assert record["noise_added"] == pytest.approx(5.0, rel=0.2)
    assert torch.equal(match_camera(image, mask, measure(normal), seed=7)[0], changed)
    assert not torch.equal(match_camera(image, mask, measure(normal), seed=8)[0], changed)


def test_soft_edges_become_as_sharp_as_those_of_the_normal_images() -> None:
    sharp, mask = _soft(_scene(), 1), torch.zeros(1, 128, 128)
    mask[:, 20:110, 20:110] = 1
    image = torch.where(mask > 0, _soft(sharp, 1)[0], sharp[0])
    target = measure(sharp)
    before = measure(image[None], mask[None])
    changed, record = match_camera(image, mask, target, seed=0)
    after = measure(changed[None], mask[None])
    assert before.sharpness < 0.8 * target.sharpness
    assert abs(after.sharpness / target.sharpness - 1) < abs(before.sharpness / target.sharpness - 1) / 2
    assert record["sharpened"] > 0 and record["noise_added"] == 0
    # one that is sharper than the camera is softened
    _, record = match_camera(_scene()[0], mask, target, seed=0)
    assert record["sharpened"] < 0


def test_grey_stays_grey_and_tiny_masks_work() -> None:
    grey = torch.full((3, 20, 20), 0.5)
    mask = torch.zeros(1, 20, 20)
    mask[:, 5:8, 5:8] = 1
    changed, _ = match_camera(grey, mask, Camera(0.02, 1.0), seed=1)
    assert torch.equal(changed[0], changed[1]) and torch.equal(changed[0], changed[2])
    assert changed[:, 5:8, 5:8].std() > 0
    mask[:, 6:] = 0
    assert torch.isfinite(match_camera(grey, mask, Camera(0.02, 1.0), seed=1)[0]).all()
