"""Curves of a detector for plots: precision over recall, and overlap with the regions over the false positive rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...figures import figure_tensor, new_figure
from ..metrics.pixels import PRO_LIMIT, region_weights

POINTS = 200


@dataclass(frozen=True)
class DetectionCurves:
    """Points of the curves, from the highest threshold down; empty where a curve is undefined.

    Attributes:
        recall, precision: over the pixels of all images.
        false_positive_rate, overlap: share of normal pixels and mean share of the defect regions (8-connected
            components) at or above the threshold.
    """

    recall: Sequence[float] = ()
    precision: Sequence[float] = ()
    false_positive_rate: Sequence[float] = ()
    overlap: Sequence[float] = ()


def detection_curves(
    maps: Sequence[NDArray] | NDArray, masks: Sequence[NDArray] | NDArray, points: int = POINTS
) -> DetectionCurves:
    """Curves at quantiles of the scores of the defect pixels; the metrics are not computed from these.

    Args:
        maps, masks: [H,W] each, scores and {0,1} or bool.
        points: at most so many thresholds.
    """
    defect = [values[mask > 0] for values, mask in zip(maps, masks, strict=True)]
    everything = np.concatenate(defect) if defect else np.zeros(0)
    if not everything.size:
        return DetectionCurves()
    levels = np.unique(np.quantile(everything, np.linspace(0, 1, points), method="nearest"))
    found, passed = np.zeros(len(levels)), np.zeros(len(levels))
    covered, regions, normals = np.zeros(len(levels)), 0, 0
    for values, mask, inside in zip(maps, masks, defect, strict=True):
        outside = values[mask == 0]
        passed += _reaching(outside, levels)
        normals += outside.size
        if inside.size:
            found += _reaching(inside, levels)
            shares = region_weights(mask > 0)
            covered += _reaching(inside, levels, shares)
            regions += round(float(shares.sum()))
    recall, precision = found / everything.size, found / (found + passed)
    if not normals:
        return DetectionCurves(recall[::-1].tolist(), precision[::-1].tolist())
    rate, overlap = passed / normals, covered / regions
    return DetectionCurves(*(values[::-1].tolist() for values in (recall, precision, rate, overlap)))


def plot_detection(
    losses: Mapping[str, Sequence[float]],
    curves: Mapping[str, DetectionCurves],
    title: str = "",
    size: tuple[int, int] = (1500, 480),
) -> Tensor:
    """Three panels as [3,H,W] in [0,1]: loss of each step, precision over recall, overlap over false positive rate.

    Args:
        losses, curves: name of the method -> what to plot; a method may lack either.
        size: (width, height) in pixels.
    """
    figure = new_figure(size)
    panels = figure.subplots(1, 3)
    names = list(dict.fromkeys([*losses, *curves]))
    colors = {name: f"C{number}" for number, name in enumerate(names)}
    for name, values in losses.items():
        steps, smooth = _smoothed(values)
        panels[0].plot(steps, smooth, color=colors[name], label=name)
    for name, curve in curves.items():
        panels[1].plot(curve.recall, curve.precision, color=colors[name], label=name)
        panels[2].plot(curve.false_positive_rate, curve.overlap, color=colors[name], label=name)
    panels[0].set(title="training", xlabel="step", ylabel="loss, moving average")
    panels[1].set(title="pixels of the test set", xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    panels[2].set(
        title="regions of the test set", xlabel="false positive rate", ylabel="mean overlap", xlim=(0, PRO_LIMIT)
    )
    panels[2].set_ylim(0, 1.02)
    for panel in panels:
        panel.grid(alpha=0.3)
    handles = {label: line for panel in panels for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(len(handles), 4))
    if title:
        figure.suptitle(title)
    return figure_tensor(figure)


def _reaching(values: NDArray, levels: NDArray, weights: NDArray | None = None) -> NDArray:
    """Number (or weight) of values at or above each of the ascending levels."""
    places = np.searchsorted(levels, values, side="right")
    counted = np.bincount(places, weights, len(levels) + 1)
    return np.cumsum(counted[::-1])[::-1][1:]


def _smoothed(values: Sequence[float]) -> tuple[NDArray, NDArray]:
    points = np.asarray(list(values), dtype=np.float64)
    window = max(len(points) // 20, 1)
    if not len(points):
        return points, points
    smooth = np.convolve(points, np.ones(window) / window, mode="valid")
    return np.arange(window, len(points) + 1), smooth
