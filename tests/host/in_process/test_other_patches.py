"""Re-weighting beside LoRA, ControlNet, other attention patches and areas: each keeps its effect."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

BLOCKS = (("input", 2), ("middle", 0), ("output", 0), ("output", 1))


class Scene:
    """Two samples of 64 px on the tiny model, and a way to draw them with patches."""

    def __init__(self, extension: Any, loaded: Any) -> None:
        self.extension, self.loaded = extension, loaded
        generator = torch.Generator().manual_seed(3)
        self.latents = torch.randn(2, 4, 8, 8, generator=generator)
        self.cells = torch.zeros(2, 1, 8, 8)
        self.cells[0, :, 2:6, 2:6] = self.cells[1, :, 4:, 1:7] = 1
        self.context = torch.randn(2, 6, 128, generator=generator)
        self.settings = extension.module("anomalydiffusion_core.sampling.reweighting").ReweightingSettings
        self.patches = extension.module("nodes.host.reweighting")

    def positive(self, **more: Any) -> Any:
        return self.extension.conditioning.to_conditioning(
            self.context, **{self.extension.conditioning.COLUMNS: torch.arange(6) < 4}, **more
        )

    def draw(self, model: Any = None, strength: float | None = None, positive: Any = None, **values: Any) -> Any:
        """Latents; strength None is without re-weighting."""
        denoiser = self.extension.models.ComfyDenoiser(model or self.loaded.model, self.loaded.vae)
        chosen = values.pop("options", {})
        weights = None if strength is None else self.settings(strength=strength, **chosen)
        settings = self.extension.core_sampler.SamplingSettings(5, 3, values.pop("cfg", 2.0), **values)
        own = positive or self.positive()
        return self.extension.sample(denoiser, self.latents, self.cells, own, self.loaded.empty, settings, weights)

    def both_act(self, model: Any, positive: Any = None) -> None:
        """The other patch has its effect with the weights, and the weights have theirs with the patch."""
        alone = self.draw(model, None, positive)
        assert float((alone - self.draw()).abs().max()) > 1e-2, "the other patch does nothing"
        nearly = self.draw(model, 1e-6, positive)
        torch.testing.assert_close(nearly, alone, rtol=0, atol=1e-2)
        full = self.draw(model, 1.0, positive)
        assert float((full - alone).abs().max()) > 1e-2, "the weights do nothing"
        assert float((full - self.draw(None, 1.0)).abs().max()) > 1e-2, "the other patch is lost"
        assert torch.equal(self.draw(model, 0.0, positive), alone)


@pytest.fixture(scope="module")
def scene(extension: Any, loaded: Any) -> Scene:
    return Scene(extension, loaded)


class ImagePrompt:
    """Adds attention on image tokens of its own to the attention of a block, as image prompt adapters do."""

    def __init__(self) -> None:
        self.calls = 0
        self.moved = False

    def to(self, *_: Any) -> ImagePrompt:
        self.moved = True
        return self

    def added(self, out: Any, q: Any, k: Any, v: Any, extra: Any, scale: float = 1.0) -> Any:
        from comfy.ldm.modules.attention import optimized_attention

        self.calls += 1
        tokens = torch.linspace(-1, 1, 4 * k.shape[-1]).view(1, 4, -1).expand(len(k), -1, -1).to(k)
        return scale * optimized_attention(q, tokens, 3 * tokens, extra["n_heads"])

    def __call__(self, q: Any, k: Any, v: Any, extra: Any) -> Any:
        from comfy.ldm.modules.attention import optimized_attention

        out = optimized_attention(q, k, v, extra["n_heads"])
        return out + self.added(out, q, k, v, extra)


def test_an_image_prompt_adapter_that_was_there_before(scene: Scene) -> None:
    model, adapter = scene.loaded.model.clone(), ImagePrompt()
    for name, number in BLOCKS:
        model.set_model_attn2_replace(adapter, name, number)
    scene.both_act(model)
    # ComfyUI moves what a patch holds to the device; ours hands that on.
    assert adapter.moved and adapter.calls > 0


def test_an_image_prompt_adapter_that_comes_after(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """It adds itself to the patch it finds, as these adapters do among each other."""
    adapter = ImagePrompt()
    replace_all = scene.patches.replace_cross_attention
    blocks: set[tuple[str, int, int]] = set()

    def then_chain(options: Any, unet: Any, source: Any) -> None:
        replace_all(options, unet, source)
        for block, patch in options["transformer_options"]["patches_replace"]["attn2"].items():
            blocks.add(block)
            patch.add(adapter.added, scale=1.0)

    plain, weighted = scene.draw(None, 1e-6), scene.draw(None, 1.0)
    monkeypatch.setattr(scene.patches, "replace_cross_attention", then_chain)
    both, nearly = scene.draw(None, 1.0), scene.draw(None, 1e-6)
    assert adapter.calls > 0
    assert float((both - weighted).abs().max()) > 1e-2 and float((nearly - plain).abs().max()) > 1e-2
    assert float((both - nearly).abs().max()) > 1e-2
    before = scene.loaded.model.clone()
    for block in blocks:
        before.set_model_attn2_replace(ImagePrompt(), *block)
    monkeypatch.undo()
    # Either order gives the same image.
    torch.testing.assert_close(both, scene.draw(before, 1.0), rtol=0, atol=1e-3)


def test_output_and_input_patches_of_cross_attention(scene: Scene) -> None:
    model = scene.loaded.model.clone()
    model.set_model_attn2_output_patch(lambda n, extra: n * 1.5)
    scene.both_act(model)
    model = scene.loaded.model.clone()
    # Rows appended to the context, as hypernetwork-like patches do.
    extra_rows = torch.randn(1, 2, 128, generator=torch.Generator().manual_seed(1))

    def append(n: Any, context: Any, value: Any, extra: Any) -> Any:
        rows = 5 * extra_rows.expand(len(context), -1, -1)
        return n, torch.cat([context, rows], dim=1), torch.cat([value, rows], dim=1)

    model.set_model_attn2_patch(append)
    scene.both_act(model)


def test_lora(scene: Scene) -> None:
    model = scene.loaded.model.clone()
    generator = torch.Generator().manual_seed(4)
    patches = {}
    for name, value in model.model.state_dict().items():
        if name.endswith("attn2.to_k.weight") or name.endswith("attn2.to_v.weight"):
            patches[name] = ("diff", (torch.randn(value.shape, generator=generator) * 0.3,))
    assert len(model.add_patches(patches)) == len(patches) > 0
    fingerprint = scene.extension.models.ComfyDenoiser(scene.loaded.model, scene.loaded.vae).fingerprint()
    scene.both_act(model)
    # A bundle that was trained without the LoRA still belongs to this model.
    assert scene.extension.models.ComfyDenoiser(model, scene.loaded.vae).fingerprint() == fingerprint


def control_net(hint: torch.Tensor) -> Any:
    """A ControlNet that adds its hint, made small, to every skip connection it is asked for."""
    import comfy.controlnet

    class Hint(comfy.controlnet.ControlBase):
        def get_control(self, x: Any, t: Any, cond: Any, batched: int, transformer_options: Any) -> Any:
            value = torch.nn.functional.adaptive_avg_pool2d(self.cond_hint_original, 1).mean(dim=1, keepdim=True)
            rows = value.repeat(len(x) // len(value), 1, 1, 1).to(x)
            seen.append(value.flatten().tolist())
            return {"output": [3 * rows] * 2}

        def copy(self) -> Any:
            made = Hint()
            self.copy_to(made)
            return made

    seen: list[list[float]] = []
    made = Hint()
    made.set_cond_hint(hint)
    made.seen = seen
    return made


def test_control_net(scene: Scene) -> None:
    control = control_net(torch.full((1, 3, 64, 64), 0.7))
    scene.both_act(None, scene.positive(control=control))


def test_hints_of_a_control_net_go_to_their_samples(scene: Scene) -> None:
    hints = torch.stack([torch.full((3, 64, 64), value) for value in (0.25, 0.75)])
    control = control_net(hints)
    together = scene.draw(None, 1.0, scene.positive(control=control), batch_size=2)
    single = scene.draw(None, 1.0, scene.positive(control=control), batch_size=1)
    assert control.seen[0] == [0.25, 0.75] and [0.25] in control.seen and [0.75] in control.seen
    torch.testing.assert_close(single, together, rtol=0, atol=1e-2)
    assert torch.equal(control.cond_hint_original, hints)


def test_fused_attention_of_other_nodes_is_used(scene: Scene) -> None:
    model, calls = scene.loaded.model.clone(), []

    def override(function: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(arguments[0].shape[1] != arguments[1].shape[1])
        return function(*arguments, **options)

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    expected = scene.draw(None, 1.0)
    assert torch.equal(scene.draw(model, 1.0), expected)
    # Cross-attention is called more often than self-attention: once more where weights are.
    assert sum(calls) > len(calls) / 2


def test_an_area_is_weighted_at_its_own_place(scene: Scene, stock: Any) -> None:
    """The weights of an entry for a part of the image are those of that part."""
    plain = stock("ConditioningSetArea", scene.positive(), 40, 64, 24, 0, 1.0)[0]
    whole = [[torch.randn(1, 6, 128, generator=torch.Generator().manual_seed(9)), {}]]
    positive = plain + whole
    alone = scene.draw(None, None, positive)
    full = scene.draw(None, 1.0, positive)
    assert float((full - alone).abs().max()) > 1e-2
    source = scene.patches._SamplingGain(SimpleNamespace(settings=scene.settings()), None)
    weights = torch.arange(64.0).view(1, 8, 8) + 2
    entry, gain_class = (
        object(),
        scene.extension.module("anomalydiffusion_core.sampling.attention_gain").AttentionGain,
    )
    source._entries = {(0, entry): scene.patches._Entry(6, torch.arange(6) < 4, (8, 5, 0, 3))}
    source._current = gain_class(weights, torch.zeros(1, dtype=torch.bool))
    made = source.gain(6, {"cond_or_uncond": [0], "uuids": [entry]})
    assert torch.equal(made.weights, weights[:, :, 3:8])


@pytest.mark.parametrize("difference", ["previous step", "same step"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_attention_mass_of_the_anomaly_never_falls(
    scene: Scene, cfg: float, difference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every layer, head and step: the layer's own queries and keys, with values that read off the mass."""
    gain_class = scene.extension.module("anomalydiffusion_core.sampling.attention_gain").AttentionGain
    rise: list[tuple[float, float, float]] = []
    reweight = gain_class.reweight

    def capturing(self: Any, base: Any, q: Any, k: Any, v: Any, heads: int, h: int, w: int, attention: Any) -> Any:
        mass = self._columns_for(k).expand(-1, -1, q.shape[-1]).contiguous()
        before = attention(q, k, mass, heads)
        after = reweight(self, before, q, k, mass, heads, h, w, attention)
        change = after - before
        negative = self.columns.any(dim=1).logical_not()
        rise.append((float(change.min()), float(change.max()), float(change[negative].abs().sum())))
        return reweight(self, base, q, k, v, heads, h, w, attention)

    monkeypatch.setattr(gain_class, "reweight", capturing)
    scene.draw(None, 1.0, cfg=cfg, options={"difference": difference})
    assert len(rise) >= 8
    assert min(low for low, _, _ in rise) >= 0 and max(high for _, high, _ in rise) > 1e-3
    assert all(other == 0 for _, _, other in rise)


