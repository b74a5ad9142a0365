"""The demo prior: layout of its networks and file, and training that survives interruption."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from anomalydiffusion_core.backends.ldm import LdmDenoiser, load_ldm
from anomalydiffusion_core.backends.ldm_autoencoder import FULL, Autoencoder, AutoencoderConfig, narrow, widen
from anomalydiffusion_core.backends.ldm_files import restore
from anomalydiffusion_core.backends.ldm_schedule import alphas_cumprod
from anomalydiffusion_core.backends.ldm_unet import UNet, UNetConfig
from anomalydiffusion_core.demo_prior import pretrain
from anomalydiffusion_core.demo_prior.stages import Stage, StageState
from anomalydiffusion_core.demo_prior.storing import store
from anomalydiffusion_core.denoiser import Denoiser
from anomalydiffusion_core.server.runs import DEMO_PRIOR

pytestmark = pytest.mark.core


def test_the_widened_autoencoder_computes_the_same() -> None:
    torch.manual_seed(0)
    slim = Autoencoder(AutoencoderConfig((8, 16, 24, 32), (1, 1, 2, 1)))
    for parameter in slim.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    wide = Autoencoder(FULL)
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
    autoencoder, unet, words = Autoencoder(), UNet(), torch.randn(40, 128)
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
    with pytest.raises(ValueError, match="not a file of format"):
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
    with pytest.raises(ValueError, match="prediction: 'x0'"):
        load_ldm(tmp_path / "x")


def test_pretraining_resumes_where_it_was_interrupted(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop_in_second_stage(stage: str, share: float, text: str) -> None:
        if stage == "noise predictor":
            raise StopError

    steps: list[int] = []
    with pytest.raises(StopError):
        pretrain.run(tmp_path, minutes=0.25, seed=0, report=stop_in_second_stage)
    first = StageState.load(tmp_path / "autoencoder.pt")
    assert first is not None and first.steps > 0
    path = pretrain.run(tmp_path, minutes=0.25, seed=0, report=lambda stage, share, text: steps.append(1))
    after = StageState.load(tmp_path / "autoencoder.pt")
    assert after is not None and after.steps == first.steps, "the finished first stage is not trained again"
    assert path.is_file() and load_ldm(path).context_width == 128
    with pytest.raises(ValueError, match="seed"):
        pretrain.run(tmp_path, minutes=0.25, seed=1, report=lambda stage, share, text: None)


def test_pretraining_goes_on_from_a_stored_prior(tmp_path: Path) -> None:
    out = tmp_path / "on"
    path = pretrain.run(out, 0.05, 3, lambda stage, share, text: None, start=DEMO_PRIOR)
    first, second = restore(DEMO_PRIOR), restore(path)
    for name, value in first[0].state_dict().items():
        assert torch.equal(second[0].state_dict()[name], value), "the autoencoder is not trained again"
    moved = [not torch.equal(value, second[1].state_dict()[name]) for name, value in first[1].state_dict().items()]
    assert sum(moved) > len(moved) / 2, "half precision hides the smallest changes"
    # A few steps away from the first file, not from new weights.
    assert (second[2] - first[2]).abs().max() < 0.05
    told = json.loads(second[3]["training"])
    assert told["start"]["sha256"] == hashlib.sha256(DEMO_PRIOR.read_bytes()).hexdigest()
    assert told["start"]["training"] == json.loads(first[3]["training"])
    with pytest.raises(ValueError, match="began from another one"):
        pretrain.run(out, 0.05, 3, lambda stage, share, text: None)
    with pytest.raises(FileNotFoundError, match="start"):
        pretrain.run(tmp_path / "new", 0.05, 3, lambda stage, share, text: None, start=tmp_path / "none.safetensors")


def test_a_narrow_autoencoder_comes_back_out_of_the_wide_one() -> None:
    wide = restore(DEMO_PRIOR)[0]
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    small = narrow(wide)
    torch.testing.assert_close(small.decode(small.encode(images)), wide.decode(wide.encode(images)))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in wide.parameters()) * 0.6
    with torch.no_grad():
        next(wide.parameters())[-1] = 0.1  # a channel that pretraining does not have
    with pytest.raises(ValueError, match="more channels"):
        narrow(wide)


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
