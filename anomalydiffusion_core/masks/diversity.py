"""How diverse new masks are, and how many of them are copies of the training masks.

The published code keeps every mask that its threshold leaves, so copies and off-object masks go unseen. Intersection
over union (IoU) with the nearest training mask tells copies; a copy at another place is found with both masks
centred.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.mask_resizing import resize_mask
from ..figures import figure_tensor, new_figure
from ..sampling.blending import check_mask
from .shape import MEASURES, Shapes, factor_apart, mask_shapes

COPY_IOU = 0.8
"""A mask that overlaps a training mask by more than this is called a copy."""
COMPARED_SIDE = 256
"""Masks are compared in place at this size in pixels at most."""
CENTRED_SIDE = 128
_CHUNK = 256


@dataclass(frozen=True)
class MaskDiversity:
    """Values of N masks, one entry each; of the M training masks where the name says so.

    shapes: area, thickness and elongation. centres: (x, y) of the centres of mass, 0 to 1 from the left and the top.
    among: IoU with the nearest other mask of the same set, empty for a single one. nearest, centred: IoU with the
    nearest training mask in place, and with both moved to one centre; empty without training masks. nearest_place:
    which one that is (in place).
    """

    shapes: Shapes
    centres: tuple[tuple[float, float], ...]
    among: tuple[float, ...]
    nearest: tuple[float, ...] = ()
    nearest_place: tuple[int, ...] = ()
    centred: tuple[float, ...] = ()
    training_shapes: Shapes = Shapes()
    training_centres: tuple[tuple[float, float], ...] = ()
    training_among: tuple[float, ...] = ()

    def describe(self, copy_iou: float = COPY_IOU) -> str:
        """The values as lines of plain text; ``copy_iou``: IoU above which a mask counts as a copy."""
        count, training_count = len(self.centres), len(self.training_centres)
        trained = training_count > 0
        lines = [
            f"{count} masks" + (f", {training_count} training masks" if trained else ""),
            *(f"{name}: {self._measure(name)}" for name in MEASURES),
            "centre: " + _with(_spread(self.centres), _spread(self.training_centres)),
        ]
        if trained:
            for what, values in (("", self.nearest), (", both moved to one centre", self.centred)):
                copies = sum(value > copy_iou for value in values)
                lines.append(
                    f"IoU with the nearest training mask{what}: {_middle(values)}; {copies} above {copy_iou:g}"
                )
        if self.among:
            copies = sum(value > copy_iou for value in self.among)
            training = _middle(self.training_among) if self.training_among else ""
            lines.append(
                f"IoU with the nearest other mask: {_with(_middle(self.among), training)}; {copies} above {copy_iou:g}"
            )
        return "\n".join(lines)

    def distances(self) -> dict[str, float]:
        """By which factor area, thickness and elongation differ from the training masks; empty without them."""
        pairs = {name: (getattr(self.shapes, name), getattr(self.training_shapes, name)) for name in MEASURES}
        return {name: factor_apart(own, training) for name, (own, training) in pairs.items() if training}

    def _measure(self, name: str) -> str:
        own, training = (_range(getattr(shapes, name), name) for shapes in (self.shapes, self.training_shapes))
        apart = f"; a factor {self.distances()[name]:.2f} apart" if training else ""
        return _with(own, training) + apart


def measure_diversity(masks: Tensor, training: Tensor | None = None) -> MaskDiversity:
    """Measure masks [N, 1, H, W] of {0, 1}, none empty, against training masks [M, 1, h, w] of any size.

    Sizes above 256 px are compared at 256 px, shapes moved to one centre at 128 px. Raises InputError for empty masks
    and masks of other values.
    """
    check_mask(masks, "masks")
    shapes, centres = mask_shapes(masks), _centres_of(masks)
    small = _at(masks, COMPARED_SIDE)
    if training is None:
        return MaskDiversity(shapes, centres, _among(small))
    check_mask(training, "training masks")
    height, width = small.shape[-2:]
    references = resize_mask(training, (height, width))
    overlaps = _iou(small, references)
    nearest, places = overlaps.max(dim=1)
    return MaskDiversity(
        shapes,
        centres,
        _among(small),
        tuple(nearest.tolist()),
        tuple(places.tolist()),
        _centred_iou(_at(small, CENTRED_SIDE), _at(references, CENTRED_SIDE)),
        mask_shapes(training),
        _centres_of(training),
        _among(references),
    )


def _at(masks: Tensor, side: int) -> Tensor:
    factor = side / max(masks.shape[-2:])
    if factor >= 1:
        return masks
    height, width = (max(1, round(x * factor)) for x in masks.shape[-2:])
    return resize_mask(masks, (height, width))


def _centres_of(masks: Tensor) -> tuple[tuple[float, float], ...]:
    pixels = masks[:, 0].double()
    total = pixels.sum(dim=(1, 2))
    found = []
    for dimension, length in ((1, masks.shape[-1]), (2, masks.shape[-2])):
        positions = (torch.arange(length, dtype=torch.float64) + 0.5) / length
        found.append((pixels.sum(dim=dimension) * positions).sum(dim=1) / total)
    return tuple(zip(*(values.tolist() for values in found), strict=True))


def _iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of every mask of [N, 1, H, W] with every one of [M, 1, H, W], as [N, M]."""
    others = second.flatten(1)
    rows = []
    for start in range(0, len(first), _CHUNK):
        own = first[start : start + _CHUNK].flatten(1)
        shared = own @ others.T
        rows.append(shared / (own.sum(dim=1)[:, None] + others.sum(dim=1)[None] - shared))
    return torch.cat(rows)


