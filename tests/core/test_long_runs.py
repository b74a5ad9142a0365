"""Trainings that are cancelled, killed and resumed, that renew their images, or stop early."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import long_training
import pytest
import torch
from augmented import augment_pair
from long_training import IDENTITY, SAVE_EVERY, STEPS, make_trainer

from anomalydiffusion_core.backends.ldm import LdmDenoiser
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.files import owner_tag
from anomalydiffusion_core.progress import duration
from anomalydiffusion_core.training.bank import BankRefresher, build_bank
from anomalydiffusion_core.training.inversion import AnomalyTrainer, InversionSettings
from anomalydiffusion_core.training.loop import TrainingLoop
from anomalydiffusion_core.training.run import Trainer, TrainingResult
from anomalydiffusion_core.training.settings import LoopOptions, NonFiniteLossError, Pause, StepReport
from anomalydiffusion_core.training.state import StateFile, read_state, write_state


class CancelError(Exception):
    """What a host raises when its user cancels."""


def same(first: TrainingResult, second: TrainingResult) -> bool:
    """Equal bit for bit: losses, tokens, encoder."""
    one, two = first.bundle, second.bundle
    assert one.spatial_encoder is not None and two.spatial_encoder is not None
    parts = [(one.tokens, two.tokens), (one.spatial_encoder.state_dict(), two.spatial_encoder.state_dict())]
    return first.losses == second.losses and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in parts
    )


@pytest.fixture(scope="module")
def straight() -> TrainingResult:
    return make_trainer().run()


def cancel_at(step: int) -> object:
    def on_step(report: StepReport) -> None:
        if report.step == step:
            raise CancelError

    return on_step


def test_killed_training_loses_only_the_steps_since_the_last_state(straight: TrainingResult, tmp_path: Path) -> None:
    state = StateFile(tmp_path / "states" / "a.pt", IDENTITY)
    child = subprocess.Popen(
        [sys.executable, long_training.__file__, str(state.path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) == 5:
            os.kill(child.pid, signal.SIGKILL)
            break
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    # What a writing that was cut off would leave.
    gone = owner_tag().replace(f"-{os.getpid()}-", f"-{child.pid}-")
    (state.path.parent / f".{state.path.name[:20]}.{gone}.0badcafe.partial").write_bytes(b"half")
    done = len(read_state(state.path)["loop"]["losses"])
    assert 5 - SAVE_EVERY < done < STEPS and done % SAVE_EVERY == 0
    trainer = make_trainer()
    resumed = trainer.run(state=state, save_every=SAVE_EVERY)
    assert trainer.resumed == f"resumed after step {done}"
    assert same(resumed, straight)
    state.remove()
    assert not list(state.path.parent.iterdir())


def test_cancelled_in_the_middle_of_a_step_it_goes_on_as_if_nothing_had_been(
    straight: TrainingResult, tmp_path: Path
) -> None:
    state = StateFile(tmp_path / "a.pt", IDENTITY)
    calls = []

    class Interrupted(LdmDenoiser):
        def predict_noise(self, *arguments: object, **named: object) -> torch.Tensor:
            calls.append(1)
            if len(calls) == 8:  # two batches a step: the second one of step 4
                raise CancelError
            return super().predict_noise(*arguments, **named)  # type: ignore[arg-type]

    first = make_trainer()
    first.loop.denoiser.__class__ = Interrupted
    with pytest.raises(CancelError):
        first.run(state=state)
    assert first.loop.step == 3
    second = make_trainer()
    with pytest.raises(CancelError):
        second.run(cancel_at(6), state=state)  # type: ignore[arg-type]
    assert second.resumed == "resumed after step 3"
    third = make_trainer()
    assert same(third.run(state=state), straight)
    assert third.resumed == "resumed after step 6"


def test_the_same_trainer_goes_on_too_and_previews_change_nothing(straight: TrainingResult) -> None:
    trainer, shown = make_trainer(), []
    pauses = [Pause(2, lambda report: shown.append((report.step, trainer.preview(report.step, steps=2))))]
    with pytest.raises(CancelError):
        trainer.run(cancel_at(5), pauses=pauses)  # type: ignore[arg-type]
    assert same(trainer.run(pauses=pauses), straight)
    assert [step for step, _ in shown] == [2, 4, 6, 8]
    image, mask, sample = shown[0][1]
    assert image.shape == mask.shape == sample.shape == (3, 64, 64)
    # Outside its mask the sample is the image itself.
    assert torch.equal(sample * (1 - mask), image * (1 - mask)) and not torch.equal(sample, image)


def test_pauses_find_the_model_as_it_is_for_sampling() -> None:
    inside: list[bool] = []

    class Watched(LdmDenoiser):
        training = False

        @contextmanager
        def training_mode(self) -> Iterator[None]:
            with super().training_mode():
                self.training = True
                try:
                    yield
                finally:
                    self.training = False

    trainer = make_trainer()
    denoiser = trainer.loop.denoiser
    denoiser.__class__ = Watched
    assert isinstance(denoiser, Watched)
    trainer.run(pauses=[Pause(3, lambda _: inside.append(denoiser.training))])
    assert inside == [False, False, False]


def test_a_state_of_another_training_is_never_used(straight: TrainingResult, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with pytest.raises(CancelError):
        make_trainer().run(cancel_at(4), state=StateFile(path, "another"))  # type: ignore[arg-type]
    trainer = make_trainer()
    assert same(trainer.run(state=StateFile(path, IDENTITY), save_every=100), straight)
    assert trainer.resumed == "a stored state of another training was not used"
    path.write_bytes(path.read_bytes()[:5000])
    trainer = make_trainer()
    assert same(trainer.run(state=StateFile(path, IDENTITY)), straight)
    assert "was not used: training state: a.pt cannot be read" in trainer.resumed
    write_state(path, {"format": 1, "identity": IDENTITY, "loop": {"losses": [0.0] * (STEPS + 1)}})
    trainer = make_trainer()
    assert same(trainer.run(state=StateFile(path, IDENTITY)), straight)
    assert f"a stored state of {STEPS + 1} steps was not used" in trainer.resumed


def test_longer_training_goes_on_from_a_finished_one(straight: TrainingResult, tmp_path: Path) -> None:
    state = StateFile(tmp_path / "a.pt", IDENTITY)
    short = make_trainer()
    short.loop.settings = replace(short.loop.settings, steps=4)
    assert short.run(state=state).losses == straight.losses[:4]
    state.save(short.loop)
    assert same(make_trainer().run(state=state), straight)


def test_state_that_led_to_a_loss_that_is_not_finite_is_deleted(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "a.pt", IDENTITY)
    images, masks = torch.rand(1, 3, 64, 64), torch.ones(1, 1, 64, 64)
    settings = InversionSettings(steps=9, batch_size=1, resolution=64, augmented_copies=0, learning_rate=1e30)
    trainer = AnomalyTrainer(LdmDenoiser.random(0, context_dim=32), {"part/dent": (images, masks)}, settings)
    start = trainer.result().bundle.tokens["part/dent"]
    with pytest.raises(CancelError):
        trainer.run(cancel_at(1), state=state)  # type: ignore[arg-type]
    # The stored weights are those after the bad update; the state knows the good ones before it.
    again = AnomalyTrainer(LdmDenoiser.random(0, context_dim=32), {"part/dent": (images, masks)}, settings)
    with pytest.raises(NonFiniteLossError, match="step 2") as caught:
        again.run(state=state)
    assert again.resumed == "resumed after step 1"
    assert torch.equal(caught.value.result.bundle.tokens["part/dent"], start)
    assert not state.path.exists()


def make_loop(options: LoopOptions, *, steps: int = 1, batch: int = 1, copies: int = 2) -> Trainer:
    generator = torch.Generator().manual_seed(1)
    pairs = {}
    for key, count in (("part/many", 5), ("part/one", 1)):
        masks = torch.zeros(count, 1, 64, 64)
        masks[:, :, 16:48, 8:40] = 1
        pairs[key] = (torch.rand(count, 3, 64, 64, generator=generator), masks)
    settings = InversionSettings(
        steps=steps, batch_size=batch, resolution=64, augmented_copies=copies, anomaly_tokens=2, options=options
    )
    return AnomalyTrainer(LdmDenoiser.random(0, context_dim=32), pairs, settings)


def test_images_are_drawn_over_types_or_over_images() -> None:
    for balance, low, high in (("types", 0.5, 0.5), ("pictures", 0.11, 0.23)):
        trainer = make_loop(LoopOptions(balance=balance), batch=2)
        drawn = []
        for _ in range(300):
            drawn += trainer.loop._draw().types
            trainer.loop.losses.append(1.0)
        # One of six images is of the type with one: a sixth within four standard deviations.
        assert low <= sum(drawn) / len(drawn) <= high


def test_accumulated_batches_make_the_gradient_of_their_mean() -> None:
    trainer = make_loop(LoopOptions(accumulate=3))
    loop = trainer.loop
    generator = loop.generator.get_state()
    batches = [loop._draw(number) for number in range(3)]
    with torch.enable_grad():
        mean = sum((loop._loss(batch) for batch in batches), torch.zeros(())) / 3
        expected = torch.autograd.grad(mean, loop.module.tokens[0])[0]  # type: ignore[index]
    loop.generator.set_state(generator)
    trainer.run()
    assert trainer.loop.losses[0] == pytest.approx(float(mean.detach()), rel=1e-6)
    # Adam's first moment after one step is a tenth of the gradient.
    first = loop.optimizer.state[loop.module.tokens[0]]["exp_avg"]  # type: ignore[index]
    torch.testing.assert_close(first, expected * 0.1, rtol=1e-4, atol=1e-9)


def test_bank_is_renewed_at_the_stated_rate_and_only_between_steps() -> None:
    calls: list[int] = []

    class Counting(LdmDenoiser):
        def encode(self, images: torch.Tensor) -> torch.Tensor:
            calls.append(len(images))
            return super().encode(images)

    trainer = make_loop(LoopOptions(refresh_every=3), steps=10, copies=2)
    before = trainer.loop.bank.latents.clone()
    trainer.loop.denoiser.__class__ = Counting
    trainer.run()
    assert calls == [1, 1, 1] and trainer.loop.refreshed == 3
    changed = [not torch.equal(a, b) for a, b in zip(before, trainer.loop.bank.latents, strict=True)]
    assert sum(changed) == 3
    # Rows 0, 3, 6 and so on are the pairs as they are and stay.
    assert not any(changed[0::3])


def test_renewed_images_are_new_pairs_that_agree() -> None:
    denoiser = LdmDenoiser.random(0, context_dim=32)
    masks = torch.zeros(2, 1, 64, 64)
    masks[:, :, 20:44, 10:50] = 1
    pairs = [(masks.expand(-1, 3, -1, -1).clone(), masks)]
    sizes = {"resolution": 64, "copies": 2, "seed": 3}
    bank = build_bank(denoiser, pairs, **sizes, batch_size=2)
    refresher = BankRefresher(denoiser, bank, pairs, **sizes)
    for number in range(6):
        refresher.refresh(number)
    for row in (1, 2, 4, 5):
        # The image is its mask: encoding the stored mask must come near the stored latent.
        again = denoiser.encode(bank.masks[row].float().expand(1, 3, -1, -1))[0]
        assert (again - bank.latents[row]).abs().mean() < 0.1 * again.std()
    other = build_bank(denoiser, pairs, **sizes, batch_size=2)
    BankRefresher(denoiser, other, pairs, **sizes).replay(6)
    assert torch.equal(other.latents, bank.latents) and torch.equal(other.masks, bank.masks)
    with pytest.raises(InputError, match="no augmented copies to renew"):
        make_loop(LoopOptions(refresh_every=1), copies=0)
    assert augment_pair(pairs[0][0][0], masks[0], torch.Generator(), 64)[1].any()


def test_latents_are_drawn_from_the_posterior_at_every_use() -> None:
    class Posterior(LdmDenoiser):
        def encode_moments(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            mean = self.encode(images)
            return mean, torch.full_like(mean, 0.5)

    with pytest.raises(InputError, match="this VAE gives no deviation"):
        make_loop(LoopOptions(sample_latents=True))
    denoiser = LdmDenoiser.random(0, context_dim=32)
    denoiser.__class__ = Posterior
    pairs = {"part/one": (torch.rand(1, 3, 64, 64), torch.ones(1, 1, 64, 64))}
    options = LoopOptions(sample_latents=True)
    settings = InversionSettings(steps=1, batch_size=64, resolution=64, augmented_copies=0, options=options)
    loop = AnomalyTrainer(denoiser, pairs, settings).loop
    drawn = loop._latents(loop._draw()) - loop.bank.latents
    # 16,384 values of N(0, 0.5).
    assert abs(float(drawn.mean())) < 0.02 and float(drawn.std()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("losses", "stops"),
    [
        ([5, 5, 4, 4, 3, 3, 2, 2], False),
        ([5, 5, 2, 2, 3, 3, 3, 3], True),
        ([5, 5, 2, 2, 3, 3, 1, 1], False),
        ([5, 5, 2, 2, 3, 3, 3], False),  # only after whole windows
        ([2, 2, 3, 3], False),
    ],
)
def test_early_stop_after_two_windows_without_a_new_best(losses: list[float], stops: bool) -> None:
    trainer = make_loop(LoopOptions(early_stop=2), steps=100)
    loop = trainer.loop
    loop.losses = [float(loss) for loss in losses]
    assert isinstance(loop, TrainingLoop) and loop.stalled is stops and loop.finished is stops
    assert not make_loop(LoopOptions(), steps=100).loop.stalled


def test_early_stop_ends_a_run_quietly() -> None:
    trainer = make_loop(LoopOptions(early_stop=1), steps=100)
    losses = trainer.run().losses
    assert 3 <= len(losses) < 100
    best = min(losses[:-2])
    assert losses[-2] >= best and losses[-1] >= best


def test_half_precision_scale_falls_until_gradients_are_finite() -> None:
    trainer, plain = make_loop(LoopOptions(), steps=3), make_loop(LoopOptions(), steps=3)
    expected = plain.run()
    trainer.loop.loss_scale = 2.0**160  # beyond the range of float32: the first gradients overflow
    result = trainer.run()
    assert 1 <= trainer.loop.loss_scale < 2.0**160
    assert result.losses == pytest.approx(expected.losses, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accumulate": 0}, "accumulate: 0"),
        ({"balance": "mean"}, "types, pictures"),
        ({"refresh_every": -1}, "refresh_every: -1"),
        ({"early_stop": -2}, "early_stop: -2"),
    ],
)
def test_impossible_options_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LoopOptions(**change)  # type: ignore[arg-type]


def test_a_trainer_takes_a_state_too(tmp_path: Path) -> None:
    pairs = {"part/one": (torch.rand(1, 3, 64, 64), torch.ones(1, 1, 64, 64))}
    settings = InversionSettings(steps=2, batch_size=1, resolution=64, augmented_copies=0)
    state = StateFile(tmp_path / "a.pt", "x")
    AnomalyTrainer(LdmDenoiser.random(0, context_dim=32), pairs, settings).run(state=state, save_every=1)
    assert len(read_state(state.path)["loop"]["losses"]) == 1, "the last step is not saved twice"


def test_time_that_is_left_is_readable() -> None:
    assert [duration(x) for x in (0.4, 59.4, 76, 3599.4, 11100)] == [
        "0 s",
        "59 s",
        "1 min 16 s",
        "59 min 59 s",
        "3 h 5 min",
    ]
