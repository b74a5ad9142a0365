"""Inception Score: how certain and how varied a classifier's guesses about pictures are (Salimans et al., 2016)."""

from __future__ import annotations

from torch import Tensor

from ...errors import InputError

SPLITS = 10


def inception_score(logits: Tensor, splits: int = SPLITS, seed: int = 2020) -> tuple[float, float]:
    """exp(E_x KL(p(y|x) || p(y))) of logits [N, C], as (mean, deviation) over ``splits`` parts; at least 1.

    Computed by torch-fidelity, whose order of the pictures is drawn with ``seed``.

    Raises:
        InputError: fewer pictures than parts.
    """
    if logits.ndim != 2 or splits < 1 or len(logits) < splits:
        raise InputError(
            f"splits: {len(logits)} pictures cannot be divided into {splits} parts. Lower splits or generate more."
        )
    from torch_fidelity import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD
    from torch_fidelity.metric_isc import isc_features_to_metric

    # probabilities of exactly 0 would make it NaN; e^-600 changes no digit
    spread = (logits.double() - logits.double().amax(dim=1, keepdim=True)).clamp_min(-600)
    found = isc_features_to_metric(spread, splits, shuffle=True, rng_seed=seed % 2**32)
    return float(found[KEY_METRIC_ISC_MEAN]), float(found[KEY_METRIC_ISC_STD])
