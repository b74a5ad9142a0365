"""Adaptive attention re-weighting (paper, section 3.3): more attention where the anomaly is still weak.

The weight map compares the clean estimate of the previous sampling step with the normal picture's latent, both free.
Literal Eq. 7 puts nearly all weight on one pixel and gives none to unchanged pixels, hence three modes:

* ``monotone`` (default): weight 1 to ``cap``, largest where nothing changed. It never takes attention from e.
* ``paper``: Eq. 7, by default on the difference divided by its mean inside the mask, with a temperature and the cap.
* ``authors``: the published code's inverse difference with an L1 norm, clipped to 1 .. 1.5, applied to the logits
  (without its growing of the mask at early steps).

Outside the mask the weight is always exactly 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InputError

MODES = ("monotone", "paper", "authors")
AUTHORS_CAP = 1.5
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
    on_logits: False multiplies the attention map after the softmax (Eq. 7 and 8), True the logits before it (authors).
    """

    weights: Tensor
    columns: Tensor
    on_logits: bool = False

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

    def for_chunks(self, positive: Sequence[bool]) -> AttentionGain:
        """The weights for a call that stacks several conditionings of this batch: 1 where a chunk is not positive."""
        ones = torch.ones_like(self.weights)
        weights = torch.cat([self.weights if chosen else ones for chosen in positive])
        columns = self.columns if self.columns.ndim == 1 else self.columns.repeat(len(positive), 1)
        return replace(self, weights=weights, columns=columns)

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

        After the softmax the weight depends on the query position only, so m * w on the chosen columns equals
        attention(q, k, v) + (w - 1) * attention(q, k, v with the other columns zeroed), which keeps fused attention.
        On logits one call on doubled features [q, (w - 1) q] and [k, k on the chosen columns] is exact.
        A context that was repeated whole times (hosts do this to match lengths) is understood. Raises InputError when
        the batch or the context length does not fit the weights.
        """
        if len(q) != len(self.weights) or q.shape[1] != height * width:
            raise InputError(
                f"attention weights: made for {len(self.weights)} samples of {height} x {width} positions, the layer "
                f"has {len(q)} of {q.shape[1]}. Use them only for the model call they were made for."
            )
        chosen = self._columns_for(k)
        extra = (self.at(height, width).to(q) - 1)[..., None]
        if self.on_logits:
            q, k, v = (_split(x, heads) for x in (q, k, v))
            scale = 1 / math.sqrt(q.shape[-1])
            doubled_q = torch.cat([q, q * extra[:, None]], dim=-1)
            doubled_k = torch.cat([k, k * chosen[:, None]], dim=-1)
            return _join(F.scaled_dot_product_attention(doubled_q, doubled_k, v, scale=scale))
        return attention(q, k, v, heads) + extra * attention(q, k, v * chosen, heads)

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


def latent_difference(denoised: Tensor, y0: Tensor) -> Tensor:
    """Squared difference of two latents [B, C, h, w], mean over channels: [B, h, w]."""
    return (denoised - y0).float().square().mean(dim=1)


def paper_weights(difference: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Literal Eq. 7: |m|_1 Softmax(f(d) / temperature), f(d) = 1 / d, minus infinity where d is 0 or outside the mask.

    difference >= 0 and mask {0, 1}, both [B, h, w]; the result sums to the mask's area and is 0 outside it. A sample
    without any difference gets weight 1 in the mask (the softmax is not defined there).
    """
    inside = (mask > 0) & (difference > 0)
    largest = torch.finfo(difference.dtype).max
    logits = torch.where(inside, difference.clamp_min(1 / largest).reciprocal() / temperature, -torch.inf)
    defined = inside.flatten(1).any(dim=1)[:, None, None]
    logits = torch.where(defined, logits, torch.zeros_like(logits)).clamp_max(largest)
    softmax = logits.flatten(1).softmax(dim=1).view_as(logits)
    area = mask.flatten(1).sum(dim=1)[:, None, None]
    return torch.where(defined, area * softmax, mask)


def authors_weights(difference: Tensor, mask: Tensor, cap: float = AUTHORS_CAP) -> Tensor:
    """The published code: |m|_1 (1 / d) / sum(1 / d) inside the mask, clipped to 1 .. cap, 1 outside; [B, h, w]."""
    inside = (mask > 0) & (difference > 0)
    inverse = torch.where(inside, difference.clamp_min(torch.finfo(difference.dtype).tiny).reciprocal(), 0.0)
    inverse = inverse.clamp_max(torch.finfo(difference.dtype).max / inverse[0].numel())
    total = inverse.flatten(1).sum(dim=1).clamp_min(torch.finfo(difference.dtype).tiny)[:, None, None]
    area = mask.flatten(1).sum(dim=1)[:, None, None]
    return (area * (inverse / total)).clamp(1, cap)


