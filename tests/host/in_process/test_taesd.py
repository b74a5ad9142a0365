"""A real autoencoder of Stable Diffusion's latent space on real images, in ComfyUI and in diffusers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers_folder import convert_tiny_autoencoder
from in_process import stock_nodes
from safetensors.torch import load_file
from torch import Tensor

from anomalydiffusion_core.data.images import read_image, resize_image
from anomalydiffusion_core.sampling.effect import effect_score

SCALE = 0.18215
"""Of Stable Diffusion 1: TAESD works on scaled latents, ComfyUI's VAE on those before."""
IMAGES = {"bottle": "train/good", "magnetic_tile": "train/good"}


@pytest.fixture(scope="module")
def weights(shared_data: Path) -> Path:
    folder = shared_data.parent / "weights" / "taesd"
    if not folder.is_dir():
        pytest.skip(f"no real autoencoder at {folder}")
    return folder


@pytest.fixture(scope="module")
def images(shared_data: Path) -> Tensor:
    """A normal image of each object, [2, 3, 256, 256]."""
    paths = [path for name, part in IMAGES.items() for path in sorted((shared_data / name / part).iterdir())[:1]]
    return torch.stack([resize_image(read_image(path)[None], 256)[0] for path in paths])


@pytest.fixture(scope="module")
def comfy(extension: Any, weights: Path) -> Any:
    """What ComfyUI's own VAE loader makes of the two files, as the core sees it."""
    known = extension.folder_paths.folder_names_and_paths
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(known, "vae_approx", ([str(weights)], {".safetensors"}))
        (vae,) = stock_nodes()("VAELoader", "taesd")
    return extension.module("nodes.host.vae").Autoencoder(vae)


@pytest.fixture(scope="module")
def encoded(comfy: Any, images: Tensor) -> Tensor:
    latents: Tensor = comfy.encode(images)
    return latents


@pytest.fixture(scope="module")
def made(comfy: Any, encoded: Tensor) -> Tensor:
    """The images after a round trip."""
    images: Tensor = comfy.decode(encoded)
    return images


@pytest.fixture(scope="module")
def tiny(weights: Path) -> Any:
    """diffusers' AutoencoderTiny with the same weights."""
    stored = {
        f"taesd_{part}.{name}": value
        for part in ("encoder", "decoder")
        for name, value in load_file(weights / f"taesd_{part}.safetensors").items()
    }
    return convert_tiny_autoencoder(stored).eval()


def _decibel(one: Tensor, two: Tensor) -> list[float]:
    return [-10 * math.log10(float(error)) for error in (one - two).square().flatten(1).mean(dim=1)]


def _tiny_round_trip(tiny: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        latents = tiny.encode(images * 2 - 1).latents
        return latents, (tiny.decode(latents).sample / 2 + 0.5).clamp(0, 1)


def test_both_hosts_make_the_same_of_real_images(encoded: Tensor, made: Tensor, tiny: Any, images: Tensor) -> None:
    latents, theirs = _tiny_round_trip(tiny, images)
    assert encoded.shape == latents.shape == (2, 4, 32, 32)
    assert (encoded * SCALE - latents).abs().max() < 1e-3 * latents.abs().max()
    assert (made - theirs).abs().max() < 1 / 255


def test_round_trips_keep_the_image_and_its_colours(made: Tensor, images: Tensor) -> None:
    """Measured by another program on one image each: 31.1 dB on a bottle, 35.6 dB on a magnetic tile."""
    bottle, tile = _decibel(made, images)
    assert bottle > 28 and tile > 32
    shift = (made - images).mean(dim=(2, 3)).abs().max()
    assert shift < 3 / 255, float(shift)


def test_what_only_went_through_it_is_no_defect_and_a_change_is_measured(
    comfy: Any, made: Tensor, tiny: Any, images: Tensor
) -> None:
    """The same change of .25 in a box, drawn and then encoded: its score is near .25 x 255 on every image."""
    mask = torch.zeros(2, 1, 256, 256)
    mask[:, :, 96:160, 96:160] = 1
    still = effect_score(made, made, images, mask)
    assert still.effect.tolist() == [0.0] * 2 and still.fill_share.tolist() == [0.0] * 2
    change = torch.where(images.mean(dim=1, keepdim=True) < 0.5, 0.25, -0.25) * mask
    drawn = (images + change).clamp(0, 1)
    expected = (drawn - images).abs().mean(dim=1, keepdim=True)[mask > 0].view(2, -1).mean(dim=1) * 255
    for again in (comfy.decode(comfy.encode(drawn)), _tiny_round_trip(tiny, drawn)[1]):
        measured = effect_score(again, made, images, mask)
        assert torch.allclose(measured.effect, expected, rtol=0.2), (measured.effect, expected)
        assert measured.fill_share.min() > 0.9
