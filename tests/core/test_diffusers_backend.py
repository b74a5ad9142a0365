"""A diffusers model folder gives the numbers of the plain backend on the same weights, and the same training."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import diffusers_folder as folders
import pytest
import random_checkpoint
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from anomalydiffusion_core.backends.diffusers import DiffusersDenoiser, load_diffusers
from anomalydiffusion_core.backends.layout import original_unet_weights
from anomalydiffusion_core.backends.ldm import LdmDenoiser, load_ldm
from anomalydiffusion_core.backends.ldm_files import EPSILON
from anomalydiffusion_core.demo_prior.storing import store
from anomalydiffusion_core.denoiser import Denoiser
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.sampling.attention_gain import AttentionGain
from anomalydiffusion_core.training.inversion import AnomalyTrainer, InversionSettings

pytestmark = pytest.mark.core


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = LdmDenoiser.random(0, context_dim=32)
    path = tmp_path_factory.mktemp("prior") / "tiny.safetensors"
    store(path, tiny.autoencoder, tiny.unet, tiny.words, {}, EPSILON)
    return path


@pytest.fixture(scope="module")
def plain(prior: Path) -> LdmDenoiser:
    return load_ldm(prior)


@pytest.fixture(scope="module")
def folder(prior: Path) -> Path:
    return folders.write_from_ldm(prior.parent / "model", prior)


@pytest.fixture(scope="module")
def denoiser(folder: Path) -> DiffusersDenoiser:
    with torch.inference_mode():
        return load_diffusers(folder)


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights_hash(denoiser: DiffusersDenoiser) -> str:
    digest = hashlib.sha256()
    for model in (denoiser.unet, denoiser.vae):
        for name, value in model.state_dict().items():
            digest.update(name.encode() + value.numpy().tobytes())
        assert not any(p.requires_grad or p.grad is not None or p.is_inference() for p in model.parameters())
    return digest.hexdigest()


def test_it_is_a_denoiser_with_the_properties_of_the_model(denoiser: DiffusersDenoiser, plain: LdmDenoiser) -> None:
    assert isinstance(denoiser, Denoiser)
    assert (denoiser.latent_channels, denoiser.downscale, denoiser.context_width) == (4, 8, 32)
    torch.testing.assert_close(denoiser.alphas_cumprod, plain.alphas_cumprod, rtol=1e-5, atol=1e-6)
    assert denoiser.fingerprint() == plain.fingerprint()


def test_latents_images_and_noise_are_those_of_the_plain_backend(
    denoiser: DiffusersDenoiser, plain: LdmDenoiser
) -> None:
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(denoiser.encode(images), plain.encode(images), rtol=0, atol=1e-4)
    x, t, context = noise(3, 4, 8, 12), torch.tensor([0, 500, 999]), noise(3, 6, 32)
    torch.testing.assert_close(denoiser.decode(x), plain.decode(x), rtol=0, atol=1e-4)
    with torch.no_grad():
        expected = plain.predict_noise(x, t, context)
        torch.testing.assert_close(denoiser.predict_noise(x, t, context), expected, rtol=0, atol=1e-4)
    assert expected.abs().max() > 0.5


@pytest.mark.parametrize("on_logits", [False, True])
def test_weighted_attention_is_that_of_the_plain_backend_and_leaves_no_trace(
    denoiser: DiffusersDenoiser, plain: LdmDenoiser, on_logits: bool
) -> None:
    x, t, context = noise(2, 4, 8, 12), torch.tensor([10, 700]), noise(2, 6, 32)
    weights = torch.ones(2, 8, 12)
    weights[0, 2:5, 3:9], weights[1, :4] = 1.5, 2.0
    columns = torch.arange(6) < 4
    with torch.no_grad():
        before = denoiser.predict_noise(x, t, context)
        expected = plain.predict_noise(x, t, context, AttentionGain(weights, columns, on_logits))
        weighted = denoiser.predict_noise(x, t, context, AttentionGain(weights, columns, on_logits))
        torch.testing.assert_close(weighted, expected, rtol=0, atol=1e-4)
        assert (weighted - before).abs().max() > 1e-3
        with pytest.raises(InputError, match="made for 1 samples"):
            denoiser.predict_noise(x, t, context, AttentionGain(weights[:1], columns))
        assert torch.equal(denoiser.predict_noise(x, t, context), before)


def pairs() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    masks = torch.zeros(2, 1, 64, 64)
    masks[:, :, 8:30, 16:40] = 1
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    return {"part/dent": (images + masks * 0.3, masks), "part/hole": (images - masks * 0.3, masks.flip(-1))}


def test_twenty_training_steps_have_the_losses_of_the_plain_backend(
    denoiser: DiffusersDenoiser, plain: LdmDenoiser
) -> None:
    before = weights_hash(denoiser)
    settings = InversionSettings(steps=20, resolution=64, augmented_copies=1, anomaly_tokens=3, spatial_tokens=2)
    expected = AnomalyTrainer(plain, pairs(), settings).run()
    with torch.inference_mode():
        trained = AnomalyTrainer(denoiser, pairs(), settings).run()
    assert trained.losses == pytest.approx(expected.losses, abs=1e-4)
    assert trained.bundle.base_fingerprint == expected.bundle.base_fingerprint
    for key, rows in expected.bundle.tokens.items():
        torch.testing.assert_close(trained.bundle.tokens[key], rows, rtol=0, atol=1e-3)
    assert weights_hash(denoiser) == before


def test_checkpointing_changes_memory_and_not_the_losses(folder: Path, denoiser: DiffusersDenoiser) -> None:
    settings = InversionSettings(steps=3, resolution=64, augmented_copies=0, anomaly_tokens=3, spatial_tokens=2)
    twice = load_diffusers(folder, checkpointing=True)
    assert twice.unet.is_gradient_checkpointing and not denoiser.unet.is_gradient_checkpointing
    losses = [AnomalyTrainer(one, pairs(), settings).run().losses for one in (twice, denoiser)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_half_precision_computes_in_it_and_stays_the_same_model(folder: Path, denoiser: DiffusersDenoiser) -> None:
    half = load_diffusers(folder, dtype=torch.bfloat16)
    assert half.fingerprint() == denoiser.fingerprint()
    x, t, context = noise(2, 4, 8, 8), torch.tensor([10, 700]), noise(2, 6, 32)
    with half.training_mode():
        rows = context.clone().requires_grad_()
        eps = half.predict_noise(x, t, rows)
        eps.square().mean().backward()
    with torch.no_grad():
        exact = denoiser.predict_noise(x, t, context)
    assert eps.dtype == torch.float32 and rows.grad is not None and rows.grad.dtype == torch.float32
    assert 0 < (eps.detach() - exact).abs().max() < 0.1
    assert half.encode(torch.rand(1, 3, 64, 64)).dtype == torch.float32
    with pytest.raises(InputError, match="the CPU cannot train in float16"):
        load_diffusers(folder, dtype=torch.float16)


def test_an_autoencoder_of_stable_diffusion_is_used_at_its_mean_and_scale(denoiser: DiffusersDenoiser) -> None:
    vae = folders.random_autoencoder(3)
    own = DiffusersDenoiser(denoiser.unet, vae, denoiser.schedule)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    assert own.downscale == 8
    with torch.no_grad():
        # The first four channels of the moments are the mean, the others the logarithm of the variance.
        mean, logarithm = vae.quant_conv(vae.encoder(images * 2 - 1)).chunk(2, dim=1)
        torch.testing.assert_close(own.encode(images), mean * 0.18215, rtol=0, atol=1e-6)
        own_mean, deviation = own.encode_moments(images)
        torch.testing.assert_close(own_mean, mean * 0.18215, rtol=0, atol=1e-6)
        torch.testing.assert_close(deviation, (logarithm / 2).exp() * 0.18215, rtol=1e-5, atol=0)
        image = vae.decoder(vae.post_quant_conv(mean)) / 2 + 0.5
        torch.testing.assert_close(own.decode(mean * 0.18215), image.clamp(0, 1), rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="AutoencoderTiny gives no deviation"):
        denoiser.encode_moments(images)


def test_a_model_that_predicts_velocity_gives_the_noise_of_that_velocity(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "velocity"
    shutil.copytree(folder, other)
    folders.edit_config(other, "scheduler", prediction_type="v_prediction")
    noise_model, velocity_model = load_diffusers(folder), load_diffusers(other)
    x, context, t = noise(2, 4, 8, 8), noise(2, 6, 32, seed=2), torch.tensor([700, 20])
    with torch.no_grad():
        velocity = noise_model.predict_noise(x, t, context)  # the same network's output, whatever it stands for
        found = velocity_model.predict_noise(x, t, context)
    # v = sqrt(a) eps - sqrt(1 - a) x_0 and x = sqrt(a) x_0 + sqrt(1 - a) eps (Salimans and Ho 2022, appendix D).
    alpha = noise_model.alphas_cumprod[t].view(-1, 1, 1, 1)
    clean = (x - (1 - alpha).sqrt() * found) / alpha.sqrt()
    torch.testing.assert_close(alpha.sqrt() * found - (1 - alpha).sqrt() * clean, velocity, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("levels", [random_checkpoint.SLIM, random_checkpoint.FULL], ids=["slim", "full"])
def test_original_names_are_those_that_diffusers_itself_reads(levels: dict[str, Any]) -> None:
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**folders.unet_config({**random_checkpoint.UNET, **levels}))
    weights = dict(unet.state_dict())
    original = original_unet_weights(weights, unet.config)
    again = convert_ldm_unet_checkpoint({f"model.diffusion_model.{k}": v for k, v in original.items()}, unet.config)
    assert again.keys() == weights.keys() and all(again[name] is value for name, value in weights.items())


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("scheduler", {"prediction_type": "sample"}, "prediction_type 'sample'"),
        ("scheduler", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatch.* discrete noise schedule"),
        ("unet", {"addition_embed_type": "text_time"}, "addition_embed_type = 'text_time' .*SDXL"),
        ("unet", {"in_channels": 9}, "takes 9 channels and gives 4 for latents of 4"),
        ("unet", {"cross_attention_dim": [32, 64]}, r"cross_attention_dim = \[32, 64\]"),
        ("unet", {"cross_attention_dim": 48}, "weights in .*unet cannot be loaded"),
        ("vae", {"_class_name": "VQModel"}, "autoencoder is VQModel, supported are AutoencoderKL"),
    ],
)
def test_models_that_are_not_supported(
    folder: Path, tmp_path: Path, part: str, values: dict[str, Any], message: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    folders.edit_config(other, part, **values)
    with pytest.raises(InputError, match=message):
        load_diffusers(other)


def test_folders_that_are_incomplete_or_damaged(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lacks unet/config.json .it does not exist"):
        load_diffusers(tmp_path / "missing")
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    weights = other / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert load_diffusers(other).fingerprint() == load_diffusers(folder).fingerprint()
    weights.with_name("diffusion_pytorch_model.fp16.safetensors").rename(weights.with_suffix(".bin"))
    with pytest.raises(InputError, match="diffusion_pytorch_model.safetensors is missing; weights in other formats"):
        load_diffusers(other)
    weights.write_bytes(b"junk")
    with pytest.raises(InputError, match="weights in .*unet cannot be loaded"):
        load_diffusers(other)
    (other / "vae" / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"vae.config.json is no JSON"):
        load_diffusers(other)
    shutil.rmtree(other / "unet")
    with pytest.raises(InputError, match="lacks unet/config.json .it holds scheduler, vae"):
        load_diffusers(other)
