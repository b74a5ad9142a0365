"""The core's view of ComfyUI's MODEL and VAE: the same numbers as the plain backend, and nothing changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from anomalydiffusion_core.backends.ldm import LdmDenoiser, load_ldm
from anomalydiffusion_core.backends.ldm_autoencoder import Autoencoder, AutoencoderConfig
from anomalydiffusion_core.backends.ldm_files import VELOCITY
from anomalydiffusion_core.backends.ldm_unet import UNet
from anomalydiffusion_core.demo_prior.renderers import PHOTOS
from anomalydiffusion_core.demo_prior.storing import store
from anomalydiffusion_core.sampling.attention_gain import AttentionGain
from anomalydiffusion_core.synthetic.captions import vocabulary


def test_the_host_computes_what_the_plain_backend_computes(extension: Any, loaded: Any, prior: Path) -> None:
    ours, plain = extension.models.ComfyDenoiser(loaded.model, loaded.vae), load_ldm(prior)
    torch.testing.assert_close(ours.alphas_cumprod, plain.alphas_cumprod, rtol=0, atol=1e-6)
    assert (ours.context_width, ours.latent_channels, ours.downscale) == (128, 4, 8)
    assert ours.fingerprint() == plain.fingerprint()
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, 48, 64, generator=generator)
    latents = ours.encode(images)
    torch.testing.assert_close(latents, plain.encode(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.decode(latents), plain.decode(latents), rtol=0, atol=1e-5)
    context, t = torch.randn(2, 6, 128, generator=generator), torch.tensor([2, 871])
    with torch.no_grad():
        expected = plain.predict_noise(latents, t, context)
        torch.testing.assert_close(ours.predict_noise(latents, t, context), expected, rtol=0, atol=1e-4)
        for on_logits in (False, True):
            weights = 1 + torch.rand(2, 6, 8, generator=generator)
            gain = AttentionGain(weights, torch.arange(6) < 4, on_logits)
            weighted = plain.predict_noise(latents, t, context, gain)
            assert (weighted - expected).abs().max() > 1e-3
            measured = ours.predict_noise(latents, t, context, gain)
            torch.testing.assert_close(measured, weighted, rtol=0, atol=1e-4)
    # captions of the file
    torch.testing.assert_close(loaded.empty[0][0], plain.empty_context, rtol=0, atol=0)
    torch.testing.assert_close(loaded.normal[0][0], plain.normal_context, rtol=0, atol=0)


def test_a_file_that_predicts_velocity_is_loaded_as_such(extension: Any, prior: Path) -> None:
    tiny = LdmDenoiser.random(6)
    path = prior.with_name("velocity.safetensors")
    store(path, tiny.autoencoder, tiny.unet, tiny.words, {}, VELOCITY)
    try:
        model, vae, *_ = extension.run("LoadLDMCheckpoint", checkpoint=path.name).args
        ours, plain = extension.models.ComfyDenoiser(model, vae), load_ldm(path)
        x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([30, 900]), torch.randn(2, 6, 128)
        alpha = ours.alphas_cumprod[t][:, None, None, None]
        with torch.no_grad():
            noise = alpha.sqrt() * plain.unet(x, t, context) + (1 - alpha).sqrt() * x
            torch.testing.assert_close(ours.predict_noise(x, t, context), noise, rtol=0, atol=1e-4)
            torch.testing.assert_close(plain.predict_noise(x, t, context), noise, rtol=0, atol=1e-5)
    finally:
        path.unlink()


def test_a_file_may_have_more_latent_channels_and_words_of_its_own(extension: Any, prior: Path) -> None:
    tiny = LdmDenoiser.random(7)
    config = replace(tiny.unet.config, in_channels=8)
    autoencoder = Autoencoder(AutoencoderConfig((8, 8, 8, 8), (1, 1, 1, 1), latent_channels=8))
    words = torch.randn(len(PHOTOS.words), config.context_dim)
    path = prior.with_name("wide.safetensors")
    store(path, autoencoder, UNet(config), words, {}, VELOCITY, PHOTOS)
    try:
        model, vae, *_ = extension.run("LoadLDMCheckpoint", checkpoint=path.name).args
        ours, plain = extension.models.ComfyDenoiser(model, vae), load_ldm(path)
        assert ours.latent_channels == plain.latent_channels == 8
        images = torch.rand(1, 3, 64, 64)
        latents = plain.encode(images)
        assert latents.shape == (1, 8, 8, 8)
        torch.testing.assert_close(ours.encode(images), latents, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.decode(latents), plain.decode(latents), rtol=0, atol=1e-5)
        t, context = torch.tensor([500]), torch.randn(1, 6, 128)
        with torch.no_grad():
            noise = plain.predict_noise(latents, t, context)
            torch.testing.assert_close(ours.predict_noise(latents, t, context), noise, rtol=0, atol=1e-4)
        made = extension.run("EncodeLDMCaption", checkpoint=path.name, caption="bottle").args[0]
        assert torch.equal(made[0][0][0, 0], words[PHOTOS.words.index("surface:bottle")].half().float())
    finally:
        path.unlink()


def test_captions_are_rows_of_the_word_table(extension: Any, prior: Path) -> None:
    from safetensors import safe_open

    with safe_open(prior, "pt") as file:
        words = file.get_tensor("cond_stage_model.words.weight").float()
    names = vocabulary()
    caption = "surface:leather , dent,surface_colour:red,"
    made = extension.run("EncodeLDMCaption", checkpoint=prior.name, caption=caption).args[0]
    rows = [names.index("surface:leather"), names.index("surface_colour:red"), names.index("defect:dent"), 0, 0, 0]
    assert torch.equal(made[0][0], words[rows][None])
    between = extension.run("EncodeLDMCaption", checkpoint=prior.name, caption="stain, scratch").args[0]
    middle = (words[names.index("defect:stain")] + words[names.index("defect:scratch")]) / 2
    torch.testing.assert_close(between[0][0][0], torch.stack([words[0], words[0], middle, *words[[0, 0, 0]]]))


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("leather, velvet", "^caption: 'velvet' is not a word.*surface:leather"),
        ("red", "^caption: 'red' belongs to several slots: surface_colour:red, defect_colour:red"),
    ],
)
def test_wrong_captions_are_refused(extension: Any, prior: Path, caption: str, message: str) -> None:
    with pytest.raises(extension.errors.InputError, match=message):
        extension.run("EncodeLDMCaption", checkpoint=prior.name, caption=caption)


def test_velocity_models_give_their_noise(extension: Any, loaded: Any) -> None:
    import comfy.model_sampling

    class Velocity(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
        pass

    model = loaded.model.clone()
    model.add_object_patch("model_sampling", Velocity(model.model.model_config))
    ours = extension.models.ComfyDenoiser(model, loaded.vae)
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([400]), torch.randn(1, 5, 128)
    with torch.no_grad():
        eps = ours.predict_noise(x, t, context)
        velocity = model.model.diffusion_model(x, t.float(), context=context)
    alpha = ours.alphas_cumprod[400]
    # v = sqrt(alpha) eps - sqrt(1 - alpha) x_0 and x_t = sqrt(alpha) x_0 + sqrt(1 - alpha) eps
    torch.testing.assert_close(eps, alpha.sqrt() * velocity + (1 - alpha).sqrt() * x, rtol=1e-4, atol=1e-5)
    model.unpatch_model()


def test_training_mode_gives_gradients_and_puts_everything_back(extension: Any, loaded: Any, prior: Path) -> None:
    ours, plain = extension.models.ComfyDenoiser(loaded.model, loaded.vae), load_ldm(prior)
    before = extension.state_of(loaded.model)
    assert {inference for _, _, inference in before.values()} == {True}, "loader nodes run in inference mode"
    weights = {name: value.clone() for name, value in loaded.model.model.state_dict().items()}
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([30, 700]), torch.randn(2, 6, 128)

    def gradient(denoiser: Any) -> torch.Tensor:
        own = context.clone().requires_grad_()
        denoiser.predict_noise(x, t, own).square().mean().backward()
        assert own.grad is not None
        return own.grad

    with torch.inference_mode():
        with ours.training_mode():
            assert not any(p.requires_grad for p in loaded.model.model.parameters())
            measured = gradient(ours)
        with pytest.raises(KeyboardInterrupt), ours.training_mode():
            raise KeyboardInterrupt
    expected = gradient(plain)
    assert expected.abs().max() > 1e-6
    torch.testing.assert_close(measured, expected, rtol=1e-3, atol=1e-8)
    assert extension.state_of(loaded.model) == before
    for name, value in loaded.model.model.state_dict().items():
        assert torch.equal(value, weights[name])
    assert loaded.model.model_options == {"transformer_options": {}}


def test_models_that_do_not_fit_are_refused_with_both_values(
    extension: Any, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = extension.models.ComfyDenoiser(loaded.model, loaded.vae)
    with pytest.raises(extension.errors.InputError, match="its width is 768, the model's context has 128"):
        extension.module("anomalydiffusion_core.denoiser").check_width(denoiser, 768, "positive")
    with monkeypatch.context() as patch:
        patch.setattr(loaded.vae, "latent_channels", 16)
        with pytest.raises(extension.errors.InputError, match="makes 16 latent channels.*the model takes 4"):
            extension.models.ComfyDenoiser(loaded.model, loaded.vae)
    with monkeypatch.context() as patch:
        patch.setattr(loaded.model.model, "adm_channels", 2816)
        with pytest.raises(extension.errors.InputError, match="needs 2816 pooled text channels"):
            extension.models.ComfyDenoiser(loaded.model, loaded.vae)
    import comfy.model_sampling

    class Flow(comfy.model_sampling.ModelSamplingFlux, comfy.model_sampling.CONST):
        pass

    model = loaded.model.clone()
    model.add_object_patch("model_sampling", Flow())
    with pytest.raises(extension.errors.InputError, match="ModelSamplingFlux, CONST"):
        extension.models.ComfyDenoiser(model, loaded.vae)
