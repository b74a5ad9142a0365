"""The same weights in ComfyUI and in a diffusers model folder: the same numbers, the same training."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers_folder as folders
import pytest
import random_checkpoint
import torch

from anomalydiffusion_core.backends.diffusers import VELOCITY, DiffusersDenoiser, load_diffusers
from anomalydiffusion_core.conditioning.context import ContextConditioning
from anomalydiffusion_core.data.mvtec import load_dataset
from anomalydiffusion_core.data.splits import SplitSettings
from anomalydiffusion_core.data.training import training_views
from anomalydiffusion_core.sampling.attention_gain import AttentionGain
from anomalydiffusion_core.sampling.sampler import SamplingSettings
from anomalydiffusion_core.sampling.schedulers import SchedulerSampler
from anomalydiffusion_core.server.process import find_host
from anomalydiffusion_core.training.inversion import AnomalyTrainer, InversionSettings

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def hosts(extension: Any, loaded: Any, prior: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny model in ComfyUI and in diffusers."""
    folder = folders.write_from_ldm(tmp_path_factory.mktemp("model"), prior)
    return SimpleNamespace(
        comfy=extension.models.ComfyDenoiser(loaded.model, loaded.vae), diffusers=load_diffusers(folder), folder=folder
    )


@pytest.fixture(scope="module")
def slim_unet(extension: Any, diffusion: Any) -> Any:
    """The U-Net of the slim Stable Diffusion 1.5, as ComfyUI loaded it, in diffusers."""
    weights = diffusion.model.model.diffusion_model.state_dict()
    return folders.convert_unet(weights, {**random_checkpoint.UNET, **random_checkpoint.SLIM})


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_schedule_latents_and_fingerprint_are_the_same(hosts: Any) -> None:
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    close(hosts.diffusers.alphas_cumprod, hosts.comfy.alphas_cumprod)
    close(hosts.diffusers.encode(images), hosts.comfy.encode(images))
    close(hosts.diffusers.decode(noise(2, 4, 8, 8)), hosts.comfy.decode(noise(2, 4, 8, 8)))
    assert hosts.diffusers.fingerprint() == hosts.comfy.fingerprint()


@pytest.mark.parametrize("weighted", ["no", "after the softmax", "on logits"])
def test_noise_predictions_are_the_same(hosts: Any, weighted: str) -> None:
    x, t, context = noise(3, 4, 8, 12), torch.tensor([0, 480, 999]), noise(3, 6, 128)
    gain = None
    if weighted != "no":
        weights = torch.ones(3, 8, 12)
        weights[0, 2:5, 3:9], weights[2, :4] = 1.5, 2.0
        gain = AttentionGain(weights, torch.arange(6) < 4, weighted == "on logits")
    with torch.no_grad():
        expected = hosts.comfy.predict_noise(x, t, context, gain)
        close(hosts.diffusers.predict_noise(x, t, context, gain), expected)
    assert expected.abs().max() > 0.5


def test_twenty_training_steps_on_a_data_set_have_the_same_losses(hosts: Any, data: Path) -> None:
    dataset = load_dataset(data, "part", SplitSettings("first n", 2))
    pairs = training_views(dataset.types, 64)
    settings = InversionSettings(steps=20, resolution=64, augmented_copies=2, anomaly_tokens=3, spatial_tokens=2)
    trained = [AnomalyTrainer(host, pairs, settings).run() for host in (hosts.comfy, hosts.diffusers)]
    assert len(trained[0].losses) == 20
    assert trained[1].losses == pytest.approx(trained[0].losses, abs=1e-4)
    for key in ("part/bar", "part/dot"):
        moved = trained[1].bundle.tokens[key]
        torch.testing.assert_close(moved, trained[0].bundle.tokens[key], rtol=0, atol=2e-3)


def test_stable_diffusion_of_the_stock_loader_is_the_same(extension: Any, diffusion: Any, slim_unet: Any) -> None:
    comfy = extension.models.ComfyDenoiser(diffusion.model, diffusion.vae)
    own = DiffusersDenoiser(slim_unet, folders.random_autoencoder(0), comfy.schedule)
    assert own.fingerprint() == comfy.fingerprint()
    x, t, context = noise(2, 4, 8, 8), torch.tensor([40, 900]), noise(2, 12, 768)
    with torch.no_grad():
        expected = comfy.predict_noise(x, t, context)
        close(own.predict_noise(x, t, context), expected)
    assert expected.abs().max() > 0.1


@pytest.fixture(scope="module")
def velocity(extension: Any, diffusion: Any, slim_unet: Any) -> Any:
    """Stable Diffusion 2.1 predicts velocity; the stock node ModelSamplingDiscrete makes a MODEL one that does."""
    sys.path.append(str(find_host(ROOT).comfyui))
    try:
        advanced = importlib.import_module("comfy_extras.nodes_model_advanced")
    finally:
        sys.path.pop()
    (model,) = advanced.ModelSamplingDiscrete().patch(diffusion.model, "v_prediction", False)
    comfy = extension.models.ComfyDenoiser(model, diffusion.vae)
    own = DiffusersDenoiser(slim_unet, folders.random_autoencoder(0), comfy.schedule, VELOCITY)
    return SimpleNamespace(comfy=comfy, own=own, model=model.model)


@pytest.mark.parametrize("weighted", [False, True])
def test_velocity_is_the_same_as_after_the_hosts_own_switch(velocity: Any, slim_unet: Any, weighted: bool) -> None:
    x, t, context = noise(2, 4, 8, 8), torch.tensor([40, 900]), noise(2, 12, 768)
    gain = AttentionGain(1 + torch.rand(2, 8, 8), torch.arange(12) < 5, False) if weighted else None
    with torch.no_grad():
        expected = velocity.comfy.predict_noise(x, t, context, gain)
        close(velocity.own.predict_noise(x, t, context, gain), expected)
        # By the definition of velocity, from the same network's plain output.
        output = slim_unet(x, t, encoder_hidden_states=context).sample
    alpha = velocity.own.alphas_cumprod[t].view(-1, 1, 1, 1)
    if not weighted:
        close(expected, alpha.sqrt() * output + (1 - alpha).sqrt() * x)


def test_ten_steps_of_ddim_with_velocity_are_the_same_trajectory(extension: Any, velocity: Any) -> None:
    settings = SamplingSettings(seed=4, steps=10, cfg=1.0, sampler_name="ddim", scheduler="ddim_uniform")
    rows, start = noise(1, 12, 768), noise(1, 4, 8, 8)
    progress = extension.progress.Progress(100)
    wrap = extension.conditioning.ComfyConditioning.of(extension.conditioning.to_conditioning(rows))
    with torch.inference_mode():
        made = extension.sampling.ComfySampler(velocity.comfy).sample(
            velocity.model.process_latent_out(start), None, wrap, None, settings, progress
        )
        theirs = velocity.model.process_latent_in(made)
    ours = SchedulerSampler(velocity.own).sample(start, None, ContextConditioning(rows), None, settings, progress)
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
