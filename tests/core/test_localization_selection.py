"""Which step is kept, and a training that goes on where it was stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anomalydiffusion_core.errors import InputError, TrainingError
from anomalydiffusion_core.evaluation.localization.network import DiscriminativeSubNetwork
from anomalydiffusion_core.evaluation.localization.runs import split_places, split_validation
from anomalydiffusion_core.evaluation.localization.testing import LocalizationResult, selection_score
from anomalydiffusion_core.evaluation.localization.training import LocalizerStep, LocalizerTraining
from anomalydiffusion_core.evaluation.settings import AUTHORS, SELECTIONS, LocalizerSettings

pytestmark = pytest.mark.core

TINY = LocalizerSettings(size=32, width=2, steps=6, batch_size=4, check_every=2)
NAN = float("nan")


def _pairs(count: int = 3, seed: int = 1) -> tuple[Tensor, Tensor]:
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    masks = torch.zeros(count, 1, 32, 32)
    masks[:, :, 8:20, 8:20] = 1
    return images, masks


PAIRS, NORMALS = {"a/b": _pairs()}, _pairs(4, 2)[0]


def _same(left: DiscriminativeSubNetwork, right: DiscriminativeSubNetwork) -> bool:
    others = right.state_dict()
    return all(torch.equal(value, others[name]) for name, value in left.state_dict().items())


def test_the_best_check_is_kept_and_looking_changes_nothing() -> None:
    rates = iter([1.0, 3.0, 2.0])
    seen: list[dict[str, Tensor]] = []

    def choose(network: DiscriminativeSubNetwork) -> float:
        assert not network.training
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        return next(rates)

    training = LocalizerTraining(PAIRS, NORMALS, TINY)
    chosen = training.run(choose=choose)
    assert (len(seen), training.best_step) == (3, 4)
    assert all(torch.equal(value, seen[1][name]) for name, value in chosen.state_dict().items())
    last = LocalizerTraining(PAIRS, NORMALS, TINY).run()
    assert all(torch.equal(value, seen[2][name]) for name, value in last.state_dict().items())


@pytest.mark.parametrize("at", [1, 4])
def test_a_stopped_training_goes_on_to_the_same_numbers(tmp_path: Path, at: int) -> None:
    class Stopped(BaseException):
        pass

    def stop(step: LocalizerStep) -> None:
        if step.step == at:
            raise Stopped

    def rated(network: DiscriminativeSubNetwork) -> float:
        return float(network.state_dict()["decoder_segment.fin_out.0.bias"][1])

    straight = LocalizerTraining(PAIRS, NORMALS, TINY)
    expected = straight.run(choose=rated)
    first = LocalizerTraining(PAIRS, NORMALS, TINY)
    with pytest.raises(Stopped):
        first.run(stop, rated)
    first.save(tmp_path / "state.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    second = LocalizerTraining(PAIRS, NORMALS, TINY)
    second.load(tmp_path / "state.pt")
    assert second.step == at
    assert _same(second.run(choose=rated), expected)
    assert (second.losses, second.best_step) == (straight.losses, straight.best_step)
    (tmp_path / "state.pt").write_bytes(b"no state")
    with pytest.raises(TrainingError, match=r"state.pt cannot be read"):
        LocalizerTraining(PAIRS, NORMALS, TINY).load(tmp_path / "state.pt")


def test_normals_alone_can_be_trained_on() -> None:
    images, masks = LocalizerTraining({}, NORMALS, TINY)._sampler.draw(torch.Generator().manual_seed(0))
    assert len(images) == 4 and not masks.any()
    assert LocalizerTraining({}, NORMALS, TINY).run().base_width == 2


def test_the_rate_is_the_authors_sum_of_what_is_defined() -> None:
    result = LocalizationResult(0.9, 0.5, 0.6, 0.7, 0.8, 0.99, 0.98)
    assert selection_score(result) == pytest.approx(0.8 + 0.9 + 0.5 + 0.7)
    assert selection_score(replace(result, image_auroc=NAN)) == pytest.approx(0.9 + 0.5 + 0.7)
    with pytest.raises(InputError, match="last step"):
        selection_score(replace(result, image_auroc=NAN, pixel_auroc=NAN, pixel_ap=NAN, pixel_pro=NAN))


def test_validation_pairs_are_held_back_type_by_type() -> None:
    pairs = {"a/six": _pairs(6, 3), "a/one": _pairs(1, 4), "a/two": _pairs(2, 5)}
    training, held = split_validation(pairs, 1 / 3, seed=7)
    counts = {key: (len(training[key][0]), len(held[key][0]) if key in held else 0) for key in pairs}
    assert counts == {"a/six": (4, 2), "a/one": (1, 0), "a/two": (1, 1)}
    both = torch.cat([training["a/six"][0], held["a/six"][0]])
    assert sorted(both.sum(dim=(1, 2, 3)).tolist()) == sorted(pairs["a/six"][0].sum(dim=(1, 2, 3)).tolist())
    again = split_validation(pairs, 1 / 3, seed=7)[1]["a/six"][0]
    assert torch.equal(again, held["a/six"][0])
    assert len({tuple(split_places(6, 1 / 3, seed)[1].tolist()) for seed in range(9)}) > 1
    assert [len(part) for part in split_places(2, 0.99, 0)] == [1, 1]
    with pytest.raises(InputError, match="two training pairs"):
        split_validation({"a/one": _pairs(1, 4)}, 0.5, 0)


def test_the_rule_is_said_in_words_and_bad_ones_are_refused() -> None:
    notes = [LocalizerSettings(selection=rule).selection_note() for rule in SELECTIONS]
    assert notes[0] == "last step kept, nothing chosen by the test set"
    assert "33% of the training images" in notes[1] and "63 steps" in notes[1]
    assert AUTHORS in notes[2] and "selects on the test set" in AUTHORS
    for name, value in (("selection", "best"), ("check_every", 0), ("validation_share", 1.0)):
        with pytest.raises(InputError, match=f"{name}: .*{value}"):
            replace(TINY, **{name: value})
