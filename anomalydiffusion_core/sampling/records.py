"""The records and the report of generated samples."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .retry import Kept
from .windows import Window

ALIKE = 2.0
"""A control whose effect is more than 1 / ALIKE of the defect's earns a warning."""


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


def report_lines(records: Sequence[Mapping[str, Any]], min_effect: float) -> list[str]:
    """Effect, fill share, crops and retries of samples, and beside it the control where there is one."""
    effects, fills = (torch.tensor([one[name] for one in records]) for name in ("effect_score", "fill_share"))
    low, middle, high = (float(torch.quantile(effects, share)) for share in (0.0, 0.5, 1.0))
    text = (
        f"{len(records)} samples: median effect in the mask {middle:.1f} of 255 ({low:.1f} to {high:.1f}), "
        f"median fill share {float(fills.median()):.2f}, largest difference outside the mask "
        f"{max(one['outside_max_abs_diff'] for one in records)}"
    )
    cropped = sum(one["window"] is not None for one in records)
    if cropped:
        text += f"; {cropped} sampled in an enlarged window"
    again = sum(one["tries"] > 1 for one in records)
    if again:
        weak = int((effects < min_effect).sum())
        text += f"; {again} retried for an effect below {min_effect:g}, {weak} still below it"
    return [text, *_control_lines(records)]


def _control_lines(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Both effects side by side, with a warning when they are alike (design: that is no learned defect)."""
    known = [(one["effect_score"], one["control_score"]) for one in records if one["control_score"] is not None]
    if not known:
        return []
    defect, other = (statistics.fmean(column) for column in zip(*known, strict=True))
    text = f"control, {len(known)} samples: effect {other:.1f}; with the defect {defect:.1f}"
    if other * ALIKE > defect:
        text += (
            ". Warning: these are alike, so most of the change is not a learned defect; the model may not know the "
            "object"
        )
    return [text]
