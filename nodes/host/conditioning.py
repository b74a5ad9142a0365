"""The adapter to ComfyUI, fourth part: what a conditioning carries for this extension, and parts of it for a batch.

A conditioning is a list of [context, dictionary]; nodes of the host that combine conditioning keep the dictionary of
each entry, and concatenating keeps the dictionary of the entry that the other one is appended to.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...anomalydiffusion_core.errors import InputError
from .denoiser import BASE, COLUMNS, ComfyDenoiser, Conditioning

SOURCE = "anomalydiffusion_source"
"""Entry of a conditioning's dictionary: a MaskSource."""
PLACED = ("area", "mask", "control", "gligen")
"""Entries of a conditioning's dictionary that belong to places of the whole picture."""


@dataclass(frozen=True)
class MaskSource:
    """Makes the context of an entry anew for other masks, for example for those of an enlarged window.

    contexts: masks [B, 1, H, W] of {0, 1} to [B, L, width]. resolution: the one in pixels that the tokens were
    trained at, 0 when not known.
    """

    contexts: Callable[[Tensor], Tensor]
    resolution: int = 0

    def __deepcopy__(self, _: Any) -> MaskSource:
        return self


def check_conditioning(denoiser: ComfyDenoiser, conditioning: Conditioning | None, name: str, count: int) -> None:
    """Raise InputError unless each context has the model's width and one row, or one per sample."""
    for context, _ in conditioning or ():
        if context is None or context.ndim != 3:
            raise InputError(f"{name}: holds no context of rows and columns. Connect the conditioning of a caption.")
        denoiser.check_width(context.shape[-1], name)
        if context.shape[0] not in (1, count):
            raise InputError(
                f"{name}: has {context.shape[0]} rows for {count} samples. Give one row, or one for each sample."
            )


def check_base(denoiser: ComfyDenoiser, conditioning: Conditioning, name: str) -> None:
    """Raise InputError with both fingerprints where an embedding was trained on another model than this one."""
    for trained_on in sorted({extra[BASE] for _, extra in conditioning if extra.get(BASE)}):
        denoiser.check_base(trained_on, name)


def has_columns(conditioning: Conditioning) -> bool:
    """Whether any entry says which of its columns are an anomaly embedding."""
    return any(COLUMNS in extra for _, extra in conditioning)


def placed(conditioning: Conditioning | None) -> list[str]:
    """Names of what in a conditioning belongs to places of the whole picture, sorted."""
    found = {key for _, extra in conditioning or () for key in PLACED if extra.get(key) is not None}
    return sorted(found)


def trained_resolution(conditioning: Conditioning) -> int:
    """The resolution in pixels that an embedding in the conditioning was trained at, 0 when none says it."""
    return max((extra[SOURCE].resolution for _, extra in conditioning if SOURCE in extra), default=0)


def for_masks(conditioning: Conditioning, masks: Tensor) -> Conditioning:
    """The conditioning with its anomaly embeddings made anew for ``masks`` [B, 1, H, W] of {0, 1}, one row each.

    What other nodes appended to a context stays; entries without a MaskSource are unchanged.
    """
    made: Conditioning = []
    for context, extra in conditioning:
        if SOURCE in extra:
            own = extra[SOURCE].contexts(masks).to(context)
            rest = context[:, own.shape[1] :]
            context = torch.cat([own, rest.expand(len(own), -1, -1)], dim=1)
        made.append([context, extra])
    return made


def select(conditioning: Conditioning, places: Sequence[int], count: int) -> Conditioning:
    """The part of a conditioning for ``count`` samples that belongs to those at ``places``, in their order."""
    if list(places) == list(range(count)):
        return conditioning

    def part(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[list(places)] if value.ndim > 1 and value.shape[0] == count > 1 else value
        if hasattr(value, "cond_hint_original"):
            return _control_part(value, places, count)
        return value

    return [[part(context), {key: part(value) for key, value in extra.items()}] for context, extra in conditioning]


def _control_part(control: Any, places: Sequence[int], count: int) -> Any:
    """A ControlNet whose hints belong to the samples at ``places``; itself when it has the same hint for all."""
    previous = getattr(control, "previous_controlnet", None)
    inner = None if previous is None else _control_part(previous, places, count)
    hint = control.cond_hint_original
    own = isinstance(hint, Tensor) and hint.ndim == 4 and hint.shape[0] == count > 1
    if not own and inner is previous:
        return control
    part = control.copy() if hasattr(control, "copy") else copy.copy(control)
    if own:
        part.cond_hint_original = hint[list(places)]
    part.previous_controlnet = inner
    return part
