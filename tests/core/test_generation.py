"""Numbers about generated images, against values worked out by hand and against the libraries' own routes."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor

from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.evaluation.generation.evaluation import GeneratedSet, evaluate_generation
from anomalydiffusion_core.evaluation.generation.memorization import defect_crops, nearest_training_defects
from anomalydiffusion_core.evaluation.generation.scores import ic_lpips, inception_score
from anomalydiffusion_core.evaluation.generation.trunks import (
    INCEPTION_FILE,
    LPIPS_FILE,
    load_inception,
    load_perceptual,
)
from anomalydiffusion_core.evaluation.settings import GenerationSettings

pytestmark = pytest.mark.core


def test_inception_score_by_hand() -> None:
    # p(y) = (0.5, 0.5); KL of each = 0.9 ln(0.9 / 0.5) + 0.1 ln(0.1 / 0.5) = 0.529008 - 0.160944 = 0.368064
    logits = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
    assert inception_score(logits, 1)[0] == pytest.approx(math.exp(0.368064), abs=1e-5)
    certain = 2000 * torch.eye(4)
    assert inception_score(certain, 1)[0] == pytest.approx(4.0), "as many as there are classes"
    assert inception_score(certain[[0, 0, 0, 0]], 2) == (pytest.approx(1.0), pytest.approx(0.0)), "all alike: 1"
    assert all(math.isnan(value) for value in inception_score(certain, 10)), "fewer images than parts"


def values(*brightness: float) -> Tensor:
    return torch.tensor(brightness)[:, None, None, None].expand(-1, 3, 1, 1)


def difference(one: Tensor, two: Tensor) -> Tensor:
    return (one[:, None, 0, 0, 0] - two[None, :, 0, 0, 0]).abs()


def test_both_forms_of_ic_lpips_by_hand() -> None:
    """Training 0.0, 0.5, 1.0; generated 0.1, 0.2 | 0.5, 0.6, 0.7 | 0.9; the distance is the difference."""
    found = ic_lpips(difference, values(0.1, 0.2, 0.5, 0.6, 0.7, 0.9), values(0.0, 0.5, 1.0))
    assert found.clusters == (2, 3, 1)
    # to the training image: (0.1 + 0.2) / 2, (0 + 0.1 + 0.2) / 3, 0.1
    assert found.text == pytest.approx((0.15 + 0.1 + 0.1) / 3)
    # pairs: 0.1; (0.1 + 0.2 + 0.1) / 3; the cluster of one has none and is left out
    assert found.pairwise == pytest.approx((0.1 + 0.4 / 3) / 2)
    single = ic_lpips(difference, values(0.1, 0.9), values(0.0, 1.0))
    assert single.text == pytest.approx(0.1) and math.isnan(single.pairwise)
    empty = ic_lpips(difference, values(0.1, 0.3), values(0.0, 1.0))
    assert empty.clusters == (2, 0) and empty.text == pytest.approx(0.2) and empty.pairwise == pytest.approx(0.2)
    many = values(*[0.01 * place for place in range(20)])
    some = ic_lpips(difference, many, values(0.0), most_members=5, seed=1)
    assert some.text == pytest.approx(0.095), "the text form takes all members"
    assert some == ic_lpips(difference, many, values(0.0), most_members=5, seed=1)
    assert some.pairwise != ic_lpips(difference, many, values(0.0), most_members=5, seed=2).pairwise
    with pytest.raises(InputError, match="6 generated, 0 training"):
        ic_lpips(difference, many[:6], many[:0])


def test_lpips_of_sets_is_lpips_of_pairs(tmp_path: Path) -> None:
    """Trunk from a file in torchvision's layout, the distances against the forward pass of lpips itself."""
    torch.manual_seed(0)
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    torch.save({f"features.{name}": value for name, value in layers.state_dict().items()}, tmp_path / LPIPS_FILE)
    ours = load_perceptual("published", tmp_path)
    assert ours.name == LPIPS_FILE
    shown, seen = torch.rand(1, 3, 32, 32), []
    with torch.no_grad():
        for place, output in enumerate(ours.network.net(shown)):
            seen.append(torch.equal(output, layers[: (4, 9, 16, 23, 30)[place]](shown)))
    assert seen == [True] * 5, "relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3"
    one, two = torch.rand(3, 3, 32, 32), torch.rand(9, 3, 32, 32)
    steps: list[int] = []
    found = ours.distances(one, two, steps.append)
    assert found.shape == (3, 9) and steps == [3, 3], "two blocks of at most eight"
    with torch.no_grad():
        expected = [[float(ours.network(a[None], b[None], normalize=True)) for b in two] for a in one]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-5)
    assert float(ours.distances(one, one).diagonal().max()) < 1e-5
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=f"other.pth is not {LPIPS_FILE}"):
        load_perceptual("published", tmp_path / "other.pth")


def test_stand_in_is_lpips_without_learned_layers_and_named() -> None:
    stand_in = load_perceptual("stand-in")
    assert stand_in.name.startswith("stand-in")
    one, two = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = stand_in.network(one, two, normalize=True).flatten()
    assert torch.allclose(stand_in.distances(one, two).diagonal(), expected, atol=1e-5)
    assert torch.equal(load_perceptual("stand-in").distances(one, two), stand_in.distances(one, two))
    bytes_ = (torch.rand(6, 3, 40, 40) * 255).to(torch.uint8)
    inception = load_inception("stand-in")
    assert inception.name.startswith("stand-in") and inception.logits(bytes_).shape == (6, 64)
    assert torch.equal(load_inception("stand-in").logits(bytes_), inception.logits(bytes_))


