"""The text encoder of a diffusers model folder makes the conditioning that ComfyUI makes of the same weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers_folder as folders
import pytest
import tiny_clip
import torch
from typer.testing import CliRunner

from anomalydiffusion_core.backends.diffusers import load_diffusers
from anomalydiffusion_core.backends.diffusers_text import load_text_encoder
from anomalydiffusion_core.backends.ldm import LdmDenoiser
from anomalydiffusion_core.backends.ldm_files import EPSILON
from anomalydiffusion_core.backends.models import Model
from anomalydiffusion_core.bundles.bundle import load_bundle
from anomalydiffusion_core.cli import app
from anomalydiffusion_core.cli.train import _start
from anomalydiffusion_core.conditioning.prompt_encoder import Prompt
from anomalydiffusion_core.data.mvtec import load_dataset
from anomalydiffusion_core.data.splits import SplitSettings
from anomalydiffusion_core.data.training import training_views
from anomalydiffusion_core.demo_prior.storing import store
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.training.inversion import AnomalyTrainer, InversionSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_clip.write_text_encoder(path)
    return path


@pytest.fixture(scope="module")
def texts(extension: Any, folder: Path) -> Any:
    """The tiny text encoder in ComfyUI and in diffusers."""
    clip = tiny_clip.load_in_comfyui(folder)
    comfy = extension.module("nodes.host.text_encoder").TextEncoder(clip)
    with torch.inference_mode():
        own = load_text_encoder(folder)
    return SimpleNamespace(clip=clip, comfy=comfy, diffusers=own)


@pytest.fixture(scope="module")
def models(extension: Any, folder: Path) -> Any:
    """A tiny model of the text encoder's width in ComfyUI, and in the folder of the text encoder."""
    tiny = LdmDenoiser.random(5, context_dim=tiny_clip.WIDTH)
    path = folder.parent / "tiny.safetensors"
    store(path, tiny.autoencoder, tiny.unet, tiny.words, {}, EPSILON)
    folders.write_from_ldm(folder, path)
    loaded = extension.ldm.load_ldm_checkpoint(path)
    return SimpleNamespace(
        comfy=extension.models.ComfyDenoiser(loaded.model, loaded.vae), diffusers=load_diffusers(folder)
    )