def normalised(difference: Tensor, mask: Tensor) -> Tensor:
    """The difference divided by its mean inside the mask, per sample; 0 where that mean is 0."""
    area = mask.flatten(1).sum(dim=1).clamp_min(1)
    mean = (difference * mask).flatten(1).sum(dim=1) / area
    safe = torch.where(mean > 0, mean, torch.ones_like(mean))
    return difference / safe[:, None, None]


def monotone_weights(difference: Tensor, mask: Tensor, strength: float = 1.0, cap: float = 2.0) -> Tensor:
    """1 + strength / (1 + r) inside the mask, at most cap, 1 outside, r the normalised difference; [B, h, w].

    Falls as the difference grows: 1 + strength where nothing changed, half of that extra at the mean, never below 1.
    """
    gain = strength / (1 + normalised(difference, mask))
    return torch.where(mask > 0, (1 + gain).clamp_max(cap), torch.ones_like(gain))


@dataclass(frozen=True)
class ReweightingSettings:
    """How to re-weight. Percents are shares of the sampling run, 0 at its first step.

    strength: 0 switches it off, 1 is the mode as defined (``paper`` and ``authors``: 1 + strength (w - 1)).
    cap: largest weight, at least 1. temperature, normalise: of the ``paper`` mode; temperature 1, normalise False and
    cap infinity are literal Eq. 7 inside the mask.
    """

    mode: str = "monotone"
    strength: float = 1.0
    cap: float = 2.0
    temperature: float = 1.0
    normalise: bool = True
    start_percent: float = 0.0
    end_percent: float = 1.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"re-weighting mode: there is no {self.mode!r}. Choose one of {', '.join(MODES)}.")
        if not self.strength >= 0 or math.isinf(self.strength):
            raise InputError(f"re-weighting strength: {self.strength} is not possible. Give 0 (off) or more.")
        if not self.cap >= 1:
            raise InputError(f"re-weighting cap: {self.cap} is below 1. Give 1 or more.")
        if not self.temperature > 0:
            raise InputError(f"re-weighting temperature: {self.temperature} is not above 0. Raise it.")
        if not 0 <= self.start_percent <= self.end_percent <= 1:
            raise InputError(
                f"re-weighting range: start {self.start_percent} to end {self.end_percent} does not lie in 0 to 1 in "
                "this order. Correct the two."
            )


class Reweighter:
    """The state of one sampling run: the weights that follow from the last clean estimate. Make a new one per run."""

    def __init__(self, settings: ReweightingSettings, y0: Tensor, latent_mask: Tensor, columns: Tensor) -> None:
        """y0: latents [B, C, h, w] of the normal pictures; latent_mask [B, 1, h, w]; columns as in AttentionGain."""
        self.settings = settings
        self._y0 = y0
        self._mask = latent_mask[:, 0].expand(len(y0), -1, -1).float()
        self._columns = columns
        self._weights: Tensor | None = None

    def observe(self, denoised: Tensor) -> None:
        """Take the clean estimate [B, C, h, w] of the step just done, before it is blended with y0."""
        self.observe_difference(latent_difference(denoised, self._y0))

    def observe_difference(self, difference: Tensor) -> None:
        """Take a difference map [B, h, w] >= 0 from elsewhere, for example from decoded pictures."""
        mask = self._mask.to(difference.device)
        self._weights = self._weights_from(difference.float(), mask)

    def gain(self, percent: float) -> AttentionGain | None:
        """The weights for the step at ``percent`` of the run; None before the first observation and out of range."""
        in_range = self.settings.start_percent <= percent <= self.settings.end_percent
        if self._weights is None or not in_range:
            return None
        return AttentionGain(self._weights, self._columns, on_logits=self.settings.mode == "authors")

    def _weights_from(self, difference: Tensor, mask: Tensor) -> Tensor:
        settings = self.settings
        if settings.mode == "monotone":
            return monotone_weights(difference, mask, settings.strength, settings.cap)
        if settings.mode == "authors":
            weights = authors_weights(difference, mask, min(settings.cap, AUTHORS_CAP))
        else:
            source = normalised(difference, mask) if settings.normalise else difference
            weights = paper_weights(source, mask, settings.temperature)
        weights = (1 + settings.strength * (weights - 1)).clamp(0, settings.cap)
        return torch.where(mask > 0, weights, torch.ones_like(weights))


def build_reweighter(
    settings: ReweightingSettings | None, y0: Tensor, latent_mask: Tensor, columns: Tensor
) -> Reweighter | None:
    """A fresh Reweighter for one run, or None (nothing is to be installed) without settings or at strength 0."""
    if settings is None or settings.strength == 0:
        return None
    return Reweighter(settings, y0, latent_mask, columns)
