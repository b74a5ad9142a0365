"""Score Pairs: every generated pair against the real ones' own scores; what is worse than they are is listed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...data.images import read_image
from ...data.mask_files import read_mask
from ...data.mvtec import AnomalyDataset
from ...data.pairs import LEFT_OUT, ExportedPair, load_exported, update_manifest
from ...data.sheets import outlined
from ...data.splits import listed_names
from ...errors import InputError
from ...figures import contact_sheet, detail
from ...masks.label_choice import Normals
from ...masks.relabel import DRAWN
from ...progress import Progress, Quiet
from ..generation.trunks import Perceptual, load_perceptual
from ..settings import PERCEPTUAL, PUBLISHED, ScoreSettings
from .features import FeatureSpace, crop_of
from .scores import SCORES, Known, PairScores, generated_scores, normal_places, real_scores

ENTRY = "scores"
"""Entry of a line of the manifest."""
REASON = "scores: "
"""Begin of the reason of a pair that the gate left out."""
SHEET_ROWS = 12
FEW = 20
FULL = 0.95
"""More fill than this is asked of nobody: labels have a border."""
LEAST = 1e-3
"""Smaller scores count as this, whose logarithm exists."""


@dataclass(frozen=True)
class ScoredPair:
    """A generated pair, its scores, and in what it is worse than the real ones."""

    pair: ExportedPair
    scores: PairScores
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Gate:
    """All pairs of a folder, scored. limits: type -> score -> what the real ones reach; NaN is not judged."""

    folder: Path
    pairs: Sequence[ScoredPair]
    limits: Mapping[str, Mapping[str, float]]
    settings: ScoreSettings

    @property
    def worse(self) -> list[ScoredPair]:
        """The pairs that are worse than the real ones in at least one score, the worst first."""
        return sorted((one for one in self.pairs if one.reasons), key=lambda one: -len(one.reasons))

    def report(self) -> str:
        """Limits of each type, and each pair beyond them with its reasons."""
        lines = []
        for key, limits in self.limits.items():
            own = [one for one in self.pairs if one.pair.key == key]
            known = (f"{name} {limit:.3g}" for name, limit in limits.items() if not math.isnan(limit))
            lines.append(f"{key}: {sum(bool(one.reasons) for one in own)} of {len(own)} beyond {', '.join(known)}")
        lines += [f"{one.pair.record['image']}: {', '.join(one.reasons)}" for one in self.worse]
        if self.settings.leave_out:
            lines.append(f"{len(self.worse)} pairs are left out of evaluations; a review can accept them")
        return "\n".join(lines)

    def sheet(self) -> Tensor | None:
        """The worst pairs beside their normal images, [3, H, W] in [0, 1]; None where no pair is beyond a limit."""
        rows: list[list[Tensor | None]] = []
        for one in self.worse[:SHEET_ROWS]:
            image, mask = read_image(one.pair.image), read_mask(one.pair.mask)
            normal = read_image(_normal(one.pair))
            rows.append([outlined(image, mask), detail(normal, mask), detail(image, mask)])
        titles = [f"{one.pair.key} {one.pair.image.stem}: {', '.join(one.reasons)}" for one in self.worse[:SHEET_ROWS]]
        return contact_sheet(rows, ["generated", "normal", "generated"], titles) if rows else None


def score_pairs(
    folder: Path,
    dataset: AnomalyDataset,
    settings: ScoreSettings,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Gate:
    """Score all pairs of a folder and write the scores to its manifest; leave pairs out where that is wanted.

    ``progress`` advances once for each pair. Raises InputError for a folder without manifest or normal images, a type
    that the data set has no training pairs of, and where weights are missing.
    """
    network = load_perceptual(PUBLISHED, settings.lpips_weights, device) if settings.features == PERCEPTUAL else None
    pairs = load_exported(folder, every=True)
    known, limits = {}, {}
    for key in dict.fromkeys(pair.key for pair in pairs):
        known[key], own = _known(key, dataset, network)
        limits[key] = limits_of(own, settings)
    scored = []
    for pair in pairs:
        image, label, normal = read_image(pair.image), read_mask(pair.mask), read_image(_normal(pair))
        drawn = read_mask(folder / pair.record[DRAWN]) if pair.record.get(DRAWN) else label
        scores = generated_scores(image, label, drawn, normal, known[pair.key])
        scored.append(ScoredPair(pair, scores, _reasons(scores, limits[pair.key])))
        (progress or Quiet()).step()
    if settings.leave_out and all(one.reasons for one in scored):
        raise InputError(f"leave_out: all {len(scored)} pairs are listed. Lower quantile, or judge by fewer scores.")
    update_manifest(folder, {one.pair.record["image"]: _entry(one, settings.leave_out) for one in scored})
    return Gate(folder, scored, limits, settings)


def _known(key: str, dataset: AnomalyDataset, network: Perceptual | None) -> tuple[Known, list[PairScores]]:
    pairs = dataset.defect_type(key).train
    if not pairs or not dataset.normals:
        raise InputError(
            f"dataset: it has {len(pairs)} training pairs of {key} and {len(dataset.normals)} normal images. Scores "
            "need both."
        )
    images = [read_image(pair.image_path, pair.bits) for pair in pairs]
    masks, normals = [pair.read_mask() for pair in pairs], Normals(dataset)
    defects = [crop_of(*pair) for pair in zip(images, masks, strict=True)]
    places = [place for pair in zip(images, masks, strict=True) for place in normal_places(*pair, normals)]
    known = Known(defects, normals, FeatureSpace([*defects, *places], network))
    return known, real_scores(images, masks, known)


def limits_of(real: Sequence[PairScores], settings: ScoreSettings) -> dict[str, float]:
    """The quantile of the real ones' own scores, by name; NaN for a score that is not judged.

    A quantile far out cannot be read off a handful of values: below FEW of them it is where a further real defect
    would lie with that probability, if logarithms were normal (the prediction limit of Student's t).
    """
    judged = listed_names(settings.judged)
    unknown = [name for name in judged if name not in SCORES]
    if unknown or not judged:
        raise InputError(f"judged: '{settings.judged}'. Give some of: {', '.join(SCORES)}.")
    found = {}
    for name, (more, _) in SCORES.items():
        values = np.array([getattr(one, name) for one in real])
        values = values[~np.isnan(values)]
        share = settings.quantile if more else 1 - settings.quantile
        found[name] = prediction_limit(values, share) if name in judged and len(values) > 1 else math.nan
    return found | {"fill": min(found["fill"], FULL)}


def prediction_limit(values: NDArray[np.float64], share: float) -> float:
    """What a further value stays below with the probability ``share``; the plain quantile of FEW values and more."""
    if len(values) >= FEW or share in (0, 1):
        return float(np.quantile(values, share))
    from scipy.stats import t

    logs = np.log(np.maximum(values, LEAST))
    wide = logs.std(ddof=1) * (1 + 1 / len(logs)) ** 0.5
    return float(np.exp(logs.mean() + t.ppf(share, len(logs) - 1) * wide))


def _reasons(scores: PairScores, limits: Mapping[str, float]) -> tuple[str, ...]:
    found = []
    for name, (more, called) in SCORES.items():
        own, limit = getattr(scores, name), limits[name]
        if not math.isnan(limit) and (own < limit if more else own > limit):
            found.append(f"{called} {own:.3g}, real ones {'at least' if more else 'at most'} {limit:.3g}")
    return tuple(found)


def _entry(one: ScoredPair, leave_out: bool) -> dict[str, Any]:
    before = str(one.pair.record.get(LEFT_OUT) or "")
    # What something else left out stays so.
    reason = before if before and not before.startswith(REASON) else None
    if reason is None and leave_out and one.reasons:
        reason = REASON + ", ".join(one.reasons)
    return {ENTRY: one.scores.entry(), LEFT_OUT: reason}


def _normal(pair: ExportedPair) -> Path:
    if pair.normal is None:
        raise InputError(
            f"pairs: {pair.image} has no normal image. Give a folder that Export Pairs, generate or a baseline wrote."
        )
    return pair.normal
