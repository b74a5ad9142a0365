"""The detector of the evaluation: published layout, honest training, numbers that can be checked."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from real_data import REAL
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from anomalydiffusion_core.data.mvtec import load_dataset, load_images, load_pairs
from anomalydiffusion_core.errors import InputError, TrainingError
from anomalydiffusion_core.evaluation.localization.comparison import ComparisonStep, compare_rows
from anomalydiffusion_core.evaluation.localization.network import DiscriminativeSubNetwork, build_network
from anomalydiffusion_core.evaluation.localization.rows import rows_of
from anomalydiffusion_core.evaluation.localization.runs import Run, RunStore, SharedData
from anomalydiffusion_core.evaluation.localization.sources import NormalSource, held_out_tensors, pair_tensors
from anomalydiffusion_core.evaluation.localization.summary import Comparison, RowResult
from anomalydiffusion_core.evaluation.localization.testing import (
    METRICS,
    LocalizationResult,
    image_scores,
    score_images,
    score_tests,
)
from anomalydiffusion_core.evaluation.localization.training import (
    BatchSampler,
    LocalizerStep,
    LocalizerTraining,
    Pairs,
    focal_loss,
    rotate,
)
from anomalydiffusion_core.evaluation.settings import LocalizerSettings

pytestmark = pytest.mark.core

TINY = LocalizerSettings(size=32, width=2, steps=4, batch_size=4)


def _trained(
    real: Pairs, normals: Tensor, settings: LocalizerSettings, generated: Pairs | None = None
) -> DiscriminativeSubNetwork:
    return LocalizerTraining(real, normals, settings, generated).run()


def _measured(
    model: DiscriminativeSubNetwork, images: Tensor, masks: Tensor, batch: int = 8
) -> tuple[LocalizationResult, Tensor]:
    tests = held_out_tensors(images, masks)
    scored = score_tests(model, tests, images.shape[-1], batch=batch)
    return scored.measure(), torch.from_numpy(scored.maps)


def _surface(count: int, seed: int, size: int = 32) -> Tensor:
    return 0.45 + 0.1 * torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def _squares(count: int, seed: int, size: int = 32) -> tuple[Tensor, Tensor]:
    """Bright 8 px squares on a noisy grey surface."""
    images, masks = _surface(count, seed, size), torch.zeros(count, 1, size, size)
    places = torch.randint(0, size - 8, (count, 2), generator=torch.Generator().manual_seed(seed + 1))
    for index, (y, x) in enumerate(places.tolist()):
        masks[index, :, y : y + 8, x : x + 8] = 1
    return torch.where(masks > 0, images + 0.3, images), masks


def test_layout_of_the_published_network() -> None:
    with torch.device("meta"):
        network = DiscriminativeSubNetwork()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    # 28.37 M parameters, names as in DRAEM's model_unet.py
    assert sum(parameter.numel() for parameter in network.parameters()) == 28_372_418
    assert shapes["encoder_segment.block1.0.weight"] == (64, 3, 3, 3)
    assert shapes["encoder_segment.block1.1.running_mean"] == (64,)
    assert shapes["encoder_segment.block6.3.weight"] == (512, 512, 3, 3)
    assert shapes["decoder_segment.up_b.1.weight"] == (512, 512, 3, 3)
    assert shapes["decoder_segment.db_b.0.weight"] == (512, 1024, 3, 3)
    assert shapes["decoder_segment.up1.1.weight"] == (256, 512, 3, 3)
    assert shapes["decoder_segment.db1.0.weight"] == (256, 768, 3, 3)
    assert shapes["decoder_segment.db2.0.weight"] == (128, 384, 3, 3)
    assert shapes["decoder_segment.db3.4.num_batches_tracked"] == ()
    assert shapes["decoder_segment.up4.1.weight"] == (64, 64, 3, 3)
    assert shapes["decoder_segment.fin_out.0.bias"] == (2,)
    assert len(shapes) == 12 * 7 + 5 * 7 + 10 * 7 + 2


def test_any_size_goes_in_and_comes_out() -> None:
    network = build_network(2, torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 3, 50, 33)).shape == (1, 2, 50, 33)
        assert network(torch.rand(2, 3, 64, 32)).shape == (2, 2, 64, 32)


def test_training_starts_from_defects_being_rare() -> None:
    """At 1 in 100, as the paper of the focal loss does; the normal pixels then teach little."""
    network = build_network(16, torch.Generator().manual_seed(0)).train()
    with torch.no_grad():
        logits = network(torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    assert logits.softmax(1)[:, 1].mean().item() == pytest.approx(0.01, rel=0.3)
    # From a half the normal pixels would begin with a loss of 1/4 log 2, and outweigh the defects.
    assert focal_loss(logits, torch.zeros(4, 1, 64, 64)).item() < 1e-4 * 0.25 * math.log(2)


def test_focal_loss_by_hand() -> None:
    logits = torch.tensor([0.0, math.log(3.0)]).view(1, 2, 1, 1)  # p(defect) = 3/4
    defect, normal = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    assert focal_loss(logits, defect).item() == pytest.approx(-(0.25**2) * math.log(0.75), rel=1e-5)
    assert focal_loss(logits, normal).item() == pytest.approx(-(0.75**2) * math.log(0.25), rel=1e-5)
    assert focal_loss(logits, defect, gamma=0).item() == pytest.approx(-math.log(0.75), rel=1e-5)
    far = torch.tensor([200.0, -200.0]).view(1, 2, 1, 1).requires_grad_()
    focal_loss(far, normal).backward()
    assert torch.isfinite(far.grad).all()  # type: ignore[arg-type]


def test_it_learns_and_finds_what_it_has_not_seen() -> None:
    settings = LocalizerSettings(size=32, width=4, steps=60, batch_size=8)
    model = _trained({"part/square": _squares(6, 1)}, _surface(12, 2), settings)
    images, masks = _squares(8, 50)
    images, masks = torch.cat([images, _surface(8, 60)]), torch.cat([masks, torch.zeros(8, 1, 32, 32)])
    result, maps = _measured(model, images, masks)
    assert result.pixel_ap > 0.9
    assert result.image_auroc > 0.9
    truth = masks.numpy().ravel()
    assert result.pixel_auroc == pytest.approx(roc_auc_score(truth, maps.numpy().ravel()), abs=1e-9)
    assert result.pixel_ap == pytest.approx(average_precision_score(truth, maps.numpy().ravel()), abs=1e-9)
    labels = [1] * 8 + [0] * 8
    assert result.image_auroc == pytest.approx(roc_auc_score(labels, image_scores(maps).numpy()), abs=1e-9)


def test_same_seed_same_weights_and_no_global_randomness() -> None:
    pairs, normals = {"a/b": _squares(3, 1)}, _surface(3, 2)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = _trained(pairs, normals, TINY).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = _trained(pairs, normals, TINY).state_dict()
    other = _trained(pairs, normals, replace(TINY, seed=1)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["encoder_segment.block1.0.weight"], other["encoder_segment.block1.0.weight"])


def test_it_trains_inside_inference_mode_as_nodes_run() -> None:
    with torch.inference_mode():
        pairs, normals = {"a/b": _squares(3, 1)}, _surface(3, 2)
        inside = _trained(pairs, normals, TINY)
        score_images(inside, normals)
    outside = _trained({"a/b": _squares(3, 1)}, _surface(3, 2), TINY)
    weights = zip(inside.state_dict().values(), outside.state_dict().values(), strict=True)
    assert all(torch.equal(left, right) for left, right in weights)


def test_batches_are_half_normal_and_balanced_over_types_and_sources() -> None:
    def flat(values: list[float]) -> tuple[Tensor, Tensor]:
        images = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
        return images, torch.ones(len(values), 1, 32, 32)

    real = {"a/one": flat([0.25]), "a/many": flat([0.5] * 30)}
    generated = {"a/one": flat([0.75] * 200)}
    settings = replace(TINY, batch_size=10, generated_share=0.3)
    sampler = BatchSampler(real, generated, torch.zeros(4, 3, 32, 32), settings)
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(200):
        images, masks = sampler.draw(generator)
        assert masks.amax(dim=(1, 2, 3)).tolist() == [0.0] * 5 + [1.0] * 5
        assert images[:5].abs().max() == 0
        drawn += images[5:, 0, 0, 0].tolist()
    shares = [drawn.count(value) / len(drawn) for value in (0.25, 0.5, 0.75)]
    # 0.7 of real, half for each type however many images it has; four standard deviations of 1000 draws are 0.06
    assert shares == pytest.approx([0.35, 0.35, 0.3], abs=0.06)


def test_augmentation_turns_image_and_mask_together_and_can_be_off() -> None:
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    mask = (image[:, :1] > 0.5).float()
    seen: dict[bool, set[int]] = {}
    for allowed in (True, False):
        settings = replace(TINY, flips=allowed, rotations=allowed)
        sampler = BatchSampler({"a/b": (image, mask)}, {}, torch.zeros(1, 3, 32, 32), settings)
        generator = torch.Generator().manual_seed(0)
        seen[allowed] = set()
        for _ in range(60):
            images, masks = sampler.draw(generator)
            assert torch.equal(masks[2:], (images[2:, :1] > 0.5).float())
            seen[allowed] |= {hash(image.numpy().tobytes()) for image in images[2:]}
    assert (len(seen[True]), len(seen[False])) == (8, 1)


def test_a_quarter_turn_is_that_of_torch() -> None:
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(3))
    mask = (image[:1] > 0.5).float()
    turned, label = rotate(image, mask, math.pi / 2)
    assert torch.allclose(turned, torch.rot90(image, 1, (1, 2)), atol=1e-4)
    assert torch.equal(label, torch.rot90(mask, 1, (1, 2)))


def test_turning_by_any_angle_keeps_label_and_defect_together() -> None:
    rows, columns = torch.meshgrid(torch.arange(64.0) - 31.5, torch.arange(64.0) - 31.5, indexing="ij")
    disc = ((rows - 4).square() + (columns + 9).square() <= 36).float()[None]
    # a small defect in the corner, which leaves the image for most angles
    corner = torch.zeros(1, 64, 64)
    corner[:, :2, :2] = 1
    masks = torch.stack([disc, corner])
    settings = replace(TINY, size=64, flips=False, rotations=False, any_angle=True)
    sampler = BatchSampler({"a/b": (masks.expand(-1, 3, -1, -1), masks)}, {}, torch.zeros(1, 3, 64, 64), settings)
    generator = torch.Generator().manual_seed(0)
    distance, angles, small = math.hypot(4, 9), [], 0
    for _ in range(60):
        images, labels = sampler.draw(generator)
        for image, label in zip(images[2:], labels[2:], strict=True):
            assert label.unique().tolist() == [0.0, 1.0]
            if label.sum() < 60:
                small += 1
                continue
            assert (image[0] - label[0]).abs().mean() < 0.01
            y, x = (float((axis * label[0]).sum() / label.sum()) for axis in (rows, columns))
            assert math.hypot(y, x) == pytest.approx(distance, abs=0.5)
            angles.append(round(math.degrees(math.atan2(-y, x)) % 360))
    unturned = round(math.degrees(math.atan2(-4, -9)) % 360)
    turned = [angle for angle in angles if abs(angle - unturned) > 1]
    assert small
    # half of them, four standard deviations of some 60 draws being a quarter; and all around
    assert len(turned) / len(angles) == pytest.approx(0.5, abs=0.26)
    assert {angle // 90 for angle in turned} == {0, 1, 2, 3}


def test_an_interrupt_passes_on_at_once() -> None:
    class Interrupted(BaseException):
        pass

    steps = []

    def stop(step: LocalizerStep) -> None:
        steps.append(step.step)
        if step.step == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        LocalizerTraining({"a/b": _squares(3, 1)}, _surface(3, 2), TINY).run(stop)
    assert steps == [1, 2]


def test_bad_input_is_named() -> None:
    pairs, normals = {"a/b": _squares(3, 1)}, _surface(3, 2)
    images, masks = pairs["a/b"]
    empty = masks.clone()
    empty[1] = 0
    with pytest.raises(InputError, match="mask 1 of a/b is empty"):
        LocalizerTraining({"a/b": (images, empty)}, normals, TINY)
    with pytest.raises(InputError, match="normals"):
        LocalizerTraining(pairs, normals[:0], TINY)
    for name, value in (("steps", 0), ("size", 8), ("learning_rate", 1e3), ("generated_share", 2.0)):
        with pytest.raises(InputError, match=f"{name}: {value}"):
            replace(TINY, **{name: value})
    with pytest.raises(TrainingError, match="step 1"):
        _trained({"a/b": (images * float("inf"), masks)}, normals, TINY)


def test_image_score_is_the_best_window_mean() -> None:
    maps = torch.zeros(2, 40, 40)
    maps[0, 10:17, 12:19] = 0.9  # 49 of 441 pixels of a window
    maps[1, 0, 0] = 1.0
    assert image_scores(maps).tolist() == pytest.approx([0.9 * 49 / 441, 1 / 441], rel=1e-5)


def test_maps_have_the_size_of_the_images() -> None:
    model = build_network(2, torch.Generator().manual_seed(0)).train()
    images, masks = _squares(5, 1, size=48)
    result, maps = _measured(model, images, masks, batch=2)
    assert maps.shape == (5, 48, 48)
    assert 0 <= maps.min() and maps.max() <= 1
    assert model.training
    assert math.isnan(result.image_auroc)  # no normal image in this test set
    assert result.as_dict()["image_auroc"] is None


def test_comparison_runs_the_same_training_without_and_with(tmp_path: Path) -> None:
    real, generated = {"a/b": _squares(3, 1)}, {"a/b": _squares(5, 9)}
    normals = _surface(4, 2)
    test_images, test_masks = _squares(4, 30)
    test_images = torch.cat([test_images, _surface(2, 40)])
    test_masks = torch.cat([test_masks, torch.zeros(2, 1, 32, 32)])
    data = SharedData(
        pair_tensors(real), NormalSource("", 4, lambda size: normals), held_out_tensors(test_images, test_masks)
    )
    rows = rows_of(("few real", "both"), {"ours": pair_tensors(generated)})
    steps: list[ComparisonStep] = []
    comparison = compare_rows(rows, data, TINY, (3, 4), RunStore(tmp_path), range(6), steps.append)
    assert [(step.done, step.total, step.row.key, step.seed) for step in steps[3:5]] == [
        (4, 16, "without", 3),
        (5, 16, "without", 4),
    ]
    assert steps[-1].done == steps[-1].total == 16
    expected, maps = _measured(_trained(real, normals, replace(TINY, seed=4)), test_images, test_masks)
    assert comparison["without"].runs[1].result == expected
    assert comparison["with"].runs[0].maps.shape == maps.shape
    with_pairs = _trained(real, normals, replace(TINY, seed=3), generated)
    assert _measured(with_pairs, test_images, test_masks)[0] == comparison["with"].runs[0].result
    assert len(comparison["with"].runs[0].losses) == 4


def test_mean_spread_table_and_json() -> None:
    def run(value: float, image: float) -> Run:
        values = {name: image if name.startswith("image") else value for name in METRICS}
        return Run(LocalizationResult(**values), torch.zeros(0, 32, 32))

    few_real, both = rows_of(("few real", "both"), {"ours": pair_tensors({})})
    comparison = Comparison(TINY, (0, 1, 2))
    values = (0.5, 0.6, 0.8)
    comparison.rows.append(RowResult(few_real, (0, 1, 2), [run(value, float("nan")) for value in values]))
    comparison.rows.append(RowResult(both, (0, 1, 2), [run(value, 1.0) for value in (0.7, 0.7, 0.7)]))
    assert comparison["without"].mean("pixel_ap") == pytest.approx(np.mean(values))
    assert comparison["without"].spread("pixel_ap") == pytest.approx(np.std(values, ddof=1))
    rows = comparison.markdown().splitlines()
    assert rows[0].count("|") == rows[2].count("|") == 9
    assert "| few real pairs | 0.633 +- 0.153 |" in rows[2]
    assert rows[2].endswith("| undefined | undefined | undefined |")
    assert "| few real + generated pairs | 0.700 +- 0.000 |" in rows[3]
    as_json = json.loads(json.dumps(comparison.as_dict(), allow_nan=False))
    assert as_json["sets"]["without"]["mean"]["image_ap"] is None
    assert as_json["sets"]["with"]["runs"][2]["seed"] == 2


@pytest.mark.skipif(not (REAL / "bottle").is_dir(), reason=f"no real images at {REAL}")
def test_real_bottles() -> None:
    dataset = load_dataset(REAL, "bottle")
    pairs = {kind.key: load_pairs(kind.train, 64) for kind in dataset.types}
    normals = load_images(dataset.normals[:40], 64)
    model = _trained(pairs, normals, LocalizerSettings(size=64, width=8, steps=40))
    images, masks = load_pairs([pair for kind in dataset.types for pair in kind.test[:5]], 64)
    good = load_images(dataset.test_normals[:8], 64)
    result, _ = _measured(model, torch.cat([images, good]), torch.cat([masks, torch.zeros(len(good), 1, 64, 64)]))
    # far from converged, but far from chance: AP of chance is the share of defect pixels
    assert result.pixel_auroc > 0.7
    assert result.pixel_ap > 2 * masks.sum() / (64 * 64 * (len(masks) + len(good)))
