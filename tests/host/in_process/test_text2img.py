"""text2img-large, the paper's base model, at tiny widths: stock nodes, the core, and the authors' files on it."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import authors_layout
import diffusers_folder
import pytest
import text2img_file
import torch
from torch import Tensor

from anomalydiffusion_core.backends.models import open_model
from anomalydiffusion_core.backends.text2img import is_text2img
from anomalydiffusion_core.conditioning.prompt_encoder import Prompt
from anomalydiffusion_core.sampling.attention_gain import AttentionGain

# "a photo of a *" in bert-base-uncased, padded as the authors' tokenizer does.
PHOTO = [101, 1037, 6302, 1997, 1037, 1008, 102] + [0] * 70


@pytest.fixture(scope="module")
def base(extension: Any) -> Any:
    """The tiny file as a .ckpt, loaded by the node and by the core."""
    path = extension.base / "models" / "anomalydiffusion_checkpoints" / "paper.ckpt"
    counts = text2img_file.write_text2img(path)
    model, vae, empty, normal, clip = extension.run("LoadLDMCheckpoint", checkpoint=path.name).args
    comfy = extension.models.ComfyDenoiser(model, vae)
    return SimpleNamespace(
        path=path, counts=counts, model=model, vae=vae, empty=empty, normal=normal, clip=clip, comfy=comfy,
        texts=extension.module("nodes.host.text_encoder").TextEncoder(clip), own=open_model(path, "cpu"),
    )  # fmt: skip


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_stock_nodes_sample_with_all_three_parts(stock: Any, base: Any) -> None:
    positive = stock("CLIPTextEncode", base.clip, "a photo of a crack")[0]
    assert positive[0][0].shape == (1, 77, 64)
    image = torch.rand(1, 64, 64, 3)
    latent = stock("VAEEncode", base.vae, image)[0]
    assert latent["samples"].shape == (1, 4, 8, 8)
    made = stock("KSampler", base.model, 3, 2, 4.0, "ddim", "ddim_uniform", positive, base.empty, latent)[0]
    pixels = stock("VAEDecode", base.vae, made)[0]
    assert pixels.shape == image.shape and bool(pixels.isfinite().all())
    other = stock("CLIPTextEncode", base.clip, "a photo of a hole")[0]
    changed = stock("KSampler", base.model, 3, 2, 4.0, "ddim", "ddim_uniform", other, base.empty, latent)[0]
    assert (made["samples"] - changed["samples"]).abs().max() > 1e-3
    stock("CLIPSetLastLayer", base.clip, -2)


def test_ids_are_those_of_bert_and_unknown_words_say_what_is_missing(stock: Any, base: Any, tmp_path: Path) -> None:
    windows = base.clip.tokenize("a photo of a *")["bert"]
    assert [token for token, _ in windows[0]] == PHOTO
    assert [token for token, _ in base.clip.tokenize("(Crack:1.5), A")["bert"][0]][:5] == [101, 8579, 1010, 1037, 102]
    for call in (lambda: stock("CLIPTextEncode", base.clip, "a zebra"), lambda: base.own.caption("a zebra")):
        with pytest.raises(Exception, match="'zebra' needs BERT's vocabulary.*vocab.txt"):
            call()


def test_the_core_computes_what_comfyui_computes(base: Any) -> None:
    own, comfy = base.own.denoiser, base.comfy
    assert own.fingerprint() == comfy.fingerprint()
    close(own.alphas_cumprod, comfy.alphas_cumprod)
    images = torch.rand(2, 3, 64, 72, generator=torch.Generator().manual_seed(2))
    close(own.encode(images), comfy.encode(images))
    close(own.decode(noise(2, 4, 8, 8)), comfy.decode(noise(2, 4, 8, 8)))
    for mean, other in zip(own.encode_moments(images), comfy.encode_moments(images), strict=True):
        close(mean, other)
    x, t, context = noise(3, 4, 8, 12), torch.tensor([0, 480, 999]), noise(3, 9, 64)
    weights = torch.ones(3, 8, 12)
    weights[0, 2:5, 3:9], weights[2, :4] = 1.5, 2.0
    for gain in (None, *(AttentionGain(weights, torch.arange(9) < 4, logits) for logits in (True, False))):
        with torch.no_grad():
            expected = comfy.predict_noise(x, t, context, gain)
            close(own.predict_noise(x, t, context, gain), expected)
        assert expected.abs().max() > 0.5


def test_text_encoders_agree(stock: Any, base: Any) -> None:
    own = base.own.text_encoder()
    assert own.fingerprint() == base.texts.fingerprint() and len(own.fingerprint()) > 10
    for text in ("", "a photo of a crack", "a bright photo of the damaged screw"):
        close(own.caption(text), stock("CLIPTextEncode", base.clip, text)[0][0][0])
    close(own.words("anomaly"), base.texts.words("anomaly"))
    rows, prompt = noise(2, 5, 64), Prompt(own)
    parsed = base.texts.parse("a photo of a *", "*")
    with torch.inference_mode():
        expected = torch.cat([base.texts.conditioning([parsed.fill(row)])[0][0] for row in rows])
        close(prompt.contexts(rows), expected)
    # Five words, then e, then the rest, as the authors' code places them.
    assert prompt.columns(5).nonzero().flatten().tolist() == [5, 6, 7, 8, 9]
    gradients = []
    for mode, context in (
        (base.texts.training_mode, lambda rows: base.texts.contexts(parsed, rows)),
        (own.training_mode, prompt.contexts),
    ):
        with torch.inference_mode(), mode():
            learned = rows.clone().requires_grad_()
            context(learned).square().sum().backward()
            assert learned.grad is not None
            gradients.append(learned.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-3)


def test_files_that_are_no_text2img_are_refused_by_name(extension: Any, base: Any) -> None:
    folder = base.path.parent
    for name, state, message in (
        ("stable.ckpt", {"state_dict": {"cond_stage_model.transformer.x": torch.zeros(1)}}, "not text2img-large"),
        ("cut.ckpt", {"state_dict": _without("attn_layers.layers.1.1.net.2.weight")}, "net.2.weight"),
        ("blind.ckpt", {"state_dict": _without("first_stage_model.")}, "holds no autoencoder"),
    ):
        torch.save(state, folder / name)
        try:
            with pytest.raises((extension.errors.InputError, extension.errors.BundleError), match=message):
                extension.module("nodes.host.text2img").load_text2img(folder / name)
        finally:
            (folder / name).unlink()
    assert not is_text2img(extension.base / "models" / "anomalydiffusion_checkpoints" / "absent.safetensors")


def _without(part: str) -> dict[str, Tensor]:
    return {name: value for name, value in text2img_file.state_of().items() if part not in name}


@pytest.fixture(scope="module")
def authors(extension: Any) -> Any:
    """The authors' files at tiny widths, in ComfyUI's folder of bundles: masks of 64 px, width 64."""
    folder = extension.base / "models" / "anomalydiffusion" / "paper"
    masks = folder / "mask-checkpoints"
    state = authors_layout.encoder_state(tokens=2, width=64, halvings=4)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "spatial_encoder.pt")
    rows = authors_layout.write_embeddings(folder / "embeddings.pt", ["part+dot", "part+bar"], width=64)
    learned = {}
    for name in ("part-dot", "metal-nut-bent"):
        path = masks / name / "checkpoints" / "embeddings.pt"
        path.parent.mkdir(parents=True)
        learned[name] = authors_layout.write_embeddings(path, ["*"], k=5, width=64)["*"]
    return SimpleNamespace(folder=folder, masks=masks, rows=rows, learned=learned)


def test_the_authors_files_sample_on_their_base(extension: Any, base: Any, authors: Any, tmp_path: Path) -> None:
    bundle = extension.run("LoadSpatialEncoder", bundle_name="paper/spatial_encoder.pt").args[0]
    mask, image = extension.box_mask(), torch.rand(1, 64, 64, 3)
    positive = extension.run(
        "SpatialAnomalyEmbedding", bundle=bundle, defect_type="part/dot", mask=mask, clip=base.clip
    ).args[0]
    assert positive[0][0].shape == (1, 77, 64)
    images, _, _, effects, _ = extension.run(
        "BlendedAARKSampler", model=base.model, vae=base.vae, positive=positive, negative=base.empty, image=image,
        mask=mask, steps=2, cfg=2.0,
    ).args  # fmt: skip
    outside = (mask == 0)[..., None].expand_as(images)
    assert torch.equal(images[outside], image[outside]) and effects[0]["effect_score"] > 1
    # The command's way: the same rows through the core.
    names = ("bundles.authors_files", "bundles.conditioning")
    files, conditioning = (extension.module(f"anomalydiffusion_core.{name}") for name in names)
    own = files.import_authors_files(authors.folder / "spatial_encoder.pt", authors.folder / "embeddings.pt")
    prompt = extension.module("anomalydiffusion_core.conditioning.prompt_encoder").Prompt(base.own.text_encoder())
    made = conditioning.anomaly_conditioning(own, "part/dot", mask[:, None], prompt)
    close(made.rows, positive[0][0])


def test_the_authors_mask_embeddings_sample_masks(extension: Any, base: Any, authors: Any) -> None:
    files = extension.module("anomalydiffusion_core.bundles.authors_files")
    bundle = files.import_authors_masks(authors.masks, ["metal-nut"])
    assert sorted(bundle.types) == ["metal-nut/bent", "part/dot"] and bundle.kind == "mask"
    assert torch.equal(bundle.tokens["part/dot"], authors.learned["part-dot"])
    values = {
        "model": base.model,
        "vae": base.vae,
        "bundle": bundle,
        "defect_type": "part/dot",
        "count": 1,
        "size": 64,
    }
    values |= {"steps": 2, "cfg": 1.0, "threshold": 0.3, "largest_area": 1.0, "border_rule": False, "smallest_area": 0}
    masks, report = extension.run("MaskEmbeddingSampler", clip=base.clip, **values).args
    assert masks.shape == (1, 64, 64) and "part/dot" in report
    with pytest.raises(extension.errors.BundleError, match="Connect the CLIP"):
        extension.run("MaskEmbeddingSampler", **values)
    with pytest.raises(extension.errors.BundleError, match="embeddings named part"):
        files.read_mask_embedding(authors.folder / "embeddings.pt")


def test_a_folder_of_the_diffusers_pipeline_is_the_same_model(base: Any, tmp_path: Path) -> None:
    folder = diffusers_folder.write_ldm_pipeline(tmp_path / "ldm", base.path)
    opened = open_model(folder, "cpu")
    assert opened.denoiser.fingerprint() == base.comfy.fingerprint()
    close(opened.denoiser.alphas_cumprod, base.comfy.alphas_cumprod)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    close(opened.denoiser.encode(images), base.comfy.encode(images))
    close(opened.denoiser.decode(noise(1, 4, 8, 8)), base.comfy.decode(noise(1, 4, 8, 8)))
    close(opened.caption("a photo of a crack"), base.own.caption("a photo of a crack"))
    with torch.no_grad():
        x, t, context = noise(1, 4, 8, 8), torch.tensor([300]), noise(1, 77, 64)
        close(opened.denoiser.predict_noise(x, t, context), base.comfy.predict_noise(x, t, context))


def test_ten_steps_of_ddim_are_the_same_trajectory(extension: Any, base: Any) -> None:
    """ComfyUI's own DDIM on its MODEL, and the core's on diffusers' networks, from one noise: latents to 1e-3."""
    core = "anomalydiffusion_core"
    schedulers = extension.module(f"{core}.sampling.schedulers")
    sampler = extension.module(f"{core}.sampling.sampler")
    context = extension.module(f"{core}.conditioning.context")
    settings = sampler.SamplingSettings(seed=4, steps=10, cfg=1.0, sampler_name="ddim", scheduler="ddim_uniform")
    rows, y0 = base.own.caption("a photo of a crack")[None], noise(1, 4, 8, 8)
    progress = extension.progress.Progress(100)
    wrap = extension.conditioning.ComfyConditioning.of(extension.conditioning.to_conditioning(rows))
    host = extension.sampling.ComfySampler(base.comfy)
    scale = base.model.model  # the host's sampler takes latents in the scale of the VAE
    with torch.inference_mode():
        made = host.sample(scale.process_latent_out(y0), None, wrap, None, settings, progress)
        theirs = scale.process_latent_in(made)
    own = schedulers.SchedulerSampler(base.own.denoiser)
    ours = own.sample(y0, None, context.ContextConditioning(rows), None, settings, progress)
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_full_size_samples_at_256_px_with_the_authors_encoder(extension: Any, stock: Any) -> None:
    """872 M weights in the U-Net and 582 M in the text encoder; prints seconds and the peak of memory."""
    folder = extension.base / "models" / "anomalydiffusion_checkpoints"
    path, started = folder / "full.safetensors", time.monotonic()
    try:
        counts = text2img_file.write_text2img(path, text2img_file.FULL, dtype=torch.half)
        assert [round(count / 1e6, 1) for count in counts.values()] == [872.3, 83.7, 582.0]
        written = time.monotonic()
        model, vae, empty, _, clip = extension.run("LoadLDMCheckpoint", checkpoint=path.name).args
    finally:
        path.unlink(missing_ok=True)
    loaded = time.monotonic()
    files = extension.module("anomalydiffusion_core.bundles.authors_files")
    own = folder.parent / "anomalydiffusion" / "full"
    own.mkdir(parents=True)
    state = authors_layout.encoder_state((64, 64, 128, 256, 512), tokens=4, width=1280, halvings=6)
    assert round(sum(value.numel() for name, value in state.items() if "running" not in name) / 1e6) == 356
    torch.save(state, own / "spatial_encoder.pt")
    authors_layout.write_embeddings(own / "embeddings.pt", ["bottle+broken_large"], k=12, width=1280)
    bundle = files.import_authors_files(own / "spatial_encoder.pt", own / "embeddings.pt")
    (own / "spatial_encoder.pt").unlink()
    del state
    mask, image = torch.zeros(1, 256, 256), torch.rand(1, 256, 256, 3)
    mask[:, 60:130, 80:150] = 1
    embed = {"bundle": bundle, "defect_type": "", "mask": mask, "clip": clip}
    positive = extension.run("SpatialAnomalyEmbedding", **embed).args[0]
    assert positive[0][0].shape == (1, 77, 1280)
    values = {"model": model, "vae": vae, "positive": positive, "negative": empty, "image": image, "mask": mask}
    images, *_ = extension.run("BlendedAARKSampler", steps=2, cfg=1.0, **values).args
    outside = (mask == 0)[..., None].expand_as(images)
    assert torch.equal(images[outside], image[outside]) and bool(images.isfinite().all())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    sys.stderr.write(
        f"\nfull size: written in {written - started:.0f} s, loaded in {loaded - written:.0f} s, sampled in "
        f"{time.monotonic() - loaded:.0f} s, peak {peak:.1f} GB\n"
    )