def rows_of(count: int, length: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(count, length, tiny_clip.WIDTH, generator=torch.Generator().manual_seed(seed)) * 0.02


@pytest.mark.parametrize(
    "text", ["", "a photo of a bottle", "Rust, 2 dents & a 'crack' \\(fine\\) -- über", "x " * 70]
)
def test_captions_are_those_of_clip_text_encode(stock: Any, texts: Any, text: str) -> None:
    expected = stock("CLIPTextEncode", texts.clip, text)[0][0][0]
    caption = texts.diffusers.caption(text)
    assert caption.shape == (1, 77, tiny_clip.WIDTH) and expected.std() > 0.1
    torch.testing.assert_close(caption, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("template", ["a photo of a *", "*", "metal with * in the middle, worn"])
def test_tokens_in_a_prompt_give_the_hosts_context(texts: Any, template: str) -> None:
    rows = rows_of(3, 5)
    prompt = Prompt(texts.diffusers, template)
    parsed = texts.comfy.parse(template, "*")
    with torch.inference_mode():
        expected = torch.cat([texts.comfy.conditioning([parsed.fill(row)])[0][0] for row in rows])
        contexts = prompt.contexts(rows)
    torch.testing.assert_close(contexts, expected, rtol=0, atol=1e-4)
    assert (contexts[0] - contexts[1]).abs().max() > 0.01
    words = texts.diffusers.words("cat dog")
    caption = texts.diffusers.caption(template.replace("*", "cat dog"))
    torch.testing.assert_close(prompt.contexts(words[None]), caption, rtol=0, atol=1e-5)


def test_gradients_to_the_tokens_are_the_hosts(texts: Any) -> None:
    rows, weights = rows_of(1, 4)[0], torch.randn(77, tiny_clip.WIDTH, generator=torch.Generator().manual_seed(4))
    parsed, prompt = texts.comfy.parse("a photo of a *", "*"), Prompt(texts.diffusers)
    gradients: list[torch.Tensor] = []
    for mode, context in (
        (texts.comfy.training_mode, lambda own: texts.comfy.contexts(parsed, own[None])[0]),
        (texts.diffusers.training_mode, lambda own: prompt.contexts(own[None])[0]),
    ):
        with torch.inference_mode(), mode():
            own = rows.clone().requires_grad_()
            (context(own) * weights).sum().backward()
            assert own.grad is not None
            gradients.append(own.grad)
    assert gradients[0].abs().max() > 1
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-3)
    assert not any(p.requires_grad or p.grad is not None for p in texts.diffusers.model.parameters())


def test_twenty_training_steps_inside_a_prompt_have_the_same_losses(
    extension: Any, texts: Any, models: Any, folder: Path, data: Path, tmp_path: Path
) -> None:
    dataset = load_dataset(data, "part", SplitSettings("first n", 2))
    pairs = training_views(dataset.types, 64)
    settings = InversionSettings(steps=20, resolution=64, augmented_copies=1, anomaly_tokens=3, spatial_tokens=2)
    host_prompt = Prompt(texts.comfy)
    words = texts.comfy.words("anomaly")
    torch.testing.assert_close(texts.diffusers.words("anomaly"), words, rtol=0, atol=0)
    expected = AnomalyTrainer(models.comfy, pairs, settings, initial_context=words, prompt=host_prompt).run()
    own_prompt = Prompt(texts.diffusers)
    trained = AnomalyTrainer(models.diffusers, pairs, settings, initial_context=words, prompt=own_prompt).run()
    assert len(expected.losses) == 20
    assert trained.losses == pytest.approx(expected.losses, abs=1e-4)
    told = ("token_route", "template", "placeholder", "text_encoder_fingerprint", "base_fingerprint")
    for name in told:
        assert trained.bundle.metadata[name] == expected.bundle.metadata[name]
    # The command makes that very bundle.
    arguments = ["train", "--model", str(folder), "--data", str(data), "--category", "part", "--out", str(tmp_path)]
    values: dict[str, Any] = {
        "steps": 20,
        "resolution": 64,
        "augmented-copies": 1,
        "anomaly-tokens": 3,
        "spatial-tokens": 2,
    }
    values |= {"split": "first n", "train-count": 2, "device": "cpu", "name": "prompt"}
    options = [text for name, value in values.items() for text in (f"--{name}", str(value))]
    result = CliRunner().invoke(app, [*arguments, *options, "--clip"])
    assert result.exit_code == 0, result.output
    bundle = load_bundle(tmp_path / "prompt_00001.safetensors")
    assert bundle.token_route == "clip" and bundle.width == tiny_clip.WIDTH
    assert all(torch.equal(bundle.tokens[key], rows) for key, rows in trained.bundle.tokens.items())


def test_a_text_encoder_of_another_width_is_refused(models: Any, texts: Any) -> None:
    narrow = LdmDenoiser.random(0, context_dim=32)
    model = Model(
        narrow, "", lambda: texts.diffusers, lambda _: torch.zeros(1, 32), lambda _: torch.zeros(1, 32), narrow.unet
    )
    with pytest.raises(InputError, match="context of width 64, the model takes 32"):
        _start(model, "", "a *")


def test_fingerprints_agree_also_where_the_host_keeps_half_precision(extension: Any, folder: Path, texts: Any) -> None:
    half = extension.module("nodes.host.text_encoder").TextEncoder(tiny_clip.load_in_comfyui(folder, torch.float16))
    own = texts.diffusers.fingerprint()
    assert own == texts.comfy.fingerprint() == half.fingerprint()
    other = folder.parent / "other"
    tiny_clip.write_text_encoder(other, seed=1)
    assert load_text_encoder(other).fingerprint() != own


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a photo", "holds the placeholder '\\*' 0 times"),
        ("a * of a *", "holds the placeholder '\\*' 2 times"),
        ("a (photo:1.2) of a *", r"holds '\(', which only ComfyUI"),
        ("a embedding:rust *", "holds 'embedding:', which only ComfyUI"),
        ("*" + " word" * 90, "takes 2 windows of 77 tokens"),
    ],
)
def test_templates_that_cannot_be_used(texts: Any, template: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Prompt(texts.diffusers, template)


def test_room_and_captions_that_do_not_fit(texts: Any) -> None:
    prompt = Prompt(texts.diffusers, "*" + " word" * 65)
    prompt.check_room(10)
    with pytest.raises(InputError, match="takes 78 tokens.*77"):
        prompt.check_room(11)
    with pytest.raises(InputError, match="takes 92 tokens, there is room for 77"):
        texts.diffusers.caption("word " * 90)
    with pytest.raises(InputError, match="holds no words"):
        texts.diffusers.words(" ")


def test_folders_without_a_usable_text_encoder(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    weights = other / "text_encoder" / "model.safetensors"
    weights.rename(weights.with_name("model.fp16.safetensors"))
    assert load_text_encoder(other).fingerprint() == load_text_encoder(folder).fingerprint()
    weights.with_name("model.fp16.safetensors").unlink()
    with pytest.raises(InputError, match="model.safetensors is missing"):
        load_text_encoder(other)
    weights.write_bytes(b"junk")
    with pytest.raises(InputError, match="text_encoder cannot be loaded"):
        load_text_encoder(other)
    shutil.rmtree(other / "tokenizer")
    with pytest.raises(InputError, match="has a text_encoder but no tokenizer folder"):
        load_text_encoder(other)
    folders.edit_config(other, "text_encoder", architectures=["T5EncoderModel"])
    with pytest.raises(InputError, match="text encoder is T5EncoderModel, supported is CLIPTextModel"):
        load_text_encoder(other)
