"""Headless sampling against an exactly solvable model and on a tiny real one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anomalydiffusion_core.backends.ldm import LdmDenoiser
from anomalydiffusion_core.conditioning.context import ContextConditioning
from anomalydiffusion_core.denoiser import Denoiser, NoiseSchedule, ScheduledDenoiser
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.progress import Quiet
from anomalydiffusion_core.sampling.attention_gain import AttentionGain
from anomalydiffusion_core.sampling.reweighting import DIFFERENCES, OFF, ReweightingSettings
from anomalydiffusion_core.sampling.sampler import SamplingSettings, sample_from_noise, starting_noise
from anomalydiffusion_core.sampling.scene import FinishSettings, Recipe, Samples, sample_blended
from anomalydiffusion_core.sampling.schedulers import SchedulerSampler, noise_levels


class Gaussian(ScheduledDenoiser):
    """The exact denoiser of latents drawn from N(mean, deviation^2), the mean being the context's average.

    Its codec averages and repeats 8 x 8 pixels of grey, latents in [0, 1].
    """

    latent_channels, downscale, context_width = 1, 8, 2
    device = torch.device("cpu")
    deviation = 0.12

    def __init__(self) -> None:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.schedule = NoiseSchedule.of_betas(betas)

    def encode(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images.mean(dim=1, keepdim=True), 8)

    def decode(self, latents: Tensor) -> Tensor:
        return F.interpolate(latents, scale_factor=8).expand(-1, 3, -1, -1).clamp(0, 1)

    def denoised(self, x: Tensor, sigma: Tensor, context: Tensor, attention: AttentionGain | None = None) -> Tensor:
        mean = context.mean(dim=(1, 2)).view(-1, 1, 1, 1)
        variance = sigma.view(-1, 1, 1, 1) ** 2
        # The mean of two Gaussians' product: N(mean, deviation^2) as the prior, N(x, sigma^2) as the likelihood.
        return (x * self.deviation**2 + mean * variance) / (self.deviation**2 + variance)

    @contextmanager
    def training_mode(self) -> Iterator[None]:
        yield

    def fingerprint(self, like: str = "") -> str:
        return "gaussian"

    def adaptation(self) -> str:
        return ""


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


PLAIN = ReweightingSettings(reweighting=OFF)


def blended(
    model: Denoiser,
    normals: Tensor,
    masks: Tensor,
    context: Tensor,
    weights: ReweightingSettings = PLAIN,
    negative: Tensor | None = None,
    feather: int = 2,
    progress: Quiet | None = None,
    **values: object,
) -> Samples:
    settings = SamplingSettings(**{"steps": 4, "cfg": 1.0, "scheduler": "simple", **values})  # type: ignore[arg-type]
    columns = torch.ones(context.shape[1], dtype=torch.bool)
    positive, against = (
        ContextConditioning(context, columns),
        None if negative is None else ContextConditioning(negative),
    )
    recipe = Recipe(settings, weights, FinishSettings(feather))
    return sample_blended(SchedulerSampler(model), normals, masks, positive, against, recipe, progress or Quiet())


def from_noise(model: Denoiser, count: int, side: int, context: Tensor, **values: object) -> Tensor:
    negative = values.pop("negative", None)
    settings = SamplingSettings(**{"cfg": 1.0, "scheduler": "simple", **values})  # type: ignore[arg-type]
    against = ContextConditioning(negative) if isinstance(negative, Tensor) else None
    positive = ContextConditioning(context)
    return sample_from_noise(SchedulerSampler(model), count, (side, side), positive, against, settings, Quiet())


def test_plain_sampling_reaches_the_exact_solution() -> None:
    model = Gaussian()
    context = torch.full((1, 3, 2), 0.5)
    images = from_noise(model, 8, 64, context, steps=1000, seed=3)
    noise = starting_noise(range(3, 11), (1, 8, 8))
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
    images = from_noise(model, 16, 32, positive, negative=negative, cfg=3.0, steps=50)
    # For Gaussians of one deviation guidance is a Gaussian of the extrapolated mean, 0.4 + 3 * 0.1.
    assert float(images.mean()) == pytest.approx(0.7, abs=0.02)


def test_blending_fills_the_mask_and_keeps_the_background_known_to_the_model() -> None:
    model = Gaussian()
    normals, masks = torch.full((2, 3, 64, 64), 0.2), torch.zeros(2, 1, 64, 64)
    masks[..., 16:40, 16:48] = 1
    made = blended(model, normals, masks, torch.full((1, 4, 2), 0.8), steps=50, feather=0)
    inside = masks.expand_as(normals) > 0
    assert float(made.images[inside].mean()) == pytest.approx(0.8, abs=0.02)
    assert torch.equal(made.images[~inside], normals[~inside])
    raw = model.decode(torch.stack(made.latents))
    assert torch.allclose(raw[~inside], normals[~inside], atol=1e-5)


def test_the_model_sees_the_background_at_the_noise_of_every_step() -> None:
    class Watched(Gaussian):
        def denoised(self, x: Tensor, sigma: Tensor, *arguments: object, **named: object) -> Tensor:
            seen.append((sigma[0], x[0, 0, 6:].clone()))
            return super().denoised(x, sigma, *arguments, **named)  # type: ignore[arg-type]

    seen: list[tuple[Tensor, Tensor]] = []
    model = Watched()
    normals, masks, _ = scene(1)
    blended(model, normals, masks, torch.zeros(1, 2, 2), steps=5, seed=8)
    background, noise = model.encode(normals)[0, 0, 6:], starting_noise([8], (1, 8, 8))[0, 0, 6:]
    assert [int(model.schedule.timestep(sigma[None])) for sigma, _ in seen] == [999, 799, 599, 399, 199]
    for sigma, rows in seen:
        assert torch.allclose(rows, background + sigma * noise, atol=1e-5)


def test_noise_levels_by_hand() -> None:
    sigmas = torch.tensor([0.1, 0.2, 0.4, 0.8, 1.6])
    levels = NoiseSchedule(sigmas, sigmas.log())

    def made(scheduler: str, steps: int, sampler: str = "euler", denoise: float = 1.0) -> list[float]:
        settings = SamplingSettings(steps=steps, sampler_name=sampler, scheduler=scheduler, denoise=denoise)
        return [round(float(level), 4) for level in noise_levels(levels, settings)]

    assert made("normal", 3) == [1.6, 0.4, 0.1, 0]
    # between two entries the logarithm is interpolated: 4, 8/3, 4/3, 0
    assert made("normal", 4) == [1.6, round(0.4 * 2 ** (2 / 3), 4), round(0.2 * 2 ** (1 / 3), 4), 0.1, 0]
    assert made("simple", 2) == [1.6, 0.4, 0]
    assert made("exponential", 3) == [1.6, 0.4, 0.1, 0]
    assert made("ddim_uniform", 2) == [0.8, 0.2, 0]
    assert made("normal", 2, denoise=0.5) == [round(0.2 * 2 ** (1 / 3), 4), 0.1, 0]
    # UniPC leaves out the last level above 0
    assert made("normal", 2, "uni_pc") == [1.6, 0.4, 0]


def test_a_sample_equals_the_same_sample_sampled_alone(denoiser: LdmDenoiser) -> None:
    normals, masks, context = scene(3)
    together = blended(denoiser, normals, masks, context, ReweightingSettings(), seed=10).images
    alone = blended(denoiser, normals[2:], masks[2:], context[2:], ReweightingSettings(), seed=12).images
    assert torch.allclose(together[2:], alone, atol=1e-4)
    halves = blended(denoiser, normals, masks, context, ReweightingSettings(), seed=10, batch_size=2).images
    assert torch.allclose(together, halves, atol=1e-4)
    assert not torch.allclose(together[:1], blended(denoiser, normals[:1], masks[:1], context[:1], seed=11).images)


def test_same_seed_same_bytes(denoiser: LdmDenoiser) -> None:
    normals, masks, context = scene()
    chosen = {"negative": denoiser.empty_context, "cfg": 2.0, "steps": 3, "seed": 5}
    runs = [blended(denoiser, normals, masks, context, ReweightingSettings(), **chosen).images for _ in range(2)]  # type: ignore[arg-type]
    assert torch.equal(*runs)


def test_strength_zero_is_plain_and_every_mode_acts(denoiser: LdmDenoiser) -> None:
    normals, masks, context = scene()
    plain = blended(denoiser, normals, masks, context).images
    none = ReweightingSettings(strength=0)
    assert torch.equal(blended(denoiser, normals, masks, context, none).images, plain)
    for mode in ("monotone", "paper", "authors", "prompt-to-prompt"):
        weights = ReweightingSettings(reweighting=mode)
        assert not torch.equal(blended(denoiser, normals, masks, context, weights).images, plain)
    late = ReweightingSettings(start_percent=1.0)
    assert torch.equal(blended(denoiser, normals, masks, context, late).images, plain)


def test_every_source_of_the_difference_acts(denoiser: LdmDenoiser) -> None:
    normals, masks, context = scene()
    sources = [ReweightingSettings(difference=name, decode_every=2) for name in DIFFERENCES]
    results = [blended(denoiser, normals, masks, context, source).images for source in sources]
    assert not any(torch.equal(one, other) for one, other in zip(results, results[1:] + results[:1], strict=True))
    outside = (masks == 0).expand_as(normals)
    assert all(torch.equal(result[outside], normals[outside]) for result in results)


@pytest.mark.parametrize("name", SchedulerSampler.samplers)
def test_every_sampler_ends_at_the_same_image(name: str) -> None:
    model = Gaussian()
    normals, masks = torch.full((1, 3, 64, 64), 0.2), torch.zeros(1, 1, 64, 64)
    masks[..., 16:40, 16:48] = 1
    context = torch.full((1, 4, 2), 0.8)

    def made(sampler_name: str) -> Tensor:
        chosen: dict[str, Any] = {"steps": 40, "scheduler": "karras", "sampler_name": sampler_name}
        return blended(model, normals, masks, context, feather=0, **chosen).images

    assert torch.allclose(made(name), made("euler"), atol=0.05)


@pytest.mark.parametrize(("height", "width"), [(50, 75), (33, 100), (64, 72)])
def test_any_size_comes_out_as_it_went_in(denoiser: LdmDenoiser, height: int, width: int) -> None:
    normals, masks, context = scene(1, height, width)
    result = blended(denoiser, normals, masks, context[:1], steps=2).images
    outside = masks.expand_as(normals) == 0
    assert result.shape == normals.shape
    assert torch.equal(result[outside], normals[outside])
    assert not torch.equal(result, normals)


def test_steps_are_reported_and_an_interrupt_passes(denoiser: LdmDenoiser) -> None:
    class InterruptError(Exception):
        pass

    class Interrupting(Quiet):
        def at(self, done: int, preview: object = None) -> None:
            super().at(done, preview)
            seen.append(done)
            if done == 2 * (2 * 4 + 2):
                raise InterruptError

    seen: list[int] = []
    with pytest.raises(InterruptError):
        blended(denoiser, *scene(), steps=5, progress=Interrupting())
    # two images encoded and decoded at 4 steps each, then two samples a step
    assert seen == [8, 16, 18, 20]


def test_bad_input_is_named(denoiser: LdmDenoiser) -> None:
    normals, masks, context = scene()
    with pytest.raises(InputError, match="cfg: 2"):
        blended(denoiser, normals, masks, context, cfg=2.0)
    with pytest.raises(InputError, match="sampler_name: unknown value 'heun'"):
        blended(denoiser, normals, masks, context, sampler_name="heun")
    with pytest.raises(InputError, match="scheduler: unknown value 'beta'"):
        blended(denoiser, normals, masks, context, scheduler="beta")
    with pytest.raises(InputError, match="positive: its width is 16.*32"):
        blended(denoiser, normals, masks, context[..., :16])
    with pytest.raises(InputError, match="3 rows for 2 samples"):
        blended(denoiser, normals, masks, context[:1].repeat(3, 1, 1))
    with pytest.raises(InputError, match="60 x 60"):
        from_noise(denoiser, 1, 60, context[:1])
