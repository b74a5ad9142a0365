"""The demo prior: layout of its networks and file, and training that survives interruption."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from anomalydiffusion_core.backends.ldm import LdmDenoiser, load_ldm
from anomalydiffusion_core.backends.ldm_autoencoder import Autoencoder, AutoencoderConfig, narrow, widen
from anomalydiffusion_core.backends.ldm_files import restore
from anomalydiffusion_core.backends.ldm_schedule import alphas_cumprod
from anomalydiffusion_core.backends.ldm_unet import UNet, UNetConfig
from anomalydiffusion_core.demo_prior import pretrain, renderers
from anomalydiffusion_core.demo_prior.autoencoder_training import reconstruction_loss
from anomalydiffusion_core.demo_prior.renderers import PHOTOS, SURFACES
from anomalydiffusion_core.demo_prior.renders import CHUNK, Render, RenderSource, random_crops
from anomalydiffusion_core.demo_prior.settings import PretrainSettings
from anomalydiffusion_core.demo_prior.stages import Stage, StageState
from anomalydiffusion_core.demo_prior.storing import store
from anomalydiffusion_core.denoiser import Denoiser
from anomalydiffusion_core.server.runs import DEMO_PRIOR
from anomalydiffusion_core.synthetic import Caption
from anomalydiffusion_core.synthetic.captions import vocabulary
from anomalydiffusion_core.synthetic.photo import TextureBank

pytestmark = pytest.mark.core
QUICK = PretrainSettings(device="cpu", images=32, batch=2, latent_channels=8, width=32)


@pytest.fixture(autouse=True)
def small_banks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise that takes a tenth of the time."""
    monkeypatch.setattr(renderers, "_banks", {})
    monkeypatch.setitem(renderers.RENDERERS, "photos", replace(PHOTOS, bank=partial(TextureBank, size=256)))


def silent(stage: str, share: float, text: str) -> None:
    """Report nothing."""


def test_the_widened_autoencoder_computes_the_same() -> None:
    torch.manual_seed(0)
    slim = Autoencoder(AutoencoderConfig((8, 16, 24, 32), (1, 1, 2, 1)))
    for parameter in slim.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    wide = Autoencoder(slim.config.full())
    wide.load_state_dict(widen(slim))
    images = torch.rand(2, 3, 32, 48)
    latents = slim.encode(images)
    assert latents.shape == (2, 4, 4, 6)
    torch.testing.assert_close(wide.encode(images), latents, rtol=0, atol=1e-5)
    torch.testing.assert_close(wide.decode(latents), slim.decode(latents), rtol=0, atol=1e-5)


def test_the_schedule_is_that_of_diffusers() -> None:
    from diffusers import DDIMScheduler

    theirs: Any = DDIMScheduler(1000, 0.00085, 0.012, "scaled_linear")
    torch.testing.assert_close(alphas_cumprod(), theirs.alphas_cumprod, rtol=1e-5, atol=1e-7)


def test_a_stored_prior_loads_and_is_small(tmp_path: Path) -> None:
    torch.manual_seed(0)
    autoencoder, unet, words = Autoencoder(), UNet(), torch.randn(len(vocabulary()), 128)
    path = tmp_path / "prior.safetensors"
    store(path, autoencoder, unet, words, {"data_seed": 0})
    assert path.stat().st_size <= 20e6
    assert list(tmp_path.iterdir()) == [path]
    with safe_open(path, framework="pt") as file:
        names, metadata = set(file.keys()), file.metadata()
    assert "model.diffusion_model.input_blocks.0.0.weight" in names
    assert "first_stage_model.taesd_decoder.1.weight" in names
    assert json.loads(metadata["architecture"])["context_dim"] == 128
    model = load_ldm(path)
    assert isinstance(model, Denoiser)
    images = torch.rand(1, 3, 64, 64)
    # Half precision of the stored weights: three decimal digits.
    torch.testing.assert_close(model.encode(images), autoencoder.encode(images), rtol=0, atol=0.01)


def test_another_file_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="anomalydiffusion-ldm-1"):
        load_ldm(tmp_path / "other.safetensors")


