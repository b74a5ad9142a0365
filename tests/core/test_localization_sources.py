"""Images of an evaluation by content, streamed scoring, and the points of its curves."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

from anomalydiffusion_core.data.mvtec import load_dataset, load_pairs
from anomalydiffusion_core.data.splits import SplitSettings
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.evaluation.localization import testing
from anomalydiffusion_core.evaluation.localization.curves import DetectionCurves, detection_curves, plot_detection
from anomalydiffusion_core.evaluation.localization.network import build_network
from anomalydiffusion_core.evaluation.localization.sources import (
    held_out_images,
    held_out_tensors,
    normal_images,
    pair_batches,
    pair_tensors,
    pairs_folder,
    real_pairs,
)
from anomalydiffusion_core.evaluation.localization.testing import image_scores, score_images, score_tests
from tests.support.pixels import pixel_metrics

pytestmark = pytest.mark.core


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six images with a square of one type, three of another, and five normal ones."""
    rng = np.random.default_rng(0)

    def save(pixels: np.ndarray, *parts: str) -> None:
        path = tmp_path.joinpath("part", *parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    def surface() -> np.ndarray:
        return rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)

    for number in range(3):
        save(surface(), "train", "good", f"{number}.png")
    for number in range(2):
        save(surface(), "test", "good", f"{number}.png")
    for defect, count in (("dot", 6), ("line", 3)):
        for number in range(count):
            mask = np.zeros((40, 40), np.uint8)
            mask[5 + number : 15 + number, 10:30] = 255
            save(surface(), "test", defect, f"{number}.png")
            save(mask, "ground_truth", defect, f"{number}_mask.png")
    return tmp_path


def test_sources_read_what_the_data_set_holds(root: Path) -> None:
    dataset = load_dataset(root, "part")
    real, tests = real_pairs(dataset), held_out_images(dataset)
    assert Counter(real.keys) == {"part/dot": 2, "part/line": 1} and real.count == 3
    expected = load_pairs(dataset.types[0].train, 32)
    assert all(torch.equal(left, right) for left, right in zip(real.read(32)["part/dot"], expected, strict=True))
    assert [sample.key for sample in real.samples(5)] == ["part/dot", "part/line", "part/dot"]
    assert normal_images(dataset).read(32).shape == (3, 3, 32, 32)
    assert (tests.count, tests.keys) == (8, ["part/dot"] * 4 + ["part/line"] * 2)
    assert tests.shown(3) == [0, 4, 1]
    images, masks = (torch.cat(parts) for parts in zip(*tests.batches(32, 3), strict=True))
    defects = [load_pairs(kind.test, 32) for kind in dataset.types]
    assert torch.equal(images[:6], torch.cat([part[0] for part in defects]))
    assert torch.equal(masks[:6], torch.cat([part[1] for part in defects])) and not masks[6:].any()
    assert torch.equal(tests.image(4, 32)[0], images[4])
    everything = load_dataset(root, "part", SplitSettings("first n", 6))
    with pytest.raises(InputError, match="no defect image of part is kept"):
        held_out_images(everything)


def test_digests_follow_the_content_and_nothing_else(root: Path) -> None:
    def digests() -> list[str]:
        dataset = load_dataset(root, "part")
        return [real_pairs(dataset).digest, normal_images(dataset).digest, held_out_images(dataset).digest]

    before = digests()
    image = root / "part" / "test" / "dot" / "0.png"  # a training image: the lowest third
    content = image.read_bytes()
    image.unlink()
    image.write_bytes(content)
    assert digests() == before
    Image.new("RGB", (40, 40)).save(image)
    assert [old == new for old, new in zip(before, digests(), strict=True)] == [False, True, True]
    folder = pairs_folder(root / "part")
    assert Counter(folder.keys) == {"part/dot": 6, "part/line": 3}
    assert folder.read(16)["part/line"][1].shape == (3, 1, 16, 16)
    tensors = pair_tensors(folder.read(16))
    assert tensors.keys == folder.keys and len(tensors.samples(2)) == 2
    changed = dict(folder.read(16))
    changed["part/dot"] = (changed["part/dot"][0] * 0.5, changed["part/dot"][1])
    assert pair_tensors(changed).digest != tensors.digest


