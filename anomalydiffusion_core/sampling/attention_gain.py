"""Cross-attention with weights: the attention of chosen context rows is made stronger or weaker per position.

The weights of a layer depend on the query position only. Where they are 1 the layer's own result is kept bit for bit,
and only the other positions are recomputed, so that fused attention is used throughout and the cost follows
the area of the mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

AttentionFunction = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def plain_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Scaled dot product attention of q [B, N, heads * d] on k, v [B, L, heads * d], fused where torch can."""
    q, k, v = (_split(x, heads) for x in (q, k, v))
    return _join(F.scaled_dot_product_attention(q, k, v))


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _join(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class AttentionGain:
    """Weights of one model call, for every cross-attention layer of it.

    weights: float [B, h, w] at latent resolution, one map per row of the call's batch (1 for rows to be left alone).
    columns: bool [L] or [B, L], true for the context rows whose attention is weighted.
    replaces: the weights are the attention itself, divided evenly among the chosen columns (prompt-to-prompt).
    on_logits: False multiplies the attention map after the softmax (Eq. 7 and 8), True the logits before it (authors).
    """

    weights: Tensor
    columns: Tensor
    on_logits: bool = False
    replaces: bool = False
    _spots: dict[tuple[int, int], _Spots | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def at(self, height: int, width: int) -> Tensor:
        """The weights for a layer of ``height`` x ``width`` positions, [B, height * width].

        Averaged over each position's area; the authors' form samples bilinearly without antialiasing as their code.
        """
        maps = self.weights[:, None]
        if self.weights.shape[-2:] != (height, width):
            if self.on_logits:
                maps = F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
            else:
                maps = F.adaptive_avg_pool2d(maps, (height, width))
        return maps.flatten(1)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        height: int,
        width: int,
        attention: AttentionFunction = plain_attention,
    ) -> Tensor:
        """Re-weighted attention, before the output projection: [B, N, heads * d] with N = height * width.

        A context that was repeated whole times (hosts do this to match lengths) is understood. Raises InputError when
        the batch or the context length does not fit the weights.
        """
        return self.reweight(attention(q, k, v, heads), q, k, v, heads, height, width, attention)

    def reweight(
        self,
        base: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        height: int,
        width: int,
        attention: AttentionFunction = plain_attention,
    ) -> Tensor:
        """``base`` [B, N, heads * d], the layer's result without weights, plus what the weights change in it.

        After the softmax m * w on the chosen columns equals attention(q, k, v) + (w - 1) * attention(q, k, v with the
        other columns zeroed). On logits one call on doubled features [q, (w - 1) q] and [k, k on the chosen columns]
        is exact. Raises InputError as attend.
        """
        if len(q) != len(self.weights) or q.shape[1] != height * width:
            raise InputError(
                f"attention weights: made for {len(self.weights)} samples of {height} x {width} positions, the layer "
                f"has {len(q)} of {q.shape[1]}. Use them only for the model call they were made for."
            )
        chosen = self._columns_for(k)
        if self.replaces:
            count = chosen.sum(dim=1, keepdim=True).clamp_min(1)
            mean = (v * chosen).sum(dim=1, keepdim=True) / count
            given = self.at(height, width).to(v)[..., None] * mean
            return base + (given - attention(q, k, v * chosen, heads)).to(base.dtype)
        if (height, width) not in self._spots:
            self._spots[height, width] = _spots_of(self.at(height, width).to(q.device) - 1)
        spots = self._spots[height, width]
        if spots is None:
            return base
        rows, places = spots.rows, spots.places
        q, k, v, chosen, extra = q[rows][:, places], k[rows], v[rows], chosen[rows], spots.extra.to(q.dtype)
        if self.on_logits:
            change = _weighted_logits(q, k, v, chosen, extra, heads) - attention(q, k, v, heads)
        else:
            change = extra * attention(q, k, v * chosen, heads)
        return base.index_put((rows[:, None], places), change.to(base.dtype), accumulate=True)

    def _columns_for(self, k: Tensor) -> Tensor:
        columns = self.columns.to(k.device)
        repeats, rest = divmod(k.shape[1], columns.shape[-1])
        if rest or not repeats:
            raise InputError(
                f"attention weights: made for a context of {columns.shape[-1]} rows, the layer has {k.shape[1]}. "
                "Use them with the conditioning they were made for."
            )
        columns = columns.expand(len(k), -1) if columns.ndim == 1 else columns
        return columns.repeat(1, repeats)[..., None].to(k.dtype)


@dataclass(frozen=True)
class _Spots:
    """Where weights differ from 1: batch rows [r], positions [p] (of any of these rows), w - 1 there [r, p, 1]."""

    rows: Tensor
    places: Tensor
    extra: Tensor


def _spots_of(extra: Tensor) -> _Spots | None:
    # Found once per model call and layer size: on a GPU looking for it waits for the device.
    differs = extra != 0
    rows = differs.any(dim=1).nonzero().flatten()
    places = differs.any(dim=0).nonzero().flatten()
    return _Spots(rows, places, extra[rows][:, places, None]) if len(rows) else None


def _weighted_logits(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, extra: Tensor, heads: int) -> Tensor:
    """softmax(w q k / sqrt(d)) v with w = 1 + extra on the chosen columns, as one fused call on doubled features."""
    q, k, v = (_split(x, heads) for x in (q, k, v))
    scale = 1 / math.sqrt(q.shape[-1])
    doubled_q = torch.cat([q, q * extra[:, None]], dim=-1)
    doubled_k = torch.cat([k, k * chosen[:, None]], dim=-1)
    return _join(F.scaled_dot_product_attention(doubled_q, doubled_k, v, scale=scale))
