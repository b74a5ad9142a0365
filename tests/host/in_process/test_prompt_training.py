"""Training inside a prompt: tokens pass through the text encoder of a slim Stable Diffusion 1.5."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch


def weights_hash(*modules: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            digest.update(name.encode() + value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def parts(diffusion: Any) -> tuple[torch.nn.Module, ...]:
    return diffusion.model.model, diffusion.clip.cond_stage_model, diffusion.vae.first_stage_model


def train(extension: Any, diffusion: Any, dataset: Any, **values: Any) -> Any:
    chosen = {"model": diffusion.model, "vae": diffusion.vae, "clip": diffusion.clip, "dataset": dataset}
    chosen |= {**extension.small, "batch_size": 1, "augmented_copies": 0, "anomaly_tokens": 2, "spatial_tokens": 1}
    return extension.run("TrainAnomalyEmbedding", **{**chosen, **values})


def test_trained_inside_a_prompt_it_is_used_inside_it_and_all_models_are_as_before(
    extension: Any, stock: Any, diffusion: Any, dataset: Any
) -> None:
    before, state = weights_hash(*parts(diffusion)), extension.state_of(diffusion.model)
    text = stock("CLIPTextEncode", diffusion.clip, "a photo of a cat")[0][0][0]
    options = extension.run("TrainingOptions", preview_every=1, preview_steps=1).args[0]
    result = train(extension, diffusion, dataset, name="inside", template="a worn * on metal", options=options)
    bundle = result.args[0]
    metadata = bundle.metadata
    assert (bundle.token_route, bundle.template, bundle.width) == ("clip", "a worn * on metal", 768)
    assert metadata["text_encoder_fingerprint"] and len(metadata["losses"]) == 2
    assert weights_hash(*parts(diffusion)) == before and extension.state_of(diffusion.model) == state
    assert not any(part._forward_pre_hooks for part in diffusion.clip.cond_stage_model.modules())
    assert torch.equal(stock("CLIPTextEncode", diffusion.clip, "a photo of a cat")[0][0][0], text)
    embed = {"bundle": bundle, "defect_type": "part/dot", "mask": extension.box_mask(), "clip": diffusion.clip}
    positive = extension.run("SpatialAnomalyEmbedding", **embed).args[0]
    # "a worn * on metal": start, a, worn, then 2 + 1 tokens.
    assert positive[0][1][extension.conditioning.COLUMNS].nonzero().flatten().tolist() == [3, 4, 5]
    with pytest.raises(extension.errors.BundleError, match="trained with the token route 'clip'"):
        extension.run("SpatialAnomalyEmbedding", **{**embed, "clip": None})
    image = torch.rand(1, 64, 64, 3)
    images = extension.blend(diffusion, bundle, image, extension.box_mask(), positive=positive).args[0]
    assert images.isfinite().all() and not torch.equal(images, image)


def test_tokens_start_at_the_words_and_the_first_loss_is_that_of_the_prompt(
    extension: Any, diffusion: Any, dataset: Any
) -> None:
    text, models = extension.module("nodes.host.text_encoder"), extension.models
    inversion = extension.module("anomalydiffusion_core.training.inversion")
    denoiser = models.ComfyDenoiser(diffusion.model, diffusion.vae)
    encoder = text.TextEncoder(diffusion.clip)
    rows = encoder.words("anomaly")
    table = diffusion.clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight
    ids = [token for token, _ in diffusion.clip.tokenize("anomaly")["l"][0][1:]]
    assert torch.equal(rows, table[torch.tensor(ids[: ids.index(49407)])].float())
    prompt = extension.module("anomalydiffusion_core.conditioning.prompt_encoder").Prompt(encoder, "an (odd:1.2) *")
    pairs = {"part/dot": (torch.rand(1, 3, 64, 64), extension.box_mask()[:, None])}
    settings = inversion.InversionSettings(
        steps=1, batch_size=2, resolution=64, augmented_copies=0, anomaly_tokens=2, spatial_tokens=1
    )
    trainer = inversion.AnomalyTrainer(denoiser, pairs, settings, initial_context=rows, prompt=prompt)
    start = trainer.result().bundle.tokens["part/dot"]
    assert torch.allclose(start, rows[:1].expand(2, -1), atol=0.02)
    loop = trainer.loop
    batch, generator = loop._draw(), loop.generator.get_state()
    # The same loss with each context made alone, by the way that sampling takes.
    masks = pairs["part/dot"][1].expand(2, -1, -1, -1)
    tokens = torch.cat([start.expand(2, -1, -1), trainer.module.encoder(masks).detach()], dim=1)
    with torch.inference_mode():
        template = encoder.parse("an (odd:1.2) *", "*")
        context = torch.cat([encoder.conditioning([template.fill(own)])[0][0] for own in tokens])
        alpha = denoiser.alphas_cumprod[batch.t].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * loop.bank.latents[batch.rows] + (1 - alpha).sqrt() * batch.noise
        error = (batch.noise - denoiser.predict_noise(noisy, batch.t, context)).square()
        expected = float((error * loop.bank.latent_masks[batch.rows]).mean())
    loop.generator.manual_seed(settings.seed)
    assert trainer.run().losses[0] == pytest.approx(expected, rel=1e-3)
    assert generator is not None


def test_gradients_pass_through_the_text_encoder_into_type_and_mask_tokens(
    extension: Any, diffusion: Any, dataset: Any
) -> None:
    first = train(extension, diffusion, dataset, name="moved", steps=1).args[0]
    more = train(extension, diffusion, dataset, name="moved", steps=3).args[0]
    for key in first.tokens:
        assert not torch.equal(first.tokens[key], more.tokens[key])
    one, two = (bundle.spatial_encoder.state_dict() for bundle in (first, more))
    assert all(not torch.equal(one[name], two[name]) for name in one if name.startswith("heads"))


def test_wrong_inputs_of_the_prompt_are_named(extension: Any, loaded: Any, diffusion: Any, dataset: Any) -> None:
    errors = extension.errors
    for values, message in (
        ({"template": "a photo"}, "holds the placeholder '\\*' 0 times"),
        ({"template": "*" + " word" * 74}, "takes 79 tokens.*77"),
        ({"initial_words": " "}, "initial words: they are empty"),
        ({"initial": diffusion.empty}, "initial: is not used with a CLIP"),
    ):
        with pytest.raises(errors.InputError, match=message):
            train(extension, diffusion, dataset, name="wrong", **values)
    # The text encoder makes a context of 768, the demo's model wants 128.
    with pytest.raises(errors.InputError, match="clip: .*768.*128"):
        train(extension, diffusion, dataset, name="wrong", model=loaded.model, vae=loaded.vae)