def test_batches_of_the_graph_become_pairs_by_type() -> None:
    images, masks = torch.rand(2, 3, 8, 8), torch.ones(2, 1, 8, 8)
    pairs = pair_batches([images, images[:1], images], [masks, masks[:1], masks], ["a/b", "", "a/b"], "a/generated")
    assert Counter(pairs.keys) == {"a/b": 4, "a/generated": 1}
    assert torch.equal(pairs.read(8)["a/b"][0], torch.cat([images, images]))
    assert pair_batches([images], [masks], [], "a/generated").keys == ["a/generated"] * 2
    for wrong, message in (
        (([images], [], []), "1 batches, 0 of masks"),
        (([images], [masks[:1]], []), "one mask of equal size for each image"),
        (([images, images], [masks, masks], ["a/b"] * 3), "3 of defect_type"),
        (([images, images[..., :4]], [masks, masks[..., :4]], ["a/b"]), "a/b comes in several sizes"),
    ):
        with pytest.raises(InputError, match=message):
            pair_batches(*wrong, "a/generated")


def test_streamed_scores_give_the_same_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    images, masks = torch.rand(7, 3, 48, 48, generator=generator), torch.zeros(7, 1, 48, 48)
    masks[:5, :, 10:20, 10:30] = 1
    model = build_network(2, generator).eval()
    maps, truth = score_images(model, images, batch=3), masks[:, 0].numpy()
    expected = pixel_metrics(list(maps.numpy()), list(truth))
    calls: list[int] = []
    for limit in (2**28, 0):  # in memory, in a file
        monkeypatch.setattr(testing, "IN_MEMORY_BYTES", limit)
        tests = held_out_tensors(images, masks)
        scored = score_tests(model, tests, 48, lambda: calls.append(1), batch=3)
        found = scored.measure()
        assert (found.pixel_auroc, found.pixel_ap) == (expected.auroc, expected.ap)
        assert (found.pixel_f1, found.pixel_pro) == (expected.f1, expected.pro)
        assert found.image_ap == pytest.approx(average_precision_score(np.arange(7) < 5, image_scores(maps).numpy()))
        assert np.array_equal(np.stack(scored.maps), maps.numpy())
    assert len(calls) == 6


def test_curves_lie_on_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    masks = [np.zeros((20, 20), bool) for _ in range(3)]
    masks[0][2:6, 3:9], masks[1][10:12, 10:12], masks[1][0, 0:5] = True, True, True
    maps = [(rng.random((20, 20)) + mask).round(2) for mask in masks]
    curves = detection_curves(maps, masks, points=1000)
    labels, scores = np.stack(masks).ravel(), np.stack(maps).ravel()
    precision, recall, _ = precision_recall_curve(labels, scores)
    known = {(round(r, 9), round(p, 9)) for r, p in zip(recall, precision, strict=True)}
    points = {(round(r, 9), round(p, 9)) for r, p in zip(curves.recall, curves.precision, strict=True)}
    assert points <= known and len(points) > 15
    rates, _, levels = roc_curve(labels, scores, drop_intermediate=False)
    regions = [(0, masks[0]), (1, np.pad(np.ones((2, 2), bool), ((10, 8), (10, 8))))]
    top = np.zeros((20, 20), bool)
    top[0, 0:5] = True
    regions.append((1, top))
    overlaps = [np.mean([(maps[place][region] >= level).mean() for place, region in regions]) for level in levels]
    known = {(round(r, 9), round(o, 9)) for r, o in zip(rates, overlaps, strict=True)}
    assert {
        (round(r, 9), round(o, 9)) for r, o in zip(curves.false_positive_rate, curves.overlap, strict=True)
    } <= known
    assert len(detection_curves(maps, masks, points=5).recall) == 5
    assert detection_curves(maps[2:], masks[2:]) == DetectionCurves()
    full = detection_curves([maps[0]], [np.ones((20, 20), bool)])
    assert full.recall[-1] == 1 and full.overlap == ()


def test_plot_shows_every_method() -> None:
    curve = DetectionCurves((0.5, 1.0), (1.0, 0.5), (0.0, 0.2), (0.4, 1.0))
    image = plot_detection({"a": [1.0, 0.5, 0.2], "b": []}, {"a": curve, "c": DetectionCurves()}, "title")
    assert image.shape == (3, 480, 1500) and 0 <= image.min() and image.max() <= 1
    assert not torch.equal(image, plot_detection({"a": [1.0, 0.5, 0.2], "b": []}, {}, "title"))
