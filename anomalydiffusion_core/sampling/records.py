"""The records and the report of generated samples."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..scale import TrainedView, covering_scale
from .retry import Kept
from .sampler import Conditioning
from .windows import Window

SAME_CAMERA = 0.02
"""Images whose longer side differs by a larger share than this may come from another camera, or were resized."""
ALIKE = 2.0
"""A control whose effect is more than 1 / ALIKE of the defect's earns a warning."""


def records(
    kept: Kept, windows: Sequence[Window | None], settings: Mapping[str, Any], view: TrainedView | None = None
) -> list[dict[str, Any]]:
    """One record for each sample, for the socket ``effects`` and the manifest of an export.

    view: how the defects were looked at in training; None leaves the trained scale out.
    """
    trained = {} if view is None else {"trained_scale": round(view.scale, 4)}
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
            "scale": 1.0 if window is None else round(window.scale, 4),
            **({"tiles": window.tiles} if window is not None and window.tiles > 1 else {}),
            **trained,
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
        zooms = [one["scale"] for one in records if one["window"] is not None and "scale" in one]
        text += f"; {cropped} sampled in a window"
        if zooms:
            low, high = min(zooms), max(zooms)
            text += f" at {low:.3g}{'' if high == low else f' to {high:.3g}'} image pixels per sampled pixel"
    tiled = [one["tiles"] for one in records if "tiles" in one]
    if tiled:
        text += f"; {len(tiled)} long thin masks in {sum(tiled)} tiles along them"
    again = sum(one["tries"] > 1 for one in records)
    if again:
        weak = int((effects < min_effect).sum())
        text += f"; {again} retried for an effect below {min_effect:g}, {weak} still below it"
    return [text, *_control_lines(records)]


def scale_notices(windows: Sequence[Window | None], size: Sequence[int], conditioning: Conditioning) -> list[str]:
    """What a user should know of the scale at which defects are drawn on images of ``size`` (height, width)."""
    view = conditioning.view
    if view is None:
        if not conditioning.has_columns:
            return []
        return ["notice: the bundle does not record its scale: defects may be drawn larger or smaller than learned"]
    scales = [1.0 if window is None else window.scale for window in windows]
    if not view.windows:  # whole images were learned as small as they fit, whatever their size was
        own = covering_scale((int(size[0]), int(size[1])), (view.height, view.width)) / view.scale
        scales = [scale / own for scale in scales]
    off = [scale for scale in scales if not view.agrees(scale)]
    notices = []
    if off:
        notices.append(
            f"notice: {len(off)} of {len(scales)} samples are drawn at {min(off):.3g} to {max(off):.3g} image pixels "
            f"per sampled pixel, but learned at {view.scale:.3g} ({view.low:.3g} to {view.high:.3g}): defects "
            "come out at another size than they were seen at"
        )
    if view.windows and abs(max(size) / max(*view.images, 1) - 1) > SAME_CAMERA:
        notices.append(
            f"notice: the images are {size[1]}x{size[0]} px, those of the training were {view.images[1]}x"
            f"{view.images[0]} px; windows keep the size of defects in image pixels"
        )
    return notices


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