def _among(masks: Tensor) -> tuple[float, ...]:
    if len(masks) < 2:
        return ()
    overlaps = _iou(masks, masks)
    overlaps.fill_diagonal_(-1)
    return tuple(overlaps.amax(dim=1).tolist())


def _centred_iou(masks: Tensor, training: Tensor) -> tuple[float, ...]:
    """The best IoU with a training mask when both have their centres of mass in one place, give or take a pixel."""
    own, others = _centred(masks), _centred(training)
    best = torch.zeros(len(masks))
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            moved = torch.roll(others, (down, right), dims=(2, 3))
            best = torch.maximum(best, _iou(own, moved).amax(dim=1))
    return tuple(best.tolist())


def _centred(masks: Tensor) -> Tensor:
    """Each mask moved so that its centre of mass is the middle of a canvas twice as large."""
    height, width = masks.shape[-2:]
    # One pixel more on every side than a mask can need, so that nothing wraps around.
    canvas = F.pad(masks, (width // 2 + 2,) * 2 + (height // 2 + 2,) * 2)
    moved = []
    for mask, (x, y) in zip(canvas, _centres_of(masks), strict=True):
        shift = (round((0.5 - y) * height), round((0.5 - x) * width))
        moved.append(torch.roll(mask, shift, dims=(1, 2)))
    return torch.stack(moved)


def plot_diversity(measured: MaskDiversity, title: str = "", size: tuple[int, int] = (1080, 640)) -> Tensor:
    """Shapes, centres and nearest IoU beside each other, training masks in orange: [3, H, W] in [0, 1].

    size: (width, height) in pixels.
    """
    figure = new_figure(size)
    panels = figure.subplots(2, 3)
    sets = [("masks", "C0", measured.shapes, measured.centres)]
    if measured.training_centres:
        sets.append(("training", "C1", measured.training_shapes, measured.training_centres))
    for axes, measure in zip(panels[0], MEASURES, strict=True):
        _histogram(axes, measure, [(name, colour, getattr(shapes, measure)) for name, colour, shapes, _ in sets])
    centres, overlaps, empty = panels[1]
    empty.set_axis_off()
    for name, colour, _, places in sets:
        centres.scatter(*zip(*places, strict=True), s=18, color=colour, alpha=0.7, label=name)
    centres.set(xlim=(0, 1), ylim=(1, 0), aspect="equal", title="centre of mass")
    bins = np.linspace(0, 1, 21)
    curves: list[tuple[str, str, Sequence[float]]] = [("nearest other mask", "C2", measured.among)]
    if measured.training_centres:
        curves = [
            ("nearest training mask", "C0", measured.nearest),
            ("the same, centred", "C3", measured.centred),
            ("training among themselves", "C1", measured.training_among),
        ]
    for name, colour, iou in curves:
        if iou:
            weights = np.full(len(iou), 1 / len(iou))
            overlaps.hist(iou, bins=bins, weights=weights, histtype="step", linewidth=1.8, color=colour, label=name)
    overlaps.set(xlim=(0, 1), xlabel="IoU", ylabel="share of masks", title="nearest IoU")
    for axes in (panels[0][0], overlaps):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    figure.suptitle(title)
    return figure_tensor(figure)


def _histogram(axes: Any, measure: str, sets: Sequence[tuple[str, str, Sequence[float]]]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    every = np.concatenate([np.asarray(values) for _, _, values in sets])
    edges = np.geomspace(every.min() * 0.9, every.max() * 1.1, 16)
    for name, colour, values in sets:
        weights = np.full(len(values), 1 / len(values))
        axes.hist(values, bins=edges, weights=weights, color=colour, alpha=0.6, label=name)
    ratio = measure == "elongation"
    label = {"area": "share of the image", "thickness": "share of the longer side", "elongation": "ratio of the axes"}
    axes.set(xscale="log", xlabel=label[measure], ylabel="share of masks", title=measure)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}" if ratio else f"{100 * x:g}%"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _range(values: Sequence[float], name: str) -> str:
    if not values:
        return ""
    shown = "{:.1f}" if name == "elongation" else "{:.2%}"
    low, high, middle = (shown.format(value) for value in (min(values), max(values), median(values)))
    return f"{low} to {high}, median {middle}"


def _spread(centres: Sequence[tuple[float, float]]) -> str:
    if not centres:
        return ""
    found = np.asarray(centres)
    low, high, deviation = found.min(axis=0), found.max(axis=0), found.std(axis=0)
    return ", ".join(
        f"{name} {low[i]:.2f} to {high[i]:.2f} (deviation {deviation[i]:.2f})" for i, name in enumerate("xy")
    )


def _middle(values: Sequence[float]) -> str:
    return f"median {median(values):.2f}, largest {max(values):.2f}"


def _with(own: str, training: str) -> str:
    return f"{own} (training: {training})" if training else own
