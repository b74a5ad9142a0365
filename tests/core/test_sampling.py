"""Headless sampling against an exactly solvable model and on a tiny real one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anomalydiffusion_core.backends.ldm import LdmDenoiser
from anomalydiffusion_core.denoiser import Denoiser
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.sampling.attention_gain import AttentionGain
from anomalydiffusion_core.sampling.ddim import ddim_scheduler, sample_blended, sample_noise, sample_plain
from anomalydiffusion_core.sampling.reweighting import DIFFERENCES, ReweightingSettings


class Gaussian:
    """The exact denoiser of latents drawn from N(mean, deviation^2), the mean being the context's average.

    Its codec averages and repeats 8 x 8 pixels of grey, latents in [0, 1].
    """

    latent_channels, downscale, context_width = 1, 8, 2
    device = torch.device("cpu")
    deviation = 0.12

    def __init__(self) -> None:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.alphas_cumprod = (1 - betas).cumprod(0).float()

    def encode(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images.mean(dim=1, keepdim=True), 8)

    def decode(self, latents: Tensor) -> Tensor:
        return F.interpolate(latents, scale_factor=8).expand(-1, 3, -1, -1).clamp(0, 1)

    def predict_noise(self, x_t: Tensor, t: Tensor, context: Tensor, attention: AttentionGain | None = None) -> Tensor:
        alpha = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        mean = context.mean(dim=(1, 2)).view(-1, 1, 1, 1)
        variance = alpha * self.deviation**2 + 1 - alpha
        return (1 - alpha).sqrt() * (x_t - alpha.sqrt() * mean) / variance

    @contextmanager
    def training_mode(self) -> Iterator[None]:
        yield

    def fingerprint(self) -> str:
        return "gaussian"


@pytest.fixture(scope="module")
def denoiser() -> LdmDenoiser:
    return LdmDenoiser.random(0, context_dim=32)


def scene(count: int = 2, height: int = 64, width: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    normals = torch.rand(count, 3, height, width, generator=generator)
    masks = torch.zeros(count, 1, height, width)
    masks[..., 8:30, 12:40] = 1
    context = torch.randn(count, 5, 32, generator=generator)
    return normals, masks, context


def test_both_models_fit_the_protocol(denoiser: LdmDenoiser) -> None:
    assert isinstance(denoiser, Denoiser) and isinstance(Gaussian(), Denoiser)


def test_plain_sampling_reaches_the_exact_solution() -> None:
    model = Gaussian()
    context = torch.full((1, 3, 2), 0.5)
    images = sample_plain(model, context, 8, (64, 64), steps=1000, seed=3)
    noise = sample_noise(8, (1, 8, 8), 3, model.device)
    # The deterministic path maps noise z at the end of the schedule to mean + deviation * (z - sqrt(a) mean) / sd.
    alpha = float(model.alphas_cumprod[-1])
    spread = (alpha * model.deviation**2 + 1 - alpha) ** 0.5
    exact = 0.5 + model.deviation * (noise - alpha**0.5 * 0.5) / spread
    # A first-order sampler comes to within some percent of it.
    assert torch.allclose(model.encode(images) - 0.5, exact.clamp(0, 1) - 0.5, rtol=0.07, atol=0.002)
    assert float(model.encode(images).mean()) == pytest.approx(0.5, abs=0.02)


def test_guidance_moves_away_from_the_negative() -> None:
    model = Gaussian()
    positive, negative = torch.full((1, 3, 2), 0.5), torch.full((1, 6, 2), 0.4)
    images = sample_plain(model, positive, 16, (32, 32), negative=negative, cfg=3.0, steps=50)
    # For Gaussians of one deviation guidance is a Gaussian of the extrapolated mean, 0.4 + 3 * 0.1.
    assert float(images.mean()) == pytest.approx(0.7, abs=0.02)


def test_blending_fills_the_mask_and_keeps_the_background_known_to_the_model() -> None:
    model = Gaussian()
    normals, masks = torch.full((2, 3, 64, 64), 0.2), torch.zeros(2, 1, 64, 64)
    masks[..., 16:40, 16:48] = 1
    result = sample_blended(model, normals, masks, torch.full((1, 4, 2), 0.8), steps=50, feather=0)
    inside = masks.expand_as(result) > 0
    assert float(result[inside].mean()) == pytest.approx(0.8, abs=0.02)
    assert torch.equal(result[~inside], normals[~inside])
    raw = sample_blended(model, normals, masks, torch.full((1, 4, 2), 0.8), steps=50, feather=None)
    assert torch.allclose(raw[~inside], normals[~inside], atol=1e-5)


def test_the_model_sees_the_background_at_the_noise_of_every_step() -> None:
    class Watched(Gaussian):
        def predict_noise(
            self, x_t: Tensor, t: Tensor, context: Tensor, attention: AttentionGain | None = None
        ) -> Tensor:
            seen.append((int(t[0]), x_t[0, 0, 6:].clone()))
            return super().predict_noise(x_t, t, context, attention)

    seen: list[tuple[int, Tensor]] = []
    model = Watched()
    normals, masks, _ = scene(1)
    sample_blended(model, normals, masks, torch.zeros(1, 2, 2), steps=5, seed=8)
    background, noise = model.encode(normals)[0, 0, 6:], sample_noise(1, (1, 8, 8), 8, model.device)[0, 0, 6:]
    assert [t for t, _ in seen] == [999, 799, 599, 399, 199]
    for t, rows in seen:
        alpha = model.alphas_cumprod[t]
        assert torch.allclose(rows, alpha.sqrt() * background + (1 - alpha).sqrt() * noise, atol=1e-5)


def test_schedule_starts_at_the_end_and_keeps_the_models_alphas() -> None:
    model = Gaussian()
    scheduler = ddim_scheduler(model.alphas_cumprod, 25)
    assert scheduler.timesteps.tolist() == list(range(999, 0, -40))
    assert torch.allclose(scheduler.alphas_cumprod, model.alphas_cumprod, rtol=1e-4)
    with pytest.raises(InputError, match="steps: 0"):
        ddim_scheduler(model.alphas_cumprod, 0)


def test_a_sample_equals_the_same_sample_drawn_alone(denoiser: LdmDenoiser) -> None:
    normals, masks, context = scene(3)
    together = sample_blended(denoiser, normals, masks, context, steps=4, seed=10, reweighting=ReweightingSettings())
    alone = sample_blended(
        denoiser, normals[2:], masks[2:], context[2:], steps=4, seed=12, reweighting=ReweightingSettings()
    )
    assert torch.allclose(together[2:], alone, atol=1e-4)
    assert not torch.allclose(
        together[:1], sample_blended(denoiser, normals[:1], masks[:1], context[:1], steps=4, seed=11)
    )


def test_same_seed_same_bytes(denoiser: LdmDenoiser) -> None:
    normals, masks, context = scene()
    runs = [
        sample_blended(denoiser, normals, masks, context, denoiser.empty_context, 2.0, 3, 5, ReweightingSettings())
        for _ in range(2)
    ]
    assert torch.equal(*runs)


def test_strength_zero_is_plain_and_every_mode_acts(denoiser: LdmDenoiser) -> None:
    normals, masks, context = scene()
    plain = sample_blended(denoiser, normals, masks, context, steps=4)
    off = ReweightingSettings(strength=0)
    assert torch.equal(sample_blended(denoiser, normals, masks, context, steps=4, reweighting=off), plain)
    results = [
        sample_blended(denoiser, normals, masks, context, steps=4, reweighting=replace(off, mode=mode, strength=1.0))
        for mode in ("monotone", "paper", "authors")
    ]
    for result in results:
        assert not torch.equal(result, plain)
    late = replace(off, strength=1.0, start_percent=1.0)
    assert torch.equal(sample_blended(denoiser, normals, masks, context, steps=4, reweighting=late), plain)


def test_every_source_of_the_difference_acts(denoiser: LdmDenoiser) -> None:
    normals, masks, context = scene()
    sources = [ReweightingSettings(difference=name, decode_every=2) for name in DIFFERENCES]
    results = [sample_blended(denoiser, normals, masks, context, steps=4, reweighting=source) for source in sources]
    assert not any(torch.equal(one, other) for one, other in zip(results, results[1:] + results[:1], strict=True))
    outside = (masks == 0).expand_as(normals)
    assert all(torch.equal(result[outside], normals[outside]) for result in results)


@pytest.mark.parametrize(("height", "width"), [(50, 75), (33, 100), (64, 72)])
def test_any_size_comes_out_as_it_went_in(denoiser: LdmDenoiser, height: int, width: int) -> None:
    normals, masks, context = scene(1, height, width)
    result = sample_blended(denoiser, normals, masks, context, steps=2)
    outside = masks.expand_as(normals) == 0
    assert result.shape == normals.shape
    assert torch.equal(result[outside], normals[outside])
    assert not torch.equal(result, normals)


def test_steps_are_reported_and_an_interrupt_passes(denoiser: LdmDenoiser) -> None:
    class InterruptError(Exception):
        pass

    seen = []

    def interrupt(step: int, total: int, clean: Tensor) -> None:
        seen.append((step, total, tuple(clean.shape)))
        if step == 2:
            raise InterruptError

    with pytest.raises(InterruptError):
        sample_blended(denoiser, *scene(), steps=5, on_step=interrupt)
    assert seen == [(1, 5, (2, 4, 8, 8)), (2, 5, (2, 4, 8, 8))]


def test_bad_input_is_named(denoiser: LdmDenoiser) -> None:
    normals, masks, context = scene()
    with pytest.raises(InputError, match="cfg: 2"):
        sample_blended(denoiser, normals, masks, context, cfg=2.0)
    with pytest.raises(InputError, match="conditioning: its width is 16.*32"):
        sample_blended(denoiser, normals, masks, context[..., :16])
    with pytest.raises(InputError, match="3 entries for 2 samples"):
        sample_blended(denoiser, normals, masks, context[:1].repeat(3, 1, 1))
    with pytest.raises(InputError, match="entry 1 of 2 is empty"):
        sample_blended(denoiser, normals, torch.stack([masks[0], masks[1] * 0]), context)
    with pytest.raises(InputError, match="same size per picture"):
        sample_blended(denoiser, normals, masks[..., :32], context)
    with pytest.raises(InputError, match="count: 0"):
        sample_plain(denoiser, context[:1], 0, (64, 64))
    with pytest.raises(InputError, match="60 x 64"):
        sample_plain(denoiser, context[:1], 1, (64, 60))
