"""All numbers about generated images of one object, by defect type and as the mean over the types."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...data.mvtec import AnomalyDataset
from ...errors import InputError
from ...figures import to_bytes
from ..metrics.detection import defined
from ..settings import GENERATED
from ..tables.records import ResultRecord, to_record
from .memorization import Nearest, nearest_training_defects
from .scores import ic_lpips, inception_score
from .trunks import Inception, Perceptual

METRICS = {
    "is": "IS",
    "ic_lpips_text": "IC-LPIPS (to the training image, as in the text)",
    "ic_lpips_pairwise": "IC-LPIPS (pairwise, as in the authors' script)",
    "effect_score": "effect score",
    "fill_share": "fill share",
    "nearest_distance": "distance to the nearest training defect",
    "copies_share": "share of likely copies",
}
BATCH = 8
PAPER_SIZE, PAPER_IMAGES = 256, 1000
"""Side in pixels and images of each type in the paper; anything less is a reduced protocol."""


@dataclass(frozen=True)
class GeneratedSet:
    """Generated images of one type and the training pairs they were learned from.

    All are [N, C, s, s] of one size, images in [0, 1] or as bytes. masks: None where the method gives none. effects,
    fills: effect scores and fill shares that are known (see `effect_score`), may be empty.
    """

    images: Tensor
    masks: Tensor | None
    references: Tensor
    reference_masks: Tensor
    effects: tuple[float, ...] = ()
    fills: tuple[float, ...] = ()


@dataclass
class Generation:
    """The metrics of one object.

    by_type: defect -> metric -> value, NaN for undefined. nearest: defect -> comparison with the training defects.
    inception_score_pooled: of all types together.
    """

    inception: str
    lpips: str
    by_type: dict[str, dict[str, float]] = field(default_factory=dict)
    nearest: dict[str, Nearest] = field(default_factory=dict)
    inception_score_pooled: float = math.nan

    def mean(self, metric: str) -> float:
        """Mean over the types for which the metric is defined, as in the paper; NaN when it is for none."""
        values = [row[metric] for row in self.by_type.values() if not math.isnan(row[metric])]
        return statistics.fmean(values) if values else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, None for undefined."""
        metrics = {name: defined(self.mean(name)) for name in METRICS}
        return {
            "kind": "generation",
            "metrics": {**metrics, "is_pooled": defined(self.inception_score_pooled)},
            "by_type": {
                kind: {name: defined(value) for name, value in row.items()} for kind, row in self.by_type.items()
            },
            "trunks": {"inception": self.inception, "lpips": self.lpips},
        }

    def to_record(self, dataset: AnomalyDataset, method: str, seed: int, budget: Mapping[str, Any]) -> ResultRecord:
        """IS and IC-LPIPS as means over the types, for Results Table (Table 1).

        `ic_lpips` is the form of the paper's text; that of the authors' later script is kept as `ic_lpips_pairwise`,
        which no table of the paper shows.

        Args:
            budget: settings of the measurement, with its `size` in pixels.
        """
        fewest = int(min(row["pictures"] for row in self.by_type.values()))
        values = {"is": "is", "ic_lpips": "ic_lpips_text", "ic_lpips_pairwise": "ic_lpips_pairwise"}
        metrics = {name: [self.mean(metric)] for name, metric in values.items()}
        about = {**budget, "fewest_pictures": fewest, "ic_lpips": "as in the text"}
        about |= {"inception": self.inception, "lpips": self.lpips}
        reduced = fewest < PAPER_IMAGES or budget["size"] < PAPER_SIZE
        return to_record(dataset, method, GENERATED, metrics, [seed], about, reduced)


def evaluate_generation(
    sets: Mapping[str, GeneratedSet],
    inception: Inception,
    perceptual: Perceptual,
    splits: int,
    seed: int = 0,
    on_step: Callable[[int], None] = lambda count: None,
) -> Generation:
    """Measure every type.

    ``on_step`` is called with the number of images that went through a network; an exception in it passes on. Raises
    InputError for no types, and what the single metrics refuse.
    """
    if not sets:
        raise InputError("pairs: no images of any type of the data set. Choose another folder.")
    result = Generation(inception.name, perceptual.name)
    everything = []
    for kind, part in sets.items():
        logits = _logits(inception, part.images, on_step)
        everything.append(logits)
        score, deviation = inception_score(logits, splits, seed)
        clusters = ic_lpips(
            lambda one, two: perceptual.distances(one, two, on_step), part.images, part.references, seed=seed
        )
        row = {
            "is": score,
            "is_deviation": deviation,
            "ic_lpips_text": clusters.text,
            "ic_lpips_pairwise": clusters.pairwise,
            "effect_score": statistics.fmean(part.effects) if part.effects else math.nan,
            "fill_share": statistics.fmean(part.fills) if part.fills else math.nan,
            "nearest_distance": math.nan,
            "copies_share": math.nan,
            "pictures": float(len(part.images)),
        }
        if part.masks is not None:
            nearest = nearest_training_defects(part.images, part.masks, part.references, part.reference_masks)
            result.nearest[kind] = nearest
            row["nearest_distance"] = float(nearest.distance.median())
            row["copies_share"] = nearest.copies_share
        result.by_type[kind] = row
    result.inception_score_pooled = inception_score(torch.cat(everything), splits, seed)[0]
    return result


def _logits(inception: Inception, images: Tensor, step: Callable[[int], None]) -> Tensor:
    found = []
    for part in images.split(BATCH):
        pixels = part if part.dtype == torch.uint8 else torch.from_numpy(to_bytes(part))
        found.append(inception.logits(pixels))
        step(len(part))
    return torch.cat(found)
