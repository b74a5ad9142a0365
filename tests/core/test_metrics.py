"""Metrics against scikit-learn, against plain definitions, and where they are undefined."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.evaluation.metrics import detection
from anomalydiffusion_core.evaluation.metrics.counting import counts_of
from tests.support.pixels import pixel_metrics

pytestmark = pytest.mark.core


def auroc(scores: NDArray, labels: NDArray) -> float:
    return detection.auroc(counts_of(scores, labels))


def average_precision(scores: NDArray, labels: NDArray) -> float:
    return detection.average_precision(counts_of(scores, labels))


def f1_max(scores: NDArray, labels: NDArray) -> float:
    return detection.f1_max(counts_of(scores, labels))


def pro(maps: list[NDArray], masks: list[NDArray], limit: float = 0.3) -> float:
    return pixel_metrics(maps, masks, limit).pro


def _sample(kind: str, seed: int) -> tuple[NDArray, NDArray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(700) < 0.1).astype(np.float32)
    scores = rng.normal(size=700) + labels
    if kind == "ties":
        scores = np.round(scores * 2) / 2
    if kind == "narrow":
        scores = 0.51 + 0.03 * (scores - scores.min()) / np.ptp(scores)
    if kind == "float32":
        scores = scores.astype(np.float32)
    return scores, labels


@pytest.mark.parametrize("kind", ["plain", "ties", "narrow", "float32"])
@pytest.mark.parametrize("seed", range(3))
def test_agreement_with_scikit_learn(kind: str, seed: int) -> None:
    scores, labels = _sample(kind, seed)
    precision, recall, _ = precision_recall_curve(labels, scores)
    best = np.nanmax(2 * precision * recall / np.maximum(precision + recall, 1e-300))
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(scores, labels) == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert f1_max(scores, labels) == pytest.approx(best, abs=1e-12)


def test_values_by_hand() -> None:
    scores, labels = np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 0, 1, 0])
    assert auroc(scores, labels) == 0.75  # 3 of 4 pairs in order
    assert average_precision(scores, labels) == pytest.approx((1 + 2 / 3) / 2)
    assert f1_max(scores, labels) == pytest.approx(2 * 2 / (3 + 2))
    assert auroc(-scores, labels) == 0.25


def test_perfect_and_constant_scores() -> None:
    labels = np.array([[0, 0, 1], [0, 0, 0]])
    assert (auroc(labels * 0.1, labels), average_precision(labels * 0.1, labels), f1_max(labels * 0.1, labels)) == (
        1,
        1,
        1,
    )
    constant = np.full(labels.shape, 0.5)
    assert auroc(constant, labels) == 0.5
    assert average_precision(constant, labels) == pytest.approx(1 / 6)
    assert f1_max(constant, labels) == pytest.approx(2 / 7)


def test_undefined_is_nan() -> None:
    scores = np.array([0.1, 0.9])
    nothing, everything = np.zeros(2), np.ones(2)
    assert math.isnan(auroc(scores, nothing))
    assert math.isnan(auroc(scores, everything))
    assert math.isnan(average_precision(scores, nothing))
    assert math.isnan(f1_max(scores, nothing))
    assert average_precision(scores, everything) == 1
    assert f1_max(scores, everything) == 1
    assert math.isnan(auroc(scores[:0], nothing[:0]))
    assert math.isnan(pro([scores[None]], [nothing[None]]))
    assert math.isnan(pro([scores[None]], [everything[None]]))


def _pro_from_the_definition(maps: list[NDArray], masks: list[NDArray], limit: float) -> float:
    """Every threshold one after the other, regions by flood fill, trapezoids up to the limit."""
    regions = []
    for number, mask in enumerate(masks):
        left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
        while left:
            region, border = set(), [left.pop()]
            while border:
                y, x = border.pop()
                region.add((y, x))
                near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
                left -= near
                border += near
            regions.append((number, region))
    normals = sum(int((mask == 0).sum()) for mask in masks)
    points = [(0.0, 0.0)]
    for threshold in sorted({float(value) for values in maps for value in values.ravel()}, reverse=True):
        false = sum(int(((values >= threshold) & (mask == 0)).sum()) for values, mask in zip(maps, masks, strict=True))
        overlaps = [sum(maps[n][place] >= threshold for place in region) / len(region) for n, region in regions]
        points.append((false / normals, sum(overlaps) / len(overlaps)))
    area = 0.0
    for (x0, y0), (x1, y1) in zip(points[:-1], points[1:], strict=True):
        if x0 >= limit:
            break
        end = min(x1, limit)
        y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0) if x1 > x0 else y1
        area += (end - x0) * (y0 + y_end) / 2
    return area / limit


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("levels", [4, 30, 0])
def test_pro_against_its_definition(limit: float, levels: int) -> None:
    rng = np.random.default_rng(levels)
    maps, masks = [], []
    for size in ((12, 9), (7, 15), (10, 10)):
        mask = (rng.random(size) < 0.12).astype(np.float64)
        values = rng.random(size) + 0.4 * mask
        maps.append(np.round(values * levels) / levels if levels else values)
        masks.append(mask)
    masks[2][:] = 0
    assert pro(maps, masks, limit) == pytest.approx(_pro_from_the_definition(maps, masks, limit), abs=1e-12)


def test_pro_weighs_regions_not_pixels() -> None:
    mask = np.zeros((20, 20))
    mask[0:10, 0:10] = 1
    mask[15, 15] = 1
    large_only, small_only = np.zeros((20, 20)), np.zeros((20, 20))
    large_only[0:10, 0:10] = 1
    small_only[15, 15] = 1
    # half of the regions at once; the rest comes in along the line to (1, 1): 0.5 + 0.5 * limit / 2
    expected = 0.5 + 0.5 * 0.3 / 2
    assert pro([large_only], [mask]) == pytest.approx(expected)
    assert pro([small_only], [mask]) == pytest.approx(expected)


def test_pro_connects_diagonally() -> None:
    diagonal = np.eye(6)
    scores = np.zeros((6, 6))
    scores[0, 0] = 1
    assert pro([scores], [diagonal], limit=1.0) == pytest.approx(1 / 6 + 5 / 6 / 2)


def test_pro_of_chance_perfect_and_hostile_scores() -> None:
    mask = np.zeros((10, 10))
    mask[2:4, 2:4] = 1
    assert pro([mask], [mask]) == 1.0
    assert pro([np.zeros((10, 10))], [mask]) == pytest.approx(0.15)  # the diagonal up to 0.3
    assert pro([1 - mask], [mask]) == pytest.approx(0.0)
    for seed in range(20):
        narrow = 0.51 + 0.03 * np.random.default_rng(seed).random((10, 10))
        assert 0 <= pro([narrow + mask], [mask]) <= 1


def test_all_four_at_once_match_the_single_ones() -> None:
    rng = np.random.default_rng(5)
    masks = [(rng.random((16, 16)) < 0.1).astype(np.float32) for _ in range(4)]
    maps = [rng.random((16, 16)).astype(np.float32) + 0.3 * mask for mask in masks]
    together = pixel_metrics(maps, masks)
    scores, labels = np.stack(maps), np.stack(masks)
    assert together.auroc == auroc(scores, labels)
    assert together.ap == average_precision(scores, labels)
    assert together.f1 == f1_max(scores, labels)


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="NaN"):
        auroc(np.array([0.1, np.nan]), np.array([0, 1]))
    with pytest.raises(InputError, match="other than 0 and 1"):
        f1_max(np.array([0.1, 0.2]), np.array([0, 255]))
    with pytest.raises(InputError, match=r"shape \(2,\), labels \(3,\)"):
        average_precision(np.zeros(2), np.zeros(3))
    with pytest.raises(InputError, match="limit: 0"):
        pro([np.eye(3)], [np.eye(3)], limit=0)