def test_inception_from_a_local_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_fidelity import FeatureExtractorInceptionV3

    # torch-fidelity builds its network with weights only: skip their loading once, to have a file of random ones
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with monkeypatch.context() as patched:
        patched.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        original = FeatureExtractorInceptionV3("x", ["logits_unbiased"], feature_extractor_weights_path=empty)
    torch.save(original.state_dict(), tmp_path / INCEPTION_FILE)
    images = (torch.rand(2, 3, 64, 64) * 255).to(torch.uint8)
    ours = load_inception("published", tmp_path / INCEPTION_FILE)
    assert ours.name == INCEPTION_FILE
    assert torch.allclose(ours.logits(images), original(images)[0], atol=1e-5)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=f"other.pth is not {INCEPTION_FILE}"):
        load_inception("published", tmp_path / "other.pth")


def test_missing_trunks_say_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    with pytest.raises(InputError, match=f"checkpoints.*Put {INCEPTION_FILE} .*torch-fidelity.* or choose the trunk"):
        load_inception("published")
    with pytest.raises(InputError, match=f"nowhere.*Put {LPIPS_FILE} .*torchvision's VGG-16"):
        load_perceptual("published", "/nowhere")
    with pytest.raises(InputError, match="trunk: .*'other'"):
        GenerationSettings(trunk="other")


def box(top: int, left: int, height: int, width: int, colour: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    image, mask = torch.full((3, 64, 64), 0.5), torch.zeros(1, 64, 64)
    mask[:, top : top + height, left : left + width] = 1
    return torch.where(mask > 0, torch.tensor(colour)[:, None, None], image), mask


def test_copies_are_found_wherever_they_lie() -> None:
    red, green = box(5, 5, 20, 10, (1, 0, 0)), box(30, 30, 20, 10, (0, 1, 0))
    training = tuple(torch.stack(part) for part in zip(red, green, strict=True))
    moved, turned, other = (
        box(40, 44, 20, 10, (1, 0, 0)),
        box(3, 30, 10, 20, (0, 1, 0)),
        box(10, 10, 18, 18, (0, 0, 1)),
    )
    images, masks = (torch.stack(part) for part in zip(moved, turned, other, strict=True))
    found = nearest_training_defects(images, masks, *training)
    assert found.index[:2].tolist() == [0, 1]
    assert float(found.distance[0]) < 1e-3 and float(found.distance[1]) < 1e-3
    # red on green is 2 / 3 of 255, either on grey 1 / 2; nearest when crossed, where a third of the union overlaps
    assert found.threshold == pytest.approx((170 + 2 * 127.5) / 3, rel=0.03)
    assert float(found.distance[2]) > 60
    assert found.copies_share == pytest.approx(float((found.distance < found.threshold).float().mean()))
    alone = nearest_training_defects(images, masks, training[0][:1], training[1][:1])
    assert math.isnan(alone.threshold) and math.isnan(alone.copies_share)
    assert defect_crops(images, masks).shape == (3, 4, 32, 32)
    at_edge = box(0, 0, 64, 64, (1, 0, 0))
    assert float(defect_crops(at_edge[0][None], at_edge[1][None])[:, 3].mean()) > 0.6


def test_means_are_over_types_and_undefined_stays_undefined() -> None:
    inception, perceptual = load_inception("stand-in"), load_perceptual("stand-in")
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> Tensor:
        return torch.rand(count, 3, 64, 64, generator=generator)

    masks = torch.zeros(6, 1, 64, 64)
    masks[:, :, 10:30, 10:30] = 1
    sets = {
        "dot": GeneratedSet(images(6), masks, images(2), masks[:2], (10.0, 20.0), (0.5, 1.0)),
        "bar": GeneratedSet(images(4), None, images(1), masks[:1]),
    }
    steps: list[int] = []
    result = evaluate_generation(sets, inception, perceptual, 2, on_step=steps.append)
    assert sum(steps) == 3 * 10, "Inception, LPIPS to the training images, and of the pairs in the clusters"
    written = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert written["kind"] == "generation" and written["trunks"]["lpips"].startswith("stand-in")
    dot, bar = written["by_type"]["dot"], written["by_type"]["bar"]
    assert written["metrics"]["is"] == pytest.approx((dot["is"] + bar["is"]) / 2)
    assert dot["is"] > 1 and dot["effect_score"] == 15 and written["metrics"]["effect_score"] == 15
    assert bar["effect_score"] is None and bar["copies_share"] is None and dot["copies_share"] is not None
    assert evaluate_generation(sets, inception, perceptual, 2).as_dict() == result.as_dict()
    as_bytes = {kind: replace(part, images=(part.images * 255).round().to(torch.uint8)) for kind, part in sets.items()}
    stored = evaluate_generation(as_bytes, inception, perceptual, 2)
    assert stored.mean("is") == result.mean("is")
    for name in ("ic_lpips_text", "ic_lpips_pairwise", "nearest_distance"):
        assert stored.mean(name) == pytest.approx(result.mean(name), rel=0.01)
    with pytest.raises(InputError, match="no images of any type"):
        evaluate_generation({}, inception, perceptual, 2)
