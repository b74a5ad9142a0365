"""Plain conditioning: rows of cross-attention context, and how to remake them for other masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..denoiser import Denoiser, check_rows
from ..files import tensor_digest
from ..identity import Identity, check_identity
from ..scale import TrainedView


def mask_digests(masks: Tensor) -> tuple[str, ...]:
    """What tells each of some masks [B, 1, H, W] of {0, 1} from others."""
    return tuple(tensor_digest(mask > 0.5)[:16] for mask in masks)


@dataclass(frozen=True)
class ContextConditioning:
    """Conditioning of a sampler without ComfyUI.

    rows: context [1 or B, L, width]. columns: bool [L], true for the rows that are the anomaly embedding; None when
    there is none. remake: masks [B, 1, H, W] of {0, 1} to their context [B, L, width]; None for context that does not
    depend on masks. resolution: the one in pixels that the tokens were trained at, 0 when unknown. base: the model
    they were trained on. view: how their type was looked at, None when unknown. learned_from: marks of the images that
    they were learned from, as plain values. made_for: `mask_digests` of the masks that the rows were made for, none
    where that is not known.
    """

    rows: Tensor
    columns: Tensor | None = None
    remake: Callable[[Tensor], Tensor] | None = None
    resolution: int = 0
    base: Identity = Identity()
    view: TrainedView | None = None
    learned_from: Mapping[str, Any] = field(default_factory=dict)
    made_for: tuple[str, ...] = ()

    @property
    def has_columns(self) -> bool:
        """Whether it holds an anomaly embedding."""
        return self.columns is not None

    @property
    def placed(self) -> list[str]:
        """Nothing of it belongs to places of the image."""
        return []

    def check(self, denoiser: Denoiser, name: str, count: int) -> None:
        """Raise InputError unless width, base model and rows fit ``count`` samples."""
        check_rows(denoiser, self.rows, name, count)
        check_identity(denoiser, self.base, name)

    def select(self, places: Sequence[int], count: int) -> ContextConditioning:
        """The rows of the samples at ``places``; one row for all stays one."""
        if len(self.rows) == 1 or list(places) == list(range(count)):
            return self
        return replace(self, rows=self.rows[list(places)])

    def for_masks(self, masks: Tensor) -> ContextConditioning:
        """The same with its rows remade for ``masks``, one each."""
        return self if self.remake is None else replace(self, rows=self.remake(masks), made_for=mask_digests(masks))