def test_an_architecture_it_cannot_express_is_refused() -> None:
    arguments = UNetConfig().host_arguments() | {"use_linear_in_transformer": True}
    with pytest.raises(ValueError, match="use_linear_in_transformer"):
        UNetConfig.from_host_arguments(arguments)


def test_the_noise_depends_on_the_context_and_not_on_batch_mates() -> None:
    model = LdmDenoiser.random(0)
    latents = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([10, 900])
    good = model.normal_context.expand(2, -1, -1)
    both = model.predict_noise(latents, t, good)
    assert both.shape == latents.shape
    torch.testing.assert_close(model.predict_noise(latents[1:], t[1:], good[1:]), both[1:], rtol=0, atol=1e-5)
    empty = model.predict_noise(latents, t, model.empty_context.expand(2, -1, -1))
    assert (empty - both).abs().max() > 1e-3


def test_a_velocity_file_gives_the_noise_of_its_velocity(tmp_path: Path) -> None:
    first = LdmDenoiser.random(4)
    for name, prediction in (("v", "v"), ("eps", "epsilon")):
        store(tmp_path / name, first.autoencoder, first.unet, first.words, {}, prediction)
    velocity, noise = load_ldm(tmp_path / "v"), load_ldm(tmp_path / "eps")
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([20, 900])
    context = first.normal_context.expand(2, -1, -1)
    v, eps = noise.predict_noise(x, t, context), velocity.predict_noise(x, t, context)
    alpha = alphas_cumprod()[t][:, None, None, None]
    # The clean latent that the noise implies is the one that the velocity implies.
    clean = (x - (1 - alpha).sqrt() * eps) / alpha.sqrt()
    torch.testing.assert_close(clean, alpha.sqrt() * x - (1 - alpha).sqrt() * v, rtol=1e-3, atol=1e-3)


def test_a_file_of_an_unknown_prediction_is_refused(tmp_path: Path) -> None:
    first = LdmDenoiser.random(4)
    store(tmp_path / "x", first.autoencoder, first.unet, first.words, {}, "x0")
    with pytest.raises(ValueError, match="prediction 'x0'"):
        load_ldm(tmp_path / "x")


def test_pretraining_resumes_where_it_was_interrupted(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop_in_second_stage(stage: str, share: float, text: str) -> None:
        if stage == "noise predictor":
            raise StopError

    with pytest.raises(StopError):
        pretrain.run(tmp_path, 0.02, 0, stop_in_second_stage, settings=QUICK)
    first = StageState.load(tmp_path / "autoencoder.pt")
    assert first is not None and first.steps > 0
    latents = (tmp_path / "latents" / "0000000.pt").read_bytes()
    path = pretrain.run(tmp_path, 0.02, 0, silent, settings=QUICK)
    assert (tmp_path / "latents" / "0000000.pt").read_bytes() == latents, "images are not encoded again"
    after = StageState.load(tmp_path / "autoencoder.pt")
    assert after is not None and after.steps == first.steps, "the finished first stage is not trained again"
    model = load_ldm(path)
    assert model.context_width == 128 and model.latent_channels == 8
    assert model.encode(torch.rand(1, 3, 64, 64)).shape == (1, 8, 8, 8)
    assert model.names == PHOTOS.words
    # The words of the file itself, not those of the shipped one.
    assert torch.equal(model.caption_context("bottle")[0, 0], model.words[model.names.index("surface:bottle")])
    assert torch.equal(model.normal_context[0, 2], model.words[model.names.index("defect:good")])
    with pytest.raises(ValueError, match="seed"):
        pretrain.run(tmp_path, 0.02, 1, silent, settings=QUICK)
    with pytest.raises(ValueError, match="latent_channels"):
        pretrain.run(tmp_path, 0.02, 0, silent, settings=replace(QUICK, latent_channels=16))


def test_pretraining_goes_on_from_a_stored_prior(tmp_path: Path) -> None:
    out = tmp_path / "on"
    quick = PretrainSettings(device="cpu", images=32, batch=4)
    path = pretrain.run(out, 0.05, 3, silent, DEMO_PRIOR, quick)
    first, second = restore(DEMO_PRIOR), restore(path)
    for name, value in first[0].state_dict().items():
        assert torch.equal(second[0].state_dict()[name], value), "the autoencoder is not trained again"
    moved = [not torch.equal(value, second[1].state_dict()[name]) for name, value in first[1].state_dict().items()]
    assert sum(moved) > len(moved) / 2, "half precision hides the smallest changes"
    # A few steps away from the first file, not from new weights.
    assert (second[2] - first[2]).abs().max() < 0.05
    told = json.loads(second[3].metadata["training"])
    assert told["start"]["sha256"] == hashlib.sha256(DEMO_PRIOR.read_bytes()).hexdigest()
    assert told["start"]["training"] == json.loads(first[3].metadata["training"])
    with pytest.raises(ValueError, match="began with another one"):
        pretrain.run(out, 0.05, 3, silent, settings=quick)
    with pytest.raises(FileNotFoundError, match="start"):
        pretrain.run(tmp_path / "new", 0.05, 3, silent, start=tmp_path / "none.safetensors")


def test_a_narrow_autoencoder_comes_back_out_of_the_wide_one() -> None:
    wide = restore(DEMO_PRIOR)[0]
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    small = narrow(wide)
    torch.testing.assert_close(small.decode(small.encode(images)), wide.decode(wide.encode(images)))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in wide.parameters()) * 0.6
    with torch.no_grad():
        next(wide.parameters())[-1] = 0.1  # a channel that the smallest network does not have
    full = narrow(wide)
    assert full.config == wide.config
    torch.testing.assert_close(full.encode(images), wide.encode(images))


