"""Without ComfyUI the core trains and samples the same: with Euler's method to the last bit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from in_process import ROOT

SAME = 0.01 / 255
PRIOR = ROOT / "models" / "demo_prior.safetensors"
EXACT: dict[str, dict[str, Any]] = {
    "plain": {"reweighting": "off", "min_effect": 255.0, "retries": 1},
    "monotone": {},
    "paper": {"reweighting": "paper"},
    "authors": {"reweighting": "authors"},
    "prompt-to-prompt": {"reweighting": "prompt-to-prompt"},
    "same step": {"difference": "same step"},
    "decoded": {"difference": "decoded", "decode_every": 2},
    "half": {"denoise": 0.5},
    "simple": {"scheduler": "simple"},
    "karras": {"scheduler": "karras"},
    "ddim": {"sampler_name": "ddim", "scheduler": "ddim_uniform"},
    "dpmpp_2m": {"sampler_name": "dpmpp_2m", "scheduler": "sgm_uniform", "steps": 5},
    "default": {"steps": 25},
    "uni_pc": {"sampler_name": "uni_pc", "steps": 3},
}


@pytest.fixture(scope="module")
def both(extension: Any) -> Any:
    """The demo prior, which predicts the velocity, in ComfyUI and in the core."""
    return in_both(extension, PRIOR)


def in_both(extension: Any, path: Path) -> Any:
    """A model in ComfyUI and in the core, as samplers, with what makes their conditionings."""
    core = SimpleNamespace(
        run=extension.module("anomalydiffusion_core.sampling.run"),
        schedulers=extension.module("anomalydiffusion_core.sampling.schedulers"),
        context=extension.module("anomalydiffusion_core.conditioning.context"),
        options=extension.module("anomalydiffusion_core.options"),
    )
    loaded = extension.ldm.load_ldm_checkpoint(path)
    plain = extension.module("anomalydiffusion_core.backends.ldm").load_ldm(path)
    host = extension.sampling.ComfySampler(extension.models.ComfyDenoiser(loaded.model, loaded.vae))
    return SimpleNamespace(
        **vars(core), host=host, own=core.schedulers.SchedulerSampler(plain), plain=plain, wrap=extension.conditioning
    )


@pytest.mark.parametrize("name", EXACT)
def test_same_images_through_both_samplers(both: Any, name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(2, 3, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(images, size=(64, 56), mode="bicubic").clamp(0, 1)
    masks = torch.zeros(2, 1, 64, 56)
    masks[0, :, 8:50, 10:44] = masks[1, :, 30:36, 20:26] = 1  # the second one is sampled in a window
    rows = both.plain.caption_context("stain, dark").expand(2, -1, -1)
    columns = torch.ones(rows.shape[1], dtype=torch.bool)
    values: dict[str, Any] = {"seed": 3, "steps": 4, "crop_size": 64, **EXACT[name]}
    settings = both.options.build(both.run.BlendingSettings, values)
    contexts = {"positive": rows, "negative": both.plain.empty_context, "control": both.plain.normal_context}
    extra = {"positive": {both.wrap.COLUMNS: columns}}
    with torch.inference_mode():
        host = both.run.BlendedSampling(both.host, settings).run(
            images,
            masks,
            **{
                key: both.wrap.ComfyConditioning(both.wrap.to_conditioning(value, **extra.get(key, {})))
                for key, value in contexts.items()
            },
        )
    own = both.run.BlendedSampling(both.own, settings).run(
        images,
        masks,
        **{
            key: both.context.ContextConditioning(value, columns if key == "positive" else None)
            for key, value in contexts.items()
        },
    )
    if "sampler_name" in EXACT[name]:  # diffusers' schedulers order these sums in their own way
        assert float((host.images - own.images).abs().max()) < SAME
    else:
        assert torch.equal(host.images, own.images)
    assert float((host.images - images).abs().max()) > 0.1
    assert torch.equal(host.masks, own.masks)
    for one, other in zip(host.records, own.records, strict=True):
        assert one["seed"] == other["seed"] and one["window"] == other["window"]
        assert one["effect_score"] == pytest.approx(other["effect_score"], abs=0.1)
        assert one["control_score"] == pytest.approx(other["control_score"], abs=0.1)


def test_same_bundles_through_both_denoisers(both: Any, extension: Any) -> None:
    inversion = extension.module("anomalydiffusion_core.training.inversion")
    embedding = extension.module("anomalydiffusion_core.training.mask_embedding")
    small = {"steps": 3, "batch_size": 2, "resolution": 64, "augmented_copies": 1}
    images, masks = (
        torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)),
        extension.box_mask(2)[:, None],
    )
    start = both.plain.caption_context("stain, dark")[0]
    found = []
    for denoiser in (both.host.denoiser, both.plain):
        settings = inversion.InversionSettings(encoder="light", **small)
        anomaly = inversion.AnomalyTrainer(
            denoiser, {"part/dot": (images, masks)}, settings, initial_context=start
        ).run()
        settings = embedding.MaskEmbeddingSettings(**small)
        learned = embedding.MaskTrainer(denoiser, {"part/dot": masks}, settings, initial_context=start).run()
        found.append((anomaly, learned))
    (host, host_masks), (own, own_masks) = found
    assert host.losses == own.losses and host_masks.losses == own_masks.losses
    for one, other in ((host, own), (host_masks, own_masks)):
        assert torch.equal(one.bundle.tokens["part/dot"], other.bundle.tokens["part/dot"])
        assert not torch.equal(one.bundle.tokens["part/dot"][0], start[0])
    own_encoder = own.bundle.spatial_encoder.state_dict()
    for name, value in host.bundle.spatial_encoder.state_dict().items():
        assert torch.equal(value, own_encoder[name]), name


@pytest.mark.parametrize("name", ["monotone", "half", "karras"])
def test_same_images_of_a_model_that_predicts_the_noise(extension: Any, prior: Path, name: str) -> None:
    tiny = in_both(extension, prior)
    assert tiny.plain.prediction == "epsilon"
    test_same_images_through_both_samplers(tiny, name)


def test_noise_levels_are_those_of_comfyui(both: Any) -> None:
    import comfy.samplers

    model_sampling = both.host.denoiser.model.get_model_object("model_sampling")
    levels = both.plain.schedule
    assert torch.equal(levels.sigmas, model_sampling.sigmas)
    assert torch.equal(levels.log_sigmas, model_sampling.log_sigmas)
    for name in both.schedulers.SCHEDULERS:
        for steps in (2, 7, 25):
            wanted = comfy.samplers.calculate_sigmas(model_sampling, name, steps)
            settings = both.run.SamplingSettings(steps=steps, scheduler=name)
            torch.testing.assert_close(both.schedulers.noise_levels(levels, settings), wanted, rtol=1e-4, atol=1e-5)


def test_same_masks_through_both_samplers(both: Any, extension: Any) -> None:
    """A collection from an embedding: the same samples are kept and rejected, with the same masks."""
    collection = extension.module("anomalydiffusion_core.masks.collection")
    cleanup = extension.module("anomalydiffusion_core.masks.cleanup")
    bundles = extension.module("anomalydiffusion_core.bundles.bundle")
    tokens = both.plain.caption_context("surface:mask")[0]
    bundle = bundles.AnomalyBundle("mask", {"part/dot": tokens}, None, {})
    settings = extension.module("anomalydiffusion_core.sampling.sampler").SamplingSettings(seed=5, steps=4, cfg=2.0)
    rules = cleanup.MaskRules(threshold=0.4, largest_area=1.0, border_rule=False)
    found = []
    for sampler, condition in (
        (both.host, lambda context: both.wrap.ComfyConditioning(both.wrap.to_conditioning(context))),
        (both.own, both.context.ContextConditioning),
    ):
        empty = condition(both.plain.empty_context)
        source = collection.embedding_masks(sampler, bundle, "part/dot", condition, empty, settings, 64, rules)
        with torch.inference_mode():
            found.append(source(0, 6, extension.module("anomalydiffusion_core.progress").Quiet()))
    host, own = found
    assert host.accepted == own.accepted and len(host.accepted) > 0
    assert host.rejected == own.rejected and torch.equal(host.masks, own.masks)
