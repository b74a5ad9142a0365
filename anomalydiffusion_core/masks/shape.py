"""How thick and how elongated masks are, how far two sets of masks differ, and which shapes count as like others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..sampling.blending import check_mask

MEASURES = ("area", "thickness", "elongation")


@dataclass(frozen=True)
class Shapes:
    """The shapes of N masks, one entry each.

    area: share of the image. thickness: mean width as a share of the longer side of the image, four times the mean
    distance to the border: the width of a strip, two thirds of the diameter of a disc. elongation: ratio of the axes
    of the ellipse with the same second moments, at least 1; several parts count as one shape, as they do in an
    interrupted scratch.
    """

    area: tuple[float, ...] = ()
    thickness: tuple[float, ...] = ()
    elongation: tuple[float, ...] = ()

    def to_record(self) -> dict[str, list[float]]:
        """For JSON, in five digits."""
        return {name: [float(f"{value:.5g}") for value in getattr(self, name)] for name in MEASURES}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Shapes:
        """Inverse of ``to_record``."""
        return cls(**{field.name: tuple(float(value) for value in record[field.name]) for field in fields(cls)})


def mask_shapes(masks: Tensor) -> Shapes:
    """Shapes of masks [N, 1, H, W] of {0, 1}. Raises InputError for empty masks and masks of other values."""
    check_mask(masks, "masks")
    found = [_shape(mask[0].cpu().numpy() > 0) for mask in masks]
    return Shapes(*(tuple(values) for values in zip(*found, strict=True)))


def factor_apart(first: Sequence[float], second: Sequence[float]) -> float:
    """By which factor the values of two sets differ on average: exp of the Wasserstein distance of their logarithms.

    1 for equal distributions. A set whose values are all twice those of the other is a factor 2 apart.
    """
    from scipy.stats import wasserstein_distance

    return float(np.exp(wasserstein_distance(np.log(first), np.log(second))))


@dataclass(frozen=True)
class ShapeLimits:
    """Least and largest value of each measure."""

    limits: Mapping[str, tuple[float, float]]

    @classmethod
    def around(cls, shapes: Shapes, factor: float) -> ShapeLimits:
        """The range of some shapes, each end moved out by ``factor``. Raises InputError for a factor below 1."""
        if not factor >= 1:
            raise InputError(f"shape_range: {factor:g} is below 1. Give a factor of 1 or more, or 0 for any shape.")
        return cls({name: (min(v) / factor, max(v) * factor) for name in MEASURES if (v := getattr(shapes, name))})

    def verdict(self, pixels: NDArray[np.bool_]) -> str:
        """Why a mask [H, W], not empty, is not like those, "" when it is."""
        for name, value in zip(MEASURES, _shape(pixels), strict=True):
            low, high = self.limits[name]
            if not low <= value <= high:
                shown = "{:.1f}" if name == "elongation" else "{:.2%}"
                inside = f"{shown.format(low)} to {shown.format(high)}"
                return f"{name} unlike training: {shown.format(value)}, {inside} is allowed"
        return ""


def _shape(pixels: NDArray[np.bool_]) -> tuple[float, float, float]:
    from scipy import ndimage

    rows, columns = np.nonzero(pixels)
    window = pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    # At twice the size every width is even, and the mean distance to the border is a quarter of the width exactly.
    large = np.pad(np.repeat(np.repeat(window, 2, 0), 2, 1), 1)
    thickness = 4 * float((ndimage.distance_transform_edt(large)[large] - 0.5).mean()) / 2
    spread = np.cov(np.stack([rows, columns]), bias=True) + np.eye(2) / 12  # a pixel has an extent of its own
    short, long = np.linalg.eigvalsh(spread)
    return float(pixels.mean()), thickness / max(pixels.shape), float(np.sqrt(long / short))
