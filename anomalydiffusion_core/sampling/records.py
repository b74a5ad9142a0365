"""The records and the report of generated samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .retry import Kept
from .windows import Window


def records(kept: Kept, windows: Sequence[Window | None], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One record for each sample, for the socket ``effects`` and the manifest of an export."""
    scores = kept.samples.scores
    columns = (scores.effect, scores.fill_share, scores.outside_max_abs_diff)
    return [
        {
            "seed": kept.seeds[place],
            "effect_score": round(effect, 3),
            "fill_share": round(fill, 4),
            "control_score": None,
            "outside_max_abs_diff": int(outside),
            "tries": kept.tries[place],
            "window": None if window is None else list(window.box),
            "settings": dict(settings),
        }
        for place, (effect, fill, outside, window) in enumerate(
            zip(*(column.tolist() for column in columns), windows, strict=True)
        )
    ]


def summary(kept: Kept, windows: Sequence[Window | None], min_effect: float) -> str:
    """Effect and fill share of all samples, and how many were cropped and retried, on one line."""
    scores = kept.samples.scores
    low, middle, high = (float(torch.quantile(scores.effect, share)) for share in (0.0, 0.5, 1.0))
    text = (
        f"{len(scores.effect)} samples: median effect in the mask {middle:.1f} of 255 ({low:.1f} to {high:.1f}), "
        f"median fill share {float(scores.fill_share.median()):.2f}, largest difference outside the mask "
        f"{int(scores.outside_max_abs_diff.max())}"
    )
    cropped = len(windows) - list(windows).count(None)
    if cropped:
        text += f"; {cropped} sampled in an enlarged window"
    again = sum(tries > 1 for tries in kept.tries)
    if again:
        weak = int((scores.effect < min_effect).sum())
        text += f"; {again} retried for an effect below {min_effect:g}, {weak} still below it"
    return text
