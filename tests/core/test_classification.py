"""The classifier of defect types: torchvision's layout, honest counting, numbers that can be checked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.evaluation.classification.evaluation import (
    Classification,
    ClassificationRun,
    classify,
    confusion_image,
)
from anomalydiffusion_core.evaluation.classification.network import build_classifier
from anomalydiffusion_core.evaluation.classification.training import _Order, predict, train_classifier
from anomalydiffusion_core.evaluation.settings import ClassifierSettings

pytestmark = pytest.mark.core

TINY = ClassifierSettings("ResNet-18", size=32, width=8, steps=30, batch_size=6, learning_rate=3e-3)


def coloured(count: int, seed: int) -> dict[str, Tensor]:
    """Dark red, green and blue noise: three types that any network can tell apart."""
    noise = 0.1 * torch.rand(3, count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    for place in range(3):
        noise[place, :, place] += 0.6
    return dict(zip(("red", "green", "blue"), noise, strict=True))


@pytest.mark.parametrize(("name", "reference"), [("ResNet-18", "resnet18"), ("ResNet-34", "resnet34")])
def test_layout_is_torchvisions(name: str, reference: str) -> None:
    with torch.device("meta"):
        expected = getattr(torchvision.models, reference)(num_classes=5).state_dict()
        built = build_classifier(name, 5).state_dict()
    assert {key: value.shape for key, value in built.items()} == {key: value.shape for key, value in expected.items()}


def test_weights_of_torchvision_give_its_outputs(tmp_path: Path) -> None:
    torch.manual_seed(3)
    original = torchvision.models.resnet18(num_classes=1000).eval()
    torch.save(original.state_dict(), tmp_path / "resnet18.pth")
    network = build_classifier("ResNet-18", 4, weights=tmp_path / "resnet18.pth").eval()
    assert network.fc.out_features == 4  # type: ignore[union-attr]
    network.fc = original.fc
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(network(images), original(images), atol=1e-5)
    with pytest.raises(InputError, match="does not fit ResNet-34 of width 64"):
        build_classifier("ResNet-34", 4, weights=tmp_path / "resnet18.pth")
    with pytest.raises(InputError, match="does not fit ResNet-18 of width 8"):
        build_classifier("ResNet-18", 4, width=8, weights=tmp_path / "resnet18.pth")
    with pytest.raises(InputError, match="Put torchvision's file of ResNet-18 there"):
        build_classifier("ResNet-18", 4, weights=tmp_path / "none.pth")


def test_it_learns_what_can_be_told_apart_and_repeats_itself() -> None:
    steps: list[None] = []
    result = classify(coloured(8, 0), coloured(5, 1), TINY, (0, 1), lambda: steps.append(None))
    assert len(steps) == 2 * 30
    assert result.mean == 1.0 and result.spread == 0.0
    assert np.array_equal(result.confusion, np.diag([10, 10, 10]))
    one, two = (train_classifier(coloured(8, 0), replace(TINY, steps=2)).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = train_classifier(coloured(8, 0), replace(TINY, steps=2, seed=1)).state_dict()
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


def test_accuracy_counts_all_samples_at_once() -> None:
    """Types of 1 and 9 images: 0 of 1 and 9 of 9 are 90 %, not the mean of 0 % and 100 %."""
    runs = [ClassificationRun(0, np.array([[0, 1], [0, 9]])), ClassificationRun(1, np.array([[1, 0], [1, 8]]))]
    result = Classification(("a", "b"), TINY, runs)
    assert [run.accuracy for run in runs] == [0.9, 0.9]
    runs[1] = ClassificationRun(1, np.array([[1, 0], [4, 5]]))
    assert result.mean == pytest.approx(0.75) and result.spread == pytest.approx(0.15 * 2**0.5)
    written = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert written["kind"] == "classification" and written["metrics"] == {"accuracy": pytest.approx(0.75)}
    assert written["confusion"] == [[1, 1], [4, 14]] and written["seeds"] == [0, 1]
    assert written["budget"]["weights"] == "random" and "seed" not in written["budget"]


def test_confusion_counts_rows_as_truth() -> None:
    tests = {"red": coloured(3, 5)["red"], "green": coloured(2, 5)["blue"], "blue": coloured(4, 5)["blue"]}
    result = classify(coloured(8, 0), tests, TINY, (0,))
    assert result.confusion.tolist() == [[3, 0, 0], [0, 0, 2], [0, 0, 4]], "what is called green there is blue"
    assert result.spread is None
    image = confusion_image(result.confusion, result.types, "colours")
    assert image.shape[0] == 3 and 0 <= float(image.min()) < float(image.max()) <= 1


def test_every_image_is_seen_once_before_any_is_seen_again() -> None:
    order = _Order(5, torch.Generator().manual_seed(0))
    seen = [place for _ in range(5) for place in order.take(3).tolist()]
    assert all(sorted(seen[start : start + 5]) == list(range(5)) for start in (0, 5, 10))


def test_what_cannot_work_is_refused() -> None:
    images = coloured(2, 0)
    with pytest.raises(InputError, match="no images of green; the types are red"):
        classify({"red": images["red"]}, {name: images[name] for name in ("red", "green")}, TINY, (0,))
    with pytest.raises(InputError, match="at least two defect types"):
        train_classifier({"red": images["red"]}, TINY)
    for name, value in (("architecture", "VGG"), ("steps", 0), ("batch_size", 1), ("learning_rate", 0.0), ("size", 8)):
        with pytest.raises(InputError, match=name):
            replace(TINY, **{name: value})  # type: ignore[arg-type]


def test_cancelling_ends_within_a_step_and_inference_tensors_work() -> None:
    seen: list[Any] = []

    def stop() -> None:
        seen.append(None)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with torch.inference_mode():
        images = coloured(2, 0)
        with pytest.raises(KeyboardInterrupt):
            train_classifier(images, TINY, stop)
    assert len(seen) == 2
    flipped = replace(TINY, flips=True, rotations=True, steps=2)
    network = train_classifier(images, flipped)
    assert predict(network, images["red"]).shape == (2,)
