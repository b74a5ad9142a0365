"""Sampling of latents with ComfyUI's samplers, and re-weighting as patches of its model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from anomalydiffusion_core.sampling.reweighting import MODES


def sample(extension: Any, loaded: Any, positive: Any, seed: int = 5, **values: Any) -> torch.Tensor:
    """Two samples of 64 px inside two boxes, or the chosen ones of them."""
    chosen = values.pop("chosen", slice(None))
    reweighting = values.pop("reweighting", None)
    model = values.pop("model", loaded.model)
    settings = extension.core_sampler.SamplingSettings(seed, 3, values.pop("cfg", 2.0), **values)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator)[chosen]
    cells = torch.zeros(2, 1, 8, 8)
    cells[0, :, 2:6, 2:6] = cells[1, :, 4:, 1:7] = 1
    denoiser = extension.models.ComfyDenoiser(model, loaded.vae)
    made: torch.Tensor = extension.sample(
        denoiser, latents, cells[chosen], positive, loaded.empty, settings, reweighting
    )
    return made


def two_rows(extension: Any, rows: slice = slice(None)) -> Any:
    context = torch.randn(2, 6, 128, generator=torch.Generator().manual_seed(3))
    return extension.conditioning.to_conditioning(
        context[rows], **{extension.conditioning.COLUMNS: torch.arange(6) < 4}
    )


def settings_of(extension: Any, **values: Any) -> Any:
    return extension.module("anomalydiffusion_core.sampling.reweighting").ReweightingSettings(**values)


def test_every_sampler_draws_a_sample_as_if_it_were_alone(extension: Any, loaded: Any) -> None:
    for name in extension.sampling.SAMPLERS:
        both = sample(extension, loaded, two_rows(extension), sampler_name=name)
        second = slice(1, None)
        alone = sample(extension, loaded, two_rows(extension, second), seed=6, sampler_name=name, chosen=second)
        scale = float(alone.abs().max())
        assert scale > 1, name
        assert float((both[1] - alone[0]).abs().max()) < 1e-4 * scale, name


def test_unmasked_sampling_equals_the_stock_sampler(extension: Any, loaded: Any) -> None:
    import comfy.sample

    latents = torch.randn(1, 4, 8, 8)
    positive = two_rows(extension, slice(1))
    settings = extension.core_sampler.SamplingSettings(9, 4, 3.0, "dpmpp_2m", "karras")
    denoiser = extension.models.ComfyDenoiser(loaded.model, loaded.vae)
    ours = extension.sample(denoiser, latents, torch.ones(1, 1, 8, 8), positive, loaded.empty, settings)
    with torch.inference_mode():
        stock = comfy.sample.sample(
            loaded.model,
            comfy.sample.prepare_noise(latents, 9),
            4,
            3.0,
            "dpmpp_2m",
            "karras",
            positive,
            loaded.empty,
            latents,
            seed=9,
            disable_pbar=True,
        )
    assert torch.equal(ours, stock)


@pytest.mark.parametrize("mode", MODES)
def test_reweighting_acts_repeats_and_can_be_switched_off(extension: Any, loaded: Any, mode: str) -> None:
    plain = sample(extension, loaded, two_rows(extension))
    none, full = (settings_of(extension, reweighting=mode, strength=strength) for strength in (0.0, 1.0))
    off = sample(extension, loaded, two_rows(extension), reweighting=none)
    assert torch.equal(off, plain)
    first, again = (sample(extension, loaded, two_rows(extension), reweighting=full) for _ in range(2))
    assert (first - plain).abs().max() > 1e-3
    assert torch.equal(first, again)
    # no trace is left in the model that went in
    assert torch.equal(sample(extension, loaded, two_rows(extension)), plain)
    assert loaded.model.model_options == {"transformer_options": {}}
    second = slice(1, None)
    alone = sample(
        extension,
        loaded,
        two_rows(extension, second),
        seed=6,
        chosen=second,
        reweighting=settings_of(extension, reweighting=mode),
    )
    torch.testing.assert_close(first[1], alone[0], rtol=0, atol=1e-2)


def test_only_the_positive_half_is_reweighted(extension: Any, loaded: Any) -> None:
    patches = extension.module("nodes.host.reweighting")
    source = patches._SamplingGain(SimpleNamespace(settings=settings_of(extension)), None)
    positive, other = object(), object()
    own = patches._Entry(3, torch.tensor([True, False, False]), None)
    source._entries = {(0, positive): own, (1, positive): own, (1, other): patches._Entry(2, None, None)}
    source._current = extension.module("anomalydiffusion_core.sampling.attention_gain").AttentionGain(
        torch.full((2, 4, 4), 1.5), torch.zeros(1, dtype=torch.bool)
    )
    # two negatives come first; one of them is the host's copy of the positive entry, under the same id
    options = {"cond_or_uncond": [1, 1, 0], "uuids": [other, positive, positive]}
    gain = source.gain(6, options)
    assert gain.weights[:4].eq(1).all() and gain.weights[4:].eq(1.5).all()
    assert not gain.columns[:4].any()
    assert gain.columns[4:].tolist() == [[True, False, False, True, False, False]] * 2


def test_a_patch_that_was_there_before_stays_in_force(extension: Any, loaded: Any) -> None:
    from comfy.ldm.modules.attention import optimized_attention

    def doubling(q: Any, k: Any, v: Any, extra: Any) -> Any:
        return 2 * optimized_attention(q, k, v, extra["n_heads"])

    model = loaded.model.clone()
    for name, number in (("input", 2), ("middle", 0), ("output", 0), ("output", 1)):
        model.set_model_attn2_replace(doubling, name, number)
    positive = two_rows(extension)
    patched = sample(extension, loaded, positive, model=model)
    assert not torch.equal(patched, sample(extension, loaded, positive))
    tiny = settings_of(extension, strength=1e-6)
    nearly = sample(extension, loaded, positive, model=model, reweighting=tiny)
    torch.testing.assert_close(nearly, patched, rtol=0, atol=1e-2)
    full = sample(extension, loaded, positive, model=model, reweighting=settings_of(extension))
    assert (full - patched).abs().max() > 1e-2
