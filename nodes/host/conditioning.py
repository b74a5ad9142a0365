"""ComfyUI's CONDITIONING: what it carries for this extension, and the core's Conditioning over it.

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

from ...anomalydiffusion_core.conditioning.context import ContextConditioning, mask_digests
from ...anomalydiffusion_core.denoiser import Denoiser, check_rows
from ...anomalydiffusion_core.errors import InputError
from ...anomalydiffusion_core.files import tensor_digest
from ...anomalydiffusion_core.identity import Identity, check_identity
from ...anomalydiffusion_core.scale import TrainedView

Conditioning = list[list[Any]]
"""ComfyUI's socket of this name."""
COLUMNS = "anomalydiffusion_columns"
"""Entry of a conditioning's dictionary: bool [L], the rows of its context that are the anomaly embedding."""
BASE = "anomalydiffusion_base"
"""Entry of a conditioning's dictionary: Identity of the model that the embedding was trained on."""
LEARNED_FROM = "anomalydiffusion_learned_from"
"""Entry of a conditioning's dictionary: marks of the images that the embedding was learned from."""
MADE_FOR = "anomalydiffusion_made_for"
"""Entry of a conditioning's dictionary: digests of the masks that its rows were made for."""
SOURCE = "anomalydiffusion_source"
"""Entry of a conditioning's dictionary: a MaskSource."""
PLACED = ("area", "mask", "control", "gligen")
"""Entries of a conditioning's dictionary that belong to places of the whole image."""


@dataclass(frozen=True)
class MaskSource:
    """Remakes the context of an entry for other masks, for example for those of an enlarged window.

    contexts: masks [B, 1, H, W] of {0, 1} to [B, L, width]. resolution: the one in pixels that the tokens were
    trained at, 0 when not known. view: how their type was looked at, None when not known.
    """

    contexts: Callable[[Tensor], Tensor]
    resolution: int = 0
    view: TrainedView | None = None

    def __deepcopy__(self, _: Any) -> MaskSource:
        return self


class _Kept(dict[str, Any]):
    """Plain values that nodes which copy a conditioning do not copy."""

    def __deepcopy__(self, _: Any) -> _Kept:
        return self


def to_conditioning(context: Tensor, **extra: Any) -> Conditioning:
    """Context [B, L, width] as CONDITIONING; ``extra`` goes into its dictionary, which the host carries along."""
    return [[context.detach().cpu(), extra]]


def anomaly_extra(plain: ContextConditioning) -> dict[str, Any]:
    """What the dictionary of an entry says about the anomaly embedding in it."""
    if plain.remake is None:
        return {}
    own = {COLUMNS: plain.columns, BASE: plain.base, LEARNED_FROM: _Kept(plain.learned_from)}
    own[MADE_FOR] = plain.made_for
    return {**own, SOURCE: MaskSource(plain.remake, plain.resolution, plain.view)}


def single_context(conditioning: Conditioning, name: str) -> Tensor:
    """The context [L, width] of a conditioning of one entry and one row, as a normal tensor for the core."""
    if len(conditioning) != 1 or conditioning[0][0] is None or conditioning[0][0].shape[0] != 1:
        raise InputError(f"{name}: {len(conditioning)} entries. Connect the conditioning of one caption.")
    with torch.inference_mode(False):
        return conditioning[0][0][0].detach().clone().float().cpu()


def conditioning_digest(conditioning: Conditioning | None) -> str:
    """A hash of the contexts of a conditioning, for content keys."""
    return tensor_digest(*(entry[0] for entry in conditioning or ()))


@dataclass(frozen=True)
class ComfyConditioning:
    """The core's Conditioning over a CONDITIONING."""

    entries: Conditioning

    @classmethod
    def of(cls, entries: Conditioning | None) -> ComfyConditioning | None:
        """None for an input that is not connected."""
        return None if entries is None else cls(entries)

    @classmethod
    def of_context(cls, context: Tensor) -> ComfyConditioning:
        """Rows [B, L, width] that the core made, without an anomaly embedding."""
        return cls(to_conditioning(context))

    @property
    def resolution(self) -> int:
        """The resolution in pixels that an embedding in it was trained at, 0 when none says it."""
        return max((extra[SOURCE].resolution for _, extra in self.entries if SOURCE in extra), default=0)

    @property
    def view(self) -> TrainedView | None:
        """How the defect type of an embedding in it was looked at, None when none says it."""
        return next((extra[SOURCE].view for _, extra in self.entries if SOURCE in extra), None)

    @property
    def made_for(self) -> tuple[str, ...]:
        """Digests of the masks that its rows were made for, those of the first entry that says so."""
        return next((extra[MADE_FOR] for _, extra in self.entries if extra.get(MADE_FOR)), ())

    @property
    def learned_from(self) -> dict[str, Any]:
        """Marks of the images that the embeddings in it were learned from."""
        return {name: mark for _, extra in self.entries for name, mark in extra.get(LEARNED_FROM, {}).items()}

    @property
    def has_columns(self) -> bool:
        """Whether any entry says which of its columns are an anomaly embedding."""
        return any(COLUMNS in extra for _, extra in self.entries)

    @property
    def placed(self) -> list[str]:
        """Names of what in it belongs to places of the whole image, sorted."""
        return sorted({key for _, extra in self.entries for key in PLACED if extra.get(key) is not None})

    def check(self, denoiser: Denoiser, name: str, count: int) -> None:
        """Raise InputError unless each context fits the model, and has one row or one per sample."""
        for context, extra in self.entries:
            check_rows(denoiser, context, name, count)
            check_identity(denoiser, extra.get(BASE) or Identity(), name)

    def select(self, places: Sequence[int], count: int) -> ComfyConditioning:
        """The part of a conditioning for ``count`` samples that belongs to those at ``places``, in their order."""
        if list(places) == list(range(count)):
            return self

        def part(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[list(places)] if value.ndim > 1 and value.shape[0] == count > 1 else value
            if hasattr(value, "cond_hint_original"):
                return _control_part(value, places, count)
            return value

        return ComfyConditioning(
            [[part(context), {key: part(value) for key, value in extra.items()}] for context, extra in self.entries]
        )

    def for_masks(self, masks: Tensor) -> ComfyConditioning:
        """The same with its anomaly embeddings remade for ``masks`` [B, 1, H, W] of {0, 1}, one row each.

        What other nodes appended to a context stays; entries without a MaskSource are unchanged.
        """
        made: Conditioning = []
        for context, extra in self.entries:
            if SOURCE in extra:
                own = extra[SOURCE].contexts(masks).to(context)
                rest = context[:, own.shape[1] :]
                context = torch.cat([own, rest.expand(len(own), -1, -1)], dim=1)
                extra = {**extra, MADE_FOR: mask_digests(masks)}
            made.append([context, extra])
        return ComfyConditioning(made)


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
