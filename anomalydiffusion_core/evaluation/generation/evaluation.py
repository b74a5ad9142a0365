"""All numbers about generated pictures of one object, by defect type and as the mean over the types."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ...figures import to_bytes
from ..metrics import defined
from .ic_lpips import MOST_MEMBERS, ic_lpips
from .inception_score import SPLITS, inception_score
from .memorisation import Nearest, nearest_training_defects
from .trunks import Inception, Perceptual

METRICS = {
    "is": "IS",
    "ic_lpips_text": "IC-LPIPS (to the training picture, as in the text)",
    "ic_lpips_pairwise": "IC-LPIPS (pairwise, as in the authors' script)",
    "effect_score": "effect score",
    "fill_share": "fill share",
    "nearest_distance": "distance to the nearest training defect",
    "copies_share": "share of likely copies",
}
BATCH = 8


@dataclass(frozen=True)
class GeneratedSet:
    """Generated pictures of one type and the training pairs they were learned from, all [N, C, s, s] of one size;
    pictures in [0, 1] or as bytes.

    masks: None where the method gives none. effects, fills: what is known of the effect (see `effect_score`), may be
    empty.
    """

    images: Tensor
    masks: Tensor | None
    references: Tensor
    reference_masks: Tensor
    effects: tuple[float, ...] = ()
    fills: tuple[float, ...] = ()


@dataclass
class Generation:
    """by_type: defect -> metric -> value, NaN for undefined. nearest: defect -> comparison with the training defects.
    inception_score_pooled: of all types together."""

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


def evaluate_generation(
    sets: Mapping[str, GeneratedSet],
    inception: Inception,
    perceptual: Perceptual,
    splits: int = SPLITS,
    most_members: int = MOST_MEMBERS,
    seed: int = 0,
    on_step: Callable[[str, int], None] | None = None,
) -> Generation:
    """Measure every type.

    ``on_step`` is called with the type and the number of pictures that went through a network; an exception in it
    passes on. Raises InputError for no types, and what the single metrics refuse.
    """
    if not sets:
        raise InputError("pairs: no pictures of any type of the data set. Choose another folder.")
    result = Generation(inception.name, perceptual.name)
    everything = []
    for kind, part in sets.items():

        def step(count: int, kind: str = kind) -> None:
            if on_step is not None:
                on_step(kind, count)

        logits = _logits(inception, part.images, step)
        everything.append(logits)
        score, deviation = inception_score(logits, splits, seed)
        clusters = ic_lpips(
            lambda one, two, step=step: perceptual.distances(one, two, step),  # type: ignore[misc]
            part.images,
            part.references,
            most_members,
            seed,
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