def test_renders_are_the_same_with_workers_and_without() -> None:
    def first(workers: int) -> list[np.ndarray]:
        with RenderSource(SURFACES, 3, 128, 0.1, workers) as source:
            return [image.pixels for image in source.take(CHUNK + 3)]

    assert all(np.array_equal(a, b) for a, b in zip(first(0), first(1), strict=True))


def test_crops_come_with_their_masks() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[30:34, 20:24] = 255
    render = Render(pixels, pixels[:, :, 0] > 0, Caption("plastic"))
    crops, masks = random_crops(np.random.default_rng(0), [render], 6, 32)
    assert crops.shape == (6, 3, 32, 32) and masks.shape == (6, 1, 32, 32)
    assert torch.equal(crops[:, :1], masks)
    assert masks[::2].sum((1, 2, 3)).min() > 0, "every other crop is centred on the defect"


def test_texture_counts_the_strength_of_detail_and_not_where_it_is() -> None:
    class Keeps(Autoencoder):
        def __init__(self, output: torch.Tensor) -> None:
            super().__init__()
            self.output = output

        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return self.output

    noise = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2, 1, 64, 64)

    def texture(output: torch.Tensor) -> float:
        torch.manual_seed(0)
        plain = reconstruction_loss(Keeps(output), noise, masks)
        return (reconstruction_loss(Keeps(output), noise, masks, 1.0) - plain).item()

    # Uniform noise less the mean of nine: a deviation of sqrt(8 / 9 / 12) = 0.272 that a flat image lacks.
    assert texture(torch.full_like(noise, 0.5)) == pytest.approx(0.272, abs=0.01)
    assert texture(noise.flip(0)) < 0.03


def test_ctrl_c_keeps_every_finished_step(tmp_path: Path) -> None:
    def stage() -> Stage:
        torch.manual_seed(5)
        return Stage(tmp_path / "stage.pt", torch.nn.Linear(2, 1), 1e-2, decay=0.9, weight_decay=0.0, seconds=3600)

    stopped = stage()
    with pytest.raises(KeyboardInterrupt), stopped:
        for _ in range(3):
            stopped.advance(stopped.model(torch.ones(1, 2)).square().mean())
        raise KeyboardInterrupt
    resumed = stage()
    assert resumed.step == 3
    assert torch.equal(resumed.model.weight, stopped.model.weight)
