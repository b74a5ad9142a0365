"""The figures of the prior check against hand-worked values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalydiffusion_core.backends.ldm import LdmDenoiser
from anomalydiffusion_core.backends.ldm_autoencoder import Autoencoder
from anomalydiffusion_core.demo_prior import check
from anomalydiffusion_core.demo_prior.renderers import SURFACES
from anomalydiffusion_core.synthetic import NoiseBank

pytestmark = pytest.mark.core


def test_colour_distance_is_the_mean_shift_of_the_channels() -> None:
    # Shifting every value by a constant moves the distribution by that constant: (10 + 20 + 0) / 3.
    reference = torch.tensor([[0.0, 50.0, 100.0], [10.0, 20.0, 30.0], [5.0, 5.0, 5.0]])
    shifted = reference + torch.tensor([[10.0], [-20.0], [0.0]])
    assert check.colour_distance(shifted[:, [2, 0, 1]], reference) == pytest.approx(10.0)


def test_difference_counts_mask_pixels_only() -> None:
    reference = torch.zeros(1, 3, 2, 2)
    images = reference.clone()
    images[0, :, 0, 0] = 30 / 255
    images[0, 0, 1, 1] = 90 / 255
    mask = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    assert check._difference(images, reference, mask) == pytest.approx(15.0, abs=1e-4)
    assert check._difference(images, reference, 1 - mask) == pytest.approx(15.0, abs=1e-4)


def test_psnr_of_a_constant_error(tmp_path: Path) -> None:
    class OffByOne(LdmDenoiser):
        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return self._images + 0.1

        def encode(self, images: torch.Tensor) -> torch.Tensor:
            self._images = images
            return images

    base = LdmDenoiser.random(0)
    model = OffByOne(Autoencoder(), base.unet, base.words, [0], [0])
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "black.png")
    assert check.folder_psnr(model, tmp_path) == pytest.approx(20.0, abs=0.01)
    with pytest.raises(ValueError, match="no images"):
        check.folder_psnr(model, tmp_path / "none")
    # An error of 0.1 everywhere is 20 dB.
    value = check.reconstruction_psnr(model, np.random.default_rng(0), NoiseBank(1, size=256), SURFACES, count=2)
    assert value == pytest.approx(20.0, abs=0.01)


def test_a_sheet_holds_all_rows(tmp_path: Path) -> None:
    check._save_sheet([torch.rand(3, 3, 16, 16), torch.rand(2, 3, 16, 24)[:, :, :, :24]][:1], tmp_path / "a" / "s.png")
    assert Image.open(tmp_path / "a" / "s.png").size == (24, 8)
