"""Metrics of many images in bounded memory: against scikit-learn, against the exact path, and their own bound."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.evaluation.metrics.histogram import ScoreHistogram
from anomalydiffusion_core.evaluation.metrics.pixels import StreamingPixelMetrics, fit_ground_truth
from tests.support.pixels import pixel_metrics

pytestmark = pytest.mark.core


def _images(kind: str, count: int = 6, size: int = 48) -> tuple[list[NDArray], list[NDArray]]:
    rng = np.random.default_rng(11)
    maps, masks = [], []
    for number in range(count):
        mask = np.zeros((size, size), dtype=np.float32)
        if number % 3:
            mask[8 : 8 + 5 * number, 10:20] = 1
            mask[40:43, 30 : 30 + number] = 1
        logits = rng.normal(-5, 2, (size, size)) + 4 * mask
        values = 1 / (1 + np.exp(-logits))
        if kind == "narrow":
            values = 0.51 + 0.03 * values
        if kind == "signed":
            values = logits
        maps.append(values.astype(np.float64 if kind == "float64" else np.float32))
        masks.append(mask)
    return maps, masks


def _streamed(maps: list[NDArray], masks: list[NDArray]) -> StreamingPixelMetrics:
    metrics = StreamingPixelMetrics(exact_samples=0)
    for values, mask in zip(maps, masks, strict=True):
        metrics.update(values, mask)
    return metrics


@pytest.mark.parametrize("kind", ["probabilities", "narrow", "signed", "float64"])
def test_table_agrees_with_scikit_learn(kind: str) -> None:
    maps, masks = _images(kind)
    scores, labels = np.stack(maps).ravel(), np.stack(masks).ravel()
    precision, recall, _ = precision_recall_curve(labels, scores)
    found = _streamed(maps, masks).compute()
    assert found.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-4)
    assert found.ap == pytest.approx(average_precision_score(labels, scores), abs=1e-4)
    assert found.f1 == pytest.approx(np.max(2 * precision * recall / (precision + recall + 1e-300)), abs=1e-4)
    assert found.pro == pytest.approx(pixel_metrics(maps, masks).pro, abs=1e-4)


def test_a_narrow_range_of_float32_is_counted_exactly() -> None:
    maps, masks = _images("narrow")
    exact, table = pixel_metrics(maps, masks), _streamed(maps, masks).compute()
    assert table == exact and table.max_error == 0.0


@pytest.mark.parametrize("kind", ["probabilities", "signed"])
@pytest.mark.parametrize("bins", [16, 256])
def test_the_error_of_a_coarse_table_stays_within_its_bound(kind: str, bins: int) -> None:
    maps, masks = _images(kind)
    exact, coarse = pixel_metrics(maps, masks), StreamingPixelMetrics(exact_samples=0)
    coarse._histogram = ScoreHistogram(bins)
    for values, mask in zip(maps, masks, strict=True):
        coarse.update(values, mask)
    found = coarse.compute()
    errors = [abs(getattr(found, name) - getattr(exact, name)) for name in ("auroc", "ap", "f1", "pro")]
    assert 0 < max(errors) <= found.max_error < 1
    assert max(found.auroc, found.ap, found.f1, found.pro) <= 1


def test_the_order_of_the_images_makes_no_difference() -> None:
    maps, masks = _images("signed")
    forward, backward = _streamed(maps, masks).compute(), _streamed(maps[::-1], masks[::-1]).compute()
    for name in ("auroc", "ap", "f1", "pro", "max_error"):
        assert getattr(forward, name) == pytest.approx(getattr(backward, name), abs=1e-12)


def test_table_places_are_the_order_of_floating_point_numbers() -> None:
    values = [-3.5, -1e-30, -0.0, 0.0, 1e-40, 2e-8, 0.5, 7.0]
    histogram = ScoreHistogram()
    scores = np.array(values, dtype=np.float32)
    histogram.add(scores, np.ones(len(scores), dtype=bool), np.ones(len(scores)))
    counts, _ = histogram.counts()
    assert counts.hits.tolist() == [1, 1, 1, 1, 2, 1, 1]  # from the highest: the two zeros are one
    # 2^20 places over the 2^31 patterns from -3.5 to 7: steps of 2^11 at least
    patterns = [struct.unpack("<I", struct.pack("<f", value))[0] for value in (3.5, 7.0)]
    assert sum(patterns) // 2**histogram._shift <= 2**20 < sum(patterns) // 2 ** (histogram._shift - 1) + 2


def test_kept_images_are_counted_on_when_there_are_too_many() -> None:
    maps, masks = _images("probabilities")
    metrics = StreamingPixelMetrics(exact_samples=3 * maps[0].size)
    for values, mask in zip(maps[:3], masks[:3], strict=True):
        metrics.update(values, mask)
    assert metrics.compute() == pixel_metrics(maps[:3], masks[:3])
    for values, mask in zip(maps[3:], masks[3:], strict=True):
        metrics.update(values, mask)
    assert metrics.compute().auroc == pytest.approx(roc_auc_score(np.ravel(masks), np.ravel(maps)), abs=1e-6)
    assert metrics.compute(pro_limit=0.05).pro == pytest.approx(pixel_metrics(maps, masks, 0.05).pro, abs=1e-5)


@pytest.mark.parametrize("exact_samples", [0, 2**20])
def test_undefined_and_constant(exact_samples: int) -> None:
    def measured(scores: NDArray, mask: NDArray) -> tuple[float, ...]:
        metrics = StreamingPixelMetrics(exact_samples)
        metrics.update(scores, mask)
        found = metrics.compute()
        return found.auroc, found.ap, found.f1, found.pro, found.max_error

    scores = np.random.default_rng(0).random((9, 9)).astype(np.float32)
    nothing, everything, some = np.zeros((9, 9)), np.ones((9, 9)), np.eye(9)
    assert all(math.isnan(value) for value in measured(scores, nothing)[:4])
    area, precision, best, overlap, _ = measured(scores, everything)
    assert math.isnan(area) and math.isnan(overlap) and precision == best == 1
    constant = measured(np.full((9, 9), 0.25, dtype=np.float32), some)
    assert constant == pytest.approx((0.5, 1 / 9, 2 / 10, 0.15, 0.0))


def test_every_metric_sees_the_mask_resized_by_one_rule() -> None:
    large = np.zeros((40, 40))
    large[8:20, 8:20] = 1  # three by three of the blocks of four
    large[30, 0:40] = 1  # a line a quarter of a block high is no majority, but its skeleton stays
    small = np.zeros((10, 10))
    small[2:5, 2:5] = 1
    small[7] = 1
    scores = np.random.default_rng(1).random((10, 10))
    assert np.array_equal(fit_ground_truth(large, (10, 10)), small)
    assert pixel_metrics([scores], [large]) == pixel_metrics([scores], [small])
    line = np.zeros((40, 40))
    line[30] = 1
    assert np.flatnonzero(fit_ground_truth(line, (10, 10)).any(axis=1)).tolist() == [7]  # never lost
    with pytest.raises(InputError, match="other than 0 and 1"):
        fit_ground_truth(large * 255, (10, 10))


def test_generators_are_read_and_mistakes_named() -> None:
    maps, masks = _images("probabilities")
    assert pixel_metrics(iter(maps), iter(masks)) == pixel_metrics(maps, masks)
    with pytest.raises(InputError, match="score maps: none"):
        pixel_metrics([], [])
    with pytest.raises(InputError, match="float64 after float32"):
        _streamed([maps[0], maps[1].astype(np.float64)], masks[:2])
    with pytest.raises(InputError, match="limit: 2"):
        pixel_metrics(iter(maps), iter(masks), pro_limit=2)
