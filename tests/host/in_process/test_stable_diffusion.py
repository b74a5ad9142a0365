"""Blended AAR KSampler on Stable Diffusion 1.5 of random weights, loaded by ComfyUI's own node."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import random_checkpoint
import torch


def blend(extension: Any, diffusion: Any, clip_bundle: Any, image: Any, mask: Any, **values: Any) -> Any:
    positive = (
        values.pop("positive", None)
        or extension.run(
            "SpatialAnomalyEmbedding", bundle=clip_bundle, defect_type="", mask=mask, clip=diffusion.clip
        ).args[0]
    )
    chosen = {"steps": 2, "cfg": 2.0, "negative": diffusion.empty, **values}
    return extension.run(
        "BlendedAARKSampler",
        model=diffusion.model,
        vae=diffusion.vae,
        positive=positive,
        image=image,
        mask=mask,
        **chosen,
    ).args


@pytest.mark.parametrize("mode", ["off", "monotone", "paper", "authors"])
def test_every_mode_changes_the_mask_only(extension: Any, diffusion: Any, clip_bundle: Any, mode: str) -> None:
    image, mask = torch.rand(1, 64, 72, 3), extension.box_mask(2, (64, 72))
    images, masks, latent, effects, _ = blend(extension, diffusion, clip_bundle, image, mask, reweighting=mode)
    outside = (mask == 0)[..., None].expand_as(images)
    assert torch.equal(images[outside], image.expand_as(images)[outside])
    assert torch.equal(masks, mask) and latent["samples"].shape == (2, 4, 8, 9)
    assert all(entry["effect_score"] > 1 for entry in effects)


@pytest.mark.parametrize(("sampler", "scheduler", "cfg"), [("euler", "normal", 1.0), ("dpmpp_2m", "karras", 3.0)])
@pytest.mark.parametrize("mode", ["monotone", "off"])
def test_all_ones_mask_and_strength_0_give_the_stock_samplers_latents(
    extension: Any, stock: Any, diffusion: Any, clip_bundle: Any, sampler: str, scheduler: str, cfg: float, mode: str
) -> None:
    image, mask = torch.rand(1, 64, 64, 3), torch.ones(1, 64, 64)
    positive = extension.run(
        "SpatialAnomalyEmbedding", bundle=clip_bundle, defect_type="", mask=mask, clip=diffusion.clip
    ).args[0]
    settings = {"sampler_name": sampler, "scheduler": scheduler, "seed": 12, "steps": 3, "cfg": cfg}
    ours = blend(
        extension, diffusion, clip_bundle, image, mask, positive=positive, reweighting=mode, strength=0.0, **settings
    )[2]["samples"]
    encoded = stock("VAEEncode", diffusion.vae, image)[0]
    masked = stock("SetLatentNoiseMask", encoded, mask)[0]
    theirs = stock("KSampler", diffusion.model, 12, 3, cfg, sampler, scheduler, positive, diffusion.empty, masked)
    assert torch.equal(ours, theirs[0]["samples"])


def test_another_base_model_is_an_error_with_both_fingerprints(
    extension: Any, diffusion: Any, clip_bundle: Any
) -> None:
    other = replace(clip_bundle, metadata={**clip_bundle.metadata, "base_fingerprint": "2:feed"})
    own = clip_bundle.base_fingerprint
    with pytest.raises(extension.errors.InputError, match=f"trained on the model 2:feed, this one is {own}"):
        blend(extension, diffusion, other, torch.rand(1, 64, 64, 3), extension.box_mask())


def test_columns_of_the_prompt_survive_combining_and_concatenation(
    extension: Any, stock: Any, diffusion: Any, clip_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask, image = extension.box_mask(), torch.rand(1, 64, 64, 3)
    own = extension.run(
        "SpatialAnomalyEmbedding", bundle=clip_bundle, defect_type="", mask=mask, clip=diffusion.clip
    ).args[0]
    text = stock("CLIPTextEncode", diffusion.clip, "rusty metal")[0]
    patches = extension.module("nodes.host.reweighting")
    seen: list[tuple[tuple[int, ...], list[list[int]], list[bool]]] = []
    make = patches._SamplingGain._make

    def recording(self: Any, current: Any, length: int, chunks: Any) -> Any:
        gain = make(self, current, length, chunks)
        columns = [row.nonzero().flatten().tolist() for row in gain.columns]
        weighted = [bool((row != 1).any()) for row in gain.weights]
        seen.append((tuple(half for half, _ in chunks), columns, weighted))
        return gain

    monkeypatch.setattr(patches._SamplingGain, "_make", recording)

    def columns_of(positive: Any) -> list[tuple[int, tuple[int, ...], bool]]:
        seen.clear()
        blend(extension, diffusion, clip_bundle, image, mask, positive=positive, steps=3)
        return sorted({(h, tuple(c), w) for halves, cs, ws in seen for h, c, w in zip(halves, cs, ws, strict=True)})

    e = (5, 6, 7, 8)
    assert columns_of(own) == [(0, e, True), (1, (), False)]
    # The combined text is an entry of its own and stays as it is.
    assert columns_of(stock("ConditioningCombine", own, text)[0]) == [(0, (), False), (0, e, True), (1, (), False)]
    # 154 tokens; the negative's 77 are repeated to the same length by the host.
    assert columns_of(stock("ConditioningConcat", own, text)[0]) == [(0, e, True), (1, (), False)]
    timed = stock("ConditioningSetTimestepRange", own, 0.0, 1.0)[0]
    assert columns_of(timed) == [(0, e, True), (1, (), False)]
    scoped = columns_of(own)
    assert scoped == [(0, e, True), (1, (), False)]


def test_a_conditioning_that_lost_its_columns_is_reported(
    extension: Any, stock: Any, diffusion: Any, clip_bundle: Any
) -> None:
    text = stock("CLIPTextEncode", diffusion.clip, "a scratch")[0]
    mask, image = extension.box_mask(), torch.rand(1, 64, 64, 3)
    report = blend(extension, diffusion, clip_bundle, image, mask, positive=text)[4]
    assert "nothing is re-weighted" in report
    assert "nothing is" not in blend(extension, diffusion, clip_bundle, image, mask, positive=text, strength=0)[4]


@pytest.mark.slow
def test_full_size_at_256_and_512_px(extension: Any, stock: Any, diffusion: Any, clip_bundle: Any) -> None:
    folder = extension.base / "models" / "checkpoints"
    path = folder / "full.safetensors"
    try:
        count = random_checkpoint.write_full(path)
        assert count == 859_520_964
        model, clip, vae = stock("CheckpointLoaderSimple", path.name)
    finally:
        path.unlink(missing_ok=True)
    full = SimpleNamespace(model=model, clip=clip, vae=vae, empty=stock("CLIPTextEncode", clip, "")[0])
    fingerprint = extension.models.ComfyDenoiser(model, vae).fingerprint()
    bundle = replace(clip_bundle, metadata={**clip_bundle.metadata, "base_fingerprint": fingerprint})
    for side in (256, 512):
        image, mask = torch.rand(1, side, side, 3), torch.zeros(1, side, side)
        mask[:, side // 4 : side // 2, side // 3 : side // 2] = 1
        images, masks, latent, effects, _ = blend(extension, full, bundle, image, mask, cfg=1.0)
        outside = (mask == 0)[..., None].expand_as(images)
        assert torch.equal(images[outside], image[outside]) and torch.equal(masks, mask)
        assert latent["samples"].shape == (1, 4, side // 8, side // 8)
        assert bool(images.isfinite().all()) and effects[0]["effect_score"] > 1