def test_sources_and_scopes_differ_and_the_range_is_kept(scene: Scene) -> None:
    context = scene.extension.conditioning.to_conditioning(
        torch.randn(2, 6, 128, generator=torch.Generator().manual_seed(5)),
        **{scene.extension.conditioning.COLUMNS: torch.arange(6) < 2},
    )
    plain = scene.draw(None, None, context)

    def options(**values: Any) -> Any:
        return scene.draw(None, 1.0, context, options=values)

    results = [options(), options(difference="same step"), options(token_scope="all tokens"), options(cap=1.2)]
    results += [options(end_percent=0.4), options(start_percent=0.4)]
    for place, result in enumerate(results):
        assert not torch.equal(result, plain)
        for other in results[:place]:
            assert not torch.equal(result, other)
    assert torch.equal(options(start_percent=1.0), plain)
    with pytest.raises(scene.extension.errors.InputError, match="difference: decoded requires"):
        options(difference="decoded")


def test_the_authors_mask_grows_during_sampling_and_only_the_mask_is_kept(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.samplers

    areas: list[float] = []
    inpaint = comfy.samplers.KSamplerX0Inpaint
    call = inpaint.__call__

    def recording(
        self: Any, x: Any, sigma: Any, denoise_mask: Any, model_options: Any = None, seed: Any = None
    ) -> Any:
        mask = model_options["denoise_mask_function"](sigma, denoise_mask, extra_options={})
        areas.append(float(mask[:, 0].sum()))
        return call(self, x, sigma, denoise_mask, model_options=model_options, seed=seed)

    monkeypatch.setattr(inpaint, "__call__", recording)
    result = scene.draw(None, 1.0, options={"reweighting": "authors"}, cfg=1.0)
    # At the start a radius of 8 cells covers both maps of 8 x 8; at the end the masks are 16 and 24 cells.
    assert areas[0] == 128 and areas == sorted(areas, reverse=True)
    outside = (scene.cells == 0).expand_as(scene.latents)
    assert torch.equal(result[outside], scene.latents[outside])
    assert scene.loaded.model.model_options == {"transformer_options": {}}
