"""Inception Score and intra-cluster LPIPS: how good and how varied are generated images?

IC-LPIPS (Ojha et al., CVPR 2021) divides the generated images into one cluster for each training image, the nearest by
LPIPS. AnomalyDiffusion's text then averages the distances to the training image of the cluster; its authors' later
published script averages the distances of all pairs in the cluster, as Ojha et al. do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError

MOST_MEMBERS = 50

Distances = Callable[[Tensor, Tensor], Tensor]
"""Images [N, 3, s, s] and [M, 3, s, s] to distances [N, M]."""


@dataclass(frozen=True)
class IcLpips:
    """Both forms of intra-cluster LPIPS.

    text: mean distance to the cluster's training image. pairwise: mean distance of pairs in a cluster, NaN where no
    cluster has two members. clusters: number of members of each training image.
    """

    text: float
    pairwise: float
    clusters: tuple[int, ...]


def ic_lpips(
    distances: Distances, generated: Tensor, references: Tensor, most_members: int = MOST_MEMBERS, seed: int = 0
) -> IcLpips:
    """Both forms for one defect type.

    Args:
        distances: LPIPS between two sets of images.
        generated, references: [N, 3, s, s] and [K, 3, s, s] in [0, 1]; the references are the training images.
        most_members: at most so many of a cluster, drawn with ``seed``, take part in the pairwise form, as in the
            authors' script.

    Each form is the mean over the clusters for which it is defined.

    Raises:
        InputError: no generated or no training images.
    """
    if not len(generated) or not len(references):
        raise InputError(
            f"IC-LPIPS: {len(generated)} generated, {len(references)} training images. Both are required."
        )
    to_reference, owner = distances(generated, references).min(dim=1)
    rng = np.random.default_rng(seed)
    text, pairwise, sizes = [], [], []
    for place in range(len(references)):
        members = (owner == place).nonzero().flatten()
        sizes.append(len(members))
        if not len(members):
            continue
        text.append(float(to_reference[members].double().mean()))
        if len(members) > most_members:
            members = members[torch.from_numpy(np.sort(rng.choice(len(members), most_members, replace=False)))]
        if len(members) > 1:
            rows, columns = torch.triu_indices(len(members), len(members), 1)
            pairwise.append(float(distances(generated[members], generated[members])[rows, columns].double().mean()))
    return IcLpips(_mean(text), _mean(pairwise), tuple(sizes))


def inception_score(logits: Tensor, splits: int, seed: int = 2020) -> tuple[float, float]:
    """exp(E_x KL(p(y|x) || p(y))) of logits [N, C], as (mean, deviation) over ``splits`` parts; at least 1.

    Computed by torch-fidelity, which draws the order of the images with ``seed``. Undefined (NaN) for fewer images
    than parts. Raises InputError for no parts.
    """
    if logits.ndim != 2 or splits < 1:
        raise InputError(f"splits: {splits} parts of logits {tuple(logits.shape)}. Give at least one.")
    if len(logits) < splits:
        return math.nan, math.nan
    from torch_fidelity import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD
    from torch_fidelity.metric_isc import isc_features_to_metric

    # probabilities of exactly 0 would make it NaN; e^-600 changes no digit
    spread = (logits.double() - logits.double().amax(dim=1, keepdim=True)).clamp_min(-600)
    found = isc_features_to_metric(spread, splits, shuffle=True, rng_seed=seed % 2**32)
    return float(found[KEY_METRIC_ISC_MEAN]), float(found[KEY_METRIC_ISC_STD])


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan
