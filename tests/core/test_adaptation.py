"""Low-rank adaptation: equal to changed weights, an ordinary file, trained without touching the network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anomalydiffusion_core.backends.ldm import LdmDenoiser
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.training import adaptation
from anomalydiffusion_core.training.adaptation import AdaptationSettings, NormalAdapter, half_and_half, random_masks
from anomalydiffusion_core.training.lora import Lora
from anomalydiffusion_core.training.memory import estimate_memory
from anomalydiffusion_core.training.settings import LoopOptions, NonFiniteLossError, Pause, StopTraining
from anomalydiffusion_core.training.state import StateFile


@pytest.fixture(scope="module")
def tiny() -> LdmDenoiser:
    return LdmDenoiser.random(0)


def images(count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    line = torch.linspace(0, 1, 64)
    slope = (line[:, None] * 0.7 + line[None] * 0.2).expand(count, 3, 64, 64)
    return (slope + torch.randn(count, 3, 64, 64, generator=generator) * 0.02).clamp(0, 1)


def adapt(model: LdmDenoiser, **values: Any) -> Any:
    on_step = values.pop("on_step", None)
    more = {name: values.pop(name) for name in ("on_prepare",) if name in values}
    chosen = {"steps": 12, "batch_size": 2, "rank": 2, "resolution": 64, "learning_rate": 5e-3, **values}
    settings = AdaptationSettings(**chosen)
    return NormalAdapter(model, model.unet, images(), model.normal_context[0], settings, **more).run(on_step)


class Small(nn.Module):
    """Every kind of layer: linear, convolutions with stride and without, a grouped one, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.parts = nn.ModuleList([nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.GroupNorm(2, 8)])
        self.last = nn.Linear(8, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for part in self.parts:
            x = part(x)
        out: Tensor = self.last(x.flatten(2).transpose(1, 2))
        return out


def test_attached_equals_the_weights_that_the_file_describes() -> None:
    torch.manual_seed(0)
    network, x = Small(), torch.randn(2, 3, 8, 8)
    lora = Lora(network, rank=3, seed=1)
    plain = network(x)
    with lora.attached(network):
        assert torch.equal(network(x), plain), "up starts at zero"
    for pair in lora.pairs:
        nn.init.normal_(pair.up, std=0.3)
    with lora.attached(network):
        adapted = network(x)
    assert torch.equal(network(x), plain), "nothing stays attached"
    tensors = lora.file_tensors()
    assert sorted({name.split(".")[0] for name in tensors}) == [
        "lora_unet_first",
        "lora_unet_last",
        "lora_unet_parts_0",
    ]
    assert tensors["lora_unet_first.lora_down.weight"].shape == (3, 3, 3, 3)
    assert tensors["lora_unet_first.lora_up.weight"].shape == (8, 3, 1, 1)
    assert tensors["lora_unet_last.lora_down.weight"].shape == (3, 8)
    layers = {"lora_unet_first": network.first, "lora_unet_parts_0": network.parts[0], "lora_unet_last": network.last}
    with torch.no_grad():
        for key, layer in layers.items():
            up, down = (tensors[f"{key}.lora_{side}.weight"] for side in ("up", "down"))
            scale = float(tensors[f"{key}.alpha"]) / len(down)
            assert isinstance(layer.weight, Tensor)
            layer.weight += scale * (up.flatten(1) @ down.flatten(1)).view_as(layer.weight)
    assert float((adapted - plain).detach().abs().max()) > 0.1
    torch.testing.assert_close(network(x), adapted, rtol=1e-4, atol=1e-5)


def test_hooks_are_gone_after_an_exception() -> None:
    network = Small()
    lora = Lora(network, rank=1)
    with pytest.raises(KeyError), lora.attached(network):
        raise KeyError
    assert not any(part._forward_hooks for part in network.modules())


def test_loss_weighs_inside_and_outside_alike() -> None:
    error, inside = torch.zeros(2, 4, 8, 8), torch.zeros(2, 1, 8, 8)
    inside[0, :, :2, :2], inside[1] = 1, 1
    error[0, :, :2, :2] = 3.0  # mean inside 3, mean outside 1
    error[0][:, 2:] = 60 / 48
    error[1] = 8.0  # all inside: nothing outside
    assert float(half_and_half(error, inside)) == pytest.approx(((3 + 1) / 2 + 8 / 2) / 2)


def test_training_learns_repeats_and_leaves_the_model_alone(tiny: LdmDenoiser) -> None:
    before = {name: value.clone() for name, value in tiny.unet.state_dict().items()}
    prepared: list[tuple[int, int]] = []
    result = adapt(tiny, steps=60, on_prepare=lambda done, total: prepared.append((done, total)))
    assert prepared == [(2, 6), (4, 6), (6, 6)]
    assert sum(result.losses[-15:]) < 0.8 * sum(result.losses[:15])
    assert all(torch.equal(before[name], value) for name, value in tiny.unet.state_dict().items())
    assert not any(part._forward_hooks for part in tiny.unet.modules())
    assert not any(p.requires_grad for p in tiny.unet.parameters())
    # All layers took part, those of the cross-attention to the caption too.
    ups = [value for name, value in result.bundle.tensors.items() if ".lora_up." in name]
    assert all(bool(value.any()) for value in ups)
    first, second, other = (adapt(tiny, steps=3, seed=seed).bundle.tensors for seed in (5, 5, 6))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_one_sample_in_five_is_learned_under_the_empty_caption(tiny: LdmDenoiser) -> None:
    settings = AdaptationSettings(steps=5, batch_size=2, rank=1, resolution=64)
    normal, empty = tiny.normal_context, tiny.empty_context
    adapter = NormalAdapter(tiny, tiny.unet, images(), normal[0], settings, empty_context=empty[0])
    found = []
    for step in range(5):
        adapter.loop.losses = [1.0] * step
        found += [bool(torch.equal(row, empty[0])) for row in adapter.loop.module((0, 0), torch.zeros(2, 1, 64, 64))]
    assert found == [False] * 4 + [True] + [False] * 4 + [True]
    adapter.loop.losses = []
    assert len(adapter.run().losses) == 5
    with pytest.raises(InputError, match="negative: has 3 rows, normal has 6"):
        NormalAdapter(tiny, tiny.unet, images(), normal[0], settings, empty_context=empty[0, :3])


def test_stopping_and_losses_that_are_not_finite_keep_what_was_learned(tiny: LdmDenoiser) -> None:
    def stop(report: Any) -> None:
        if report.step == 3:
            raise StopTraining

    assert len(adapt(tiny, on_step=stop).losses) == 3
    with pytest.raises(NonFiniteLossError, match="not finite at step") as caught:
        adapt(tiny, learning_rate=1e30, steps=30)
    assert all(value.isfinite().all() for value in caught.value.result.bundle.tensors.values())
    settings = AdaptationSettings(steps=5, batch_size=2, rank=1, resolution=64)
    adapter = NormalAdapter(tiny, tiny.unet, images(), tiny.normal_context[0], settings)

    def interrupt(report: Any) -> None:
        if report.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapter.run(interrupt)
    assert len(adapter.result().losses) == 2 and not any(part._forward_hooks for part in tiny.unet.modules())
    adapter.run()
    whole = adapt(tiny, steps=5, rank=1, learning_rate=settings.learning_rate)
    resumed = adapter.result().bundle.tensors
    assert all(torch.equal(whole.bundle.tensors[name], resumed[name]) for name in resumed)


def test_inference_mode_of_the_host_is_no_obstacle(tiny: LdmDenoiser) -> None:
    with torch.inference_mode():
        assert all(math.isfinite(loss) for loss in adapt(tiny, steps=2).losses)


def test_inputs_that_cannot_be_used(tiny: LdmDenoiser) -> None:
    settings = AdaptationSettings(resolution=64)
    with pytest.raises(InputError, match=r"normal images: have the shape \(0, 3, 64, 64\)"):
        NormalAdapter(tiny, tiny.unet, torch.zeros(0, 3, 64, 64), tiny.normal_context[0], settings)
    with pytest.raises(InputError, match="normal: its width is 768, the model's context has 128"):
        NormalAdapter(tiny, tiny.unet, images(), torch.zeros(77, 768), settings)
    for name, value in (("rank", 0), ("steps", 0), ("batch_size", 0), ("learning_rate", 0.0)):
        with pytest.raises(InputError, match=name):
            AdaptationSettings(**{name: value})
    with pytest.raises(InputError, match="no linear and no convolutional layer"):
        Lora(nn.ReLU(), 4)


def test_random_masks_are_binary_never_empty_and_seeded() -> None:
    masks = random_masks(200, (48, 96), 3)
    assert masks.shape == (200, 1, 48, 96) and set(masks.unique().tolist()) == {0.0, 1.0}
    share = masks.flatten(1).mean(dim=1)
    assert float(share.min()) > 0 and 0.02 < float(share.mean()) < 0.3 and float(share.max()) < 0.7
    assert torch.equal(masks, random_masks(200, (48, 96), 3))
    assert not torch.equal(masks[0], masks[1])
    assert float(random_masks(50, (8, 8), 0).flatten(1).sum(dim=1).min()) >= 1


def test_it_is_on_the_one_loop(tiny: LdmDenoiser, tmp_path: Path) -> None:
    """States, exact resume, memory estimate and accumulation, as of any other training."""
    loop = LoopOptions(accumulate=3)
    settings = AdaptationSettings(steps=6, batch_size=2, rank=2, resolution=64, options=loop)

    def trainer() -> NormalAdapter:
        return NormalAdapter(tiny, tiny.unet, images(), tiny.normal_context[0], settings)

    whole = trainer()
    whole.run()
    estimate = estimate_memory(whole.loop)
    assert estimate.needed > 0 and "activations" in estimate.text()

    def stop(report: Any) -> None:
        if report.step == 4:
            raise KeyboardInterrupt

    state = StateFile(tmp_path / "state", "same")
    with pytest.raises(KeyboardInterrupt):
        trainer().run(stop, state=state, save_every=2)
    resumed = trainer()  # as in another process
    resumed.run(state=state)
    assert "after step 4" in resumed.resumed
    assert resumed.loop.losses == whole.loop.losses
    first, second = whole.result().bundle.tensors, resumed.result().bundle.tensors
    assert all(torch.equal(first[name], second[name]) for name in first)
    drawn = AdaptationSettings(resolution=64, options=LoopOptions(sample_latents=True))
    with pytest.raises(InputError, match="sample latents: this VAE gives no deviation"):
        NormalAdapter(tiny, tiny.unet, images(), tiny.normal_context[0], drawn)


def test_each_draw_has_a_new_random_mask(tiny: LdmDenoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    def watched(error: Tensor, inside: Tensor) -> Tensor:
        seen.extend(one.numpy().tobytes() for one in inside)
        return half_and_half(error, inside)

    monkeypatch.setattr(adaptation, "half_and_half", watched)
    settings = AdaptationSettings(steps=4, batch_size=2, rank=1, resolution=64, options=LoopOptions(accumulate=2))
    NormalAdapter(tiny, tiny.unet, images(), tiny.normal_context[0], settings).run()
    assert len(seen) == 4 * 2 * 2 and len(set(seen)) > 12, "of sixteen masks few of 8 x 8 cells are alike"


def test_previews_show_a_normal_image_redrawn_with_the_lora(tiny: LdmDenoiser) -> None:
    settings = AdaptationSettings(steps=4, batch_size=2, rank=2, resolution=64, learning_rate=0.05)
    adapter = NormalAdapter(tiny, tiny.unet, images(), tiny.normal_context[0], settings)
    shown: list[list[Tensor]] = []
    adapter.run(pauses=[Pause(2, lambda report: shown.append(adapter.preview(0, 2)))])
    (image, mask, early), (again, same, late) = shown
    assert torch.equal(image, images()[0]) and torch.equal(image, again) and torch.equal(mask, same)
    inside = mask > 0
    assert torch.equal(early[~inside], image[~inside]), "only the mask is redrawn"
    assert not torch.equal(early[inside], late[inside]), "by the LoRA as it is by then"
