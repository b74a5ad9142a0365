"""Training of the spatial anomaly embedding on a tiny real model."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from anomalydiffusion_core.backends.ldm import LdmDenoiser
from anomalydiffusion_core.bundles.bundle import anomaly_context
from anomalydiffusion_core.errors import InputError, TrainingError
from anomalydiffusion_core.sampling.blending import latent_mask
from anomalydiffusion_core.training.inversion import (
    AnomalyTrainer,
    InversionSettings,
    start_rows,
)
from anomalydiffusion_core.training.settings import NonFiniteLossError, StepReport, StopTraining
from anomalydiffusion_core.training.state import read_state, write_state

SETTINGS = InversionSettings(steps=6, resolution=64, augmented_copies=1, anomaly_tokens=3, spatial_tokens=2)
Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture(scope="module")
def denoiser() -> LdmDenoiser:
    return LdmDenoiser.random(0, context_dim=32)


def make_pairs(*keys: str, count: int = 2, size: int = 64) -> Pairs:
    generator = torch.Generator().manual_seed(0)
    pairs = {}
    for shift, key in enumerate(keys or ("part/dent", "part/hole")):
        masks = torch.zeros(count, 1, size, size)
        masks[:, :, 8 : 24 + 8 * shift, 16:40] = 1
        images = torch.rand(count, 3, size, size, generator=generator) * 0.2 + 0.4
        pairs[key] = (images + masks * 0.3, masks)
    return pairs


def model_hash(denoiser: LdmDenoiser) -> str:
    digest = hashlib.sha256()
    for model in (denoiser.unet, denoiser.autoencoder):
        for name, value in model.state_dict().items():
            digest.update(name.encode() + value.numpy().tobytes())
        assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    return digest.hexdigest()


def heldout_loss(denoiser: LdmDenoiser, pairs: Pairs, key: str, context: torch.Tensor) -> float:
    """Masked eps loss on fixed noise and times, written out on its own."""
    images, masks = pairs[key]
    generator = torch.Generator().manual_seed(99)
    latents, inside = denoiser.encode(images), latent_mask(masks, 8)
    total, times = 0.0, range(25, 1000, 50)
    for t in times:
        noise = torch.randn(latents.shape, generator=generator)
        alpha = denoiser.alphas_cumprod[t]
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        with torch.no_grad():
            predicted = denoiser.predict_noise(noisy, torch.full((len(images),), t), context)
        total += float((((noise - predicted) * inside) ** 2).mean())
    return total / len(times)


def test_training_lowers_the_loss_against_the_untrained_embedding(denoiser: LdmDenoiser) -> None:
    pairs = make_pairs()
    settings = replace(SETTINGS, steps=60, learning_rate=0.02)
    before = AnomalyTrainer(denoiser, pairs, settings, initial_context=denoiser.normal_context).result()
    after = AnomalyTrainer(denoiser, pairs, settings, initial_context=denoiser.normal_context).run()
    assert len(after.losses) == 60
    for key in pairs:
        first, last = (
            heldout_loss(denoiser, pairs, key, anomaly_context(result.bundle, key, pairs[key][1]))
            for result in (before, after)
        )
        assert last < 0.98 * first


def test_loss_is_the_masked_mean_over_the_whole_latent(denoiser: LdmDenoiser) -> None:
    pairs = make_pairs("part/dent", count=1)
    one = replace(SETTINGS, steps=1, batch_size=1, augmented_copies=0)
    plain = AnomalyTrainer(denoiser, pairs, one).run().losses[0]
    normalised = AnomalyTrainer(denoiser, pairs, replace(one, normalize_by_mask_area=True)).run().losses[0]
    # The mask covers 2 x 3 of 8 x 8 latent cells; the paper's loss divides by all of them, the option by its area.
    assert normalised / plain == pytest.approx(64 / 6, rel=1e-4)
    whole = {key: (images, torch.ones_like(masks)) for key, (images, masks) in pairs.items()}
    assert AnomalyTrainer(denoiser, whole, one).run().losses[0] > plain


def test_same_seed_same_bytes_and_another_seed_other_bytes(denoiser: LdmDenoiser, tmp_path: Path) -> None:
    pairs = make_pairs()
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(name) + seed * 7)
        result = AnomalyTrainer(denoiser, pairs, replace(SETTINGS, seed=seed)).run()
        result.bundle.save(tmp_path / name)
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1] != files[2]


def test_resuming_equals_the_uninterrupted_run(denoiser: LdmDenoiser, tmp_path: Path) -> None:
    pairs = make_pairs()
    straight = AnomalyTrainer(denoiser, pairs, SETTINGS).run()

    def stop_at_three(report: StepReport) -> None:
        if report.step == 3:
            raise StopTraining

    first = AnomalyTrainer(denoiser, pairs, SETTINGS)
    assert len(first.run(stop_at_three).losses) == 3
    write_state(tmp_path / "state.pt", first.loop.state_dict())
    write_state(tmp_path / "state.pt", first.loop.state_dict())
    assert [x.name for x in tmp_path.iterdir()] == ["state.pt"]
    second = AnomalyTrainer(denoiser, pairs, SETTINGS)
    second.loop.load_state_dict(read_state(tmp_path / "state.pt"))
    resumed = second.run()
    assert resumed.losses == straight.losses
    for key in pairs:
        assert torch.equal(resumed.bundle.tokens[key], straight.bundle.tokens[key])
    trained = straight.bundle.spatial_encoder
    again = resumed.bundle.spatial_encoder
    assert trained is not None and again is not None
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), again.parameters(), strict=True))
    other = AnomalyTrainer(denoiser, pairs, replace(SETTINGS, anomaly_tokens=5))
    with pytest.raises(TrainingError, match="same types and settings"):
        other.loop.load_state_dict(read_state(tmp_path / "state.pt"))
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(TrainingError, match="junk.pt"):
        read_state(tmp_path / "junk.pt")


def test_reports_and_an_interrupt_that_passes_through(denoiser: LdmDenoiser) -> None:
    class InterruptError(Exception):
        pass

    before, reports = model_hash(denoiser), []

    def interrupt(report: StepReport) -> None:
        reports.append(report)
        if report.step == 2:
            raise InterruptError

    trainer = AnomalyTrainer(denoiser, make_pairs(), SETTINGS)
    with pytest.raises(InterruptError):
        trainer.run(interrupt)
    assert [(r.step, r.total) for r in reports] == [(1, 6), (2, 6)]
    assert [r.loss for r in reports] == trainer.loop.losses
    assert model_hash(denoiser) == before
    assert len(trainer.run().losses) == 6
    assert model_hash(denoiser) == before


def test_stops_at_the_first_non_finite_loss_with_the_last_good_state(denoiser: LdmDenoiser) -> None:
    before = model_hash(denoiser)
    with pytest.raises(NonFiniteLossError, match="step 2") as caught:
        AnomalyTrainer(denoiser, make_pairs(), replace(SETTINGS, learning_rate=1e30)).run()
    assert caught.value.step == 2
    bundle = caught.value.result.bundle
    assert all(bool(rows.isfinite().all()) and rows.abs().max() < 1 for rows in bundle.tokens.values())
    assert len(caught.value.result.losses) == 1
    assert model_hash(denoiser) == before


def test_works_inside_inference_mode_on_inference_tensors(denoiser: LdmDenoiser) -> None:
    expected = AnomalyTrainer(denoiser, make_pairs(), SETTINGS, initial_context=denoiser.normal_context).run()
    with torch.inference_mode():
        pairs = {key: (images.clone(), masks.clone()) for key, (images, masks) in make_pairs().items()}
        assert all(images.is_inference() for images, _ in pairs.values())
        result = AnomalyTrainer(denoiser, pairs, SETTINGS, initial_context=denoiser.normal_context.clone()).run()
    assert result.losses == expected.losses
    assert not next(iter(result.bundle.tokens.values())).is_inference()


def test_types_take_turns_and_only_the_types_of_a_batch_move(denoiser: LdmDenoiser) -> None:
    pairs = make_pairs("part/a", "part/b", "part/c")
    settings = replace(SETTINGS, steps=1, batch_size=2)
    start = AnomalyTrainer(denoiser, pairs, settings).result().bundle.tokens
    moved = AnomalyTrainer(denoiser, pairs, settings).run().bundle.tokens
    assert [not torch.equal(start[key], moved[key]) for key in pairs] == [True, True, False]
    moved = AnomalyTrainer(denoiser, pairs, replace(settings, steps=2)).run().bundle.tokens
    assert all(not torch.equal(start[key], moved[key]) for key in pairs)


def test_preparation_is_reported_and_the_bank_holds_all_copies(denoiser: LdmDenoiser) -> None:
    calls: list[tuple[int, int]] = []
    trainer = AnomalyTrainer(
        denoiser,
        make_pairs(count=3, size=96),
        replace(SETTINGS, augmented_copies=2),
        on_prepare=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(4, 18), (8, 18), (12, 18), (16, 18), (18, 18)]
    bank = trainer.loop.bank
    assert bank.latents.shape == (18, 4, 8, 8) and bank.masks.shape == (18, 1, 64, 64)
    assert torch.equal(bank.latent_masks, latent_mask(bank.masks.float(), 8))
    assert bank.members == (tuple(range(9)), tuple(range(9, 18)))


def test_start_rows_lie_near_the_rows_of_the_context_in_turn(denoiser: LdmDenoiser) -> None:
    context = torch.tensor([[1.0] * 32, [-1.0] * 32, [3.0] * 32])
    rows = start_rows(context, 5, 32, torch.Generator().manual_seed(0))
    # The root mean square of the context is (11 / 3) ** 0.5 = 1.915.
    noise = rows - context[[0, 1, 2, 0, 1]]
    assert 0.15 < noise.std() < 0.23 and not torch.equal(noise[0], noise[3])
    assert start_rows(denoiser.normal_context, 5, 32, torch.Generator()).shape == (5, 32)
    with pytest.raises(InputError, match="16.*32"):
        start_rows(torch.zeros(4, 16), 5, 32, torch.Generator())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps: 0"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"learning_rate": float("nan")}, "learning_rate: nan"),
        ({"anomaly_tokens": 0}, "tokens: 0"),
        ({"encoder": "huge"}, "light, resnet50_fpn"),
    ],
)
def test_impossible_settings_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SETTINGS, **change)  # type: ignore[arg-type]


def test_impossible_pairs_are_named(denoiser: LdmDenoiser) -> None:
    images, masks = make_pairs()["part/dent"]
    empty = masks.clone()
    empty[1] = 0
    for pairs, message in (
        ({}, "there are none"),
        ({"part/dent": (images[:0], masks[:0])}, "part/dent"),
        ({"part/dent": (images, empty)}, "part/dent: entry 1 of 2 is empty"),
        ({"part/dent": (images, masks[:1])}, "one mask of the same size"),
        ({"part/dent": (images, masks * 0.5)}, "other than 0 and 1"),
    ):
        with pytest.raises(InputError, match=message):
            AnomalyTrainer(denoiser, pairs, SETTINGS).run()
    with pytest.raises(InputError, match="resolution: 60"):
        AnomalyTrainer(denoiser, make_pairs(), replace(SETTINGS, resolution=60)).run()
