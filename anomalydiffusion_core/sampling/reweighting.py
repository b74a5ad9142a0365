"""Adaptive attention re-weighting (paper, section 3.3): more attention where the anomaly is still weak.

The weight map compares a clean estimate of the picture with the normal one, by default the estimate of the previous
sampling step in latent space, which is free. Literal Eq. 7 puts nearly all weight on one pixel and gives none to
unchanged pixels, hence three modes:

* ``monotone`` (default): weight 1 to ``cap``, largest where nothing changed. It never takes attention from e.
* ``paper``: Eq. 7, by default on the difference divided by its mean inside the mask, with a temperature and the cap.
* ``authors``: the published code. It compares the noisy latent with the clean normal one, takes the inverse with an
  L1 norm, clips it to 1 .. 1.5, multiplies the logits before the softmax, also those of the first context row, and
  grows the mask at early steps, for the weights and for the blending.

Outside the (grown) mask the weight is always exactly 1.

``prompt-to-prompt`` is no re-weighting but what the paper compares with (supplement, section E): the mask itself takes
the place of the attention map of the anomaly's tokens, at every step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .attention_gain import AttentionGain

PROMPT_TO_PROMPT = "prompt-to-prompt"
MODES = ("monotone", "paper", "authors", PROMPT_TO_PROMPT)
AUTHORS_CAP = 1.5
PREVIOUS, SAME, DECODED = "previous step", "same step", "decoded"
DIFFERENCES = (PREVIOUS, SAME, DECODED)
"""Where the difference comes from: the clean estimate of the previous step; of this step, by one more model call
without weights; or pictures decoded every few steps."""
ANOMALY_TOKENS, ALL_TOKENS = "anomaly tokens", "all tokens"
TOKEN_SCOPES = (ANOMALY_TOKENS, ALL_TOKENS)


def latent_difference(denoised: Tensor, y0: Tensor) -> Tensor:
    """Squared difference of two latents [B, C, h, w], mean over channels: [B, h, w]."""
    return (denoised - y0).float().square().mean(dim=1)


def decoded_difference(pictures: Tensor, normals: Tensor, downscale: int) -> Tensor:
    """Squared difference of two pictures [B, 3, H, W], mean over channels and latent cells: [B, H / downscale, ...].

    The pixel form of Eq. 7, brought to latent resolution.
    """
    squared = (pictures - normals).float().square().mean(dim=1, keepdim=True)
    return F.avg_pool2d(squared, downscale)[:, 0]


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


def authors_radius(time: float, steps: int = 0) -> int:
    """Latent cells by which the published code grows the mask at ``time`` in 0 .. 999.

    Its rule is floor((t + 100) * 8 / 1000), with 16 in place of 8 when exactly 50 ``steps`` are used.
    """
    return math.floor((time + 100) * (16 if steps == 50 else 8) / 1000)


def grown(mask: Tensor, radius: int) -> Tensor:
    """A mask [B, 1, h, w] grown by ``radius`` cells in all eight directions."""
    return F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius) if radius > 0 else mask


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
    difference: where it comes from, one of DIFFERENCES, decoded every ``decode_every`` steps; ``authors`` has its own.
    scope: whether the anomaly's context rows are weighted or all of them.
    """

    mode: str = "monotone"
    strength: float = 1.0
    cap: float = 2.0
    temperature: float = 1.0
    normalise: bool = True
    start_percent: float = 0.0
    end_percent: float = 1.0
    difference: str = PREVIOUS
    decode_every: int = 5
    scope: str = ANOMALY_TOKENS

    def __post_init__(self) -> None:
        for name, value, known in (
            ("mode", self.mode, MODES),
            ("difference", self.difference, DIFFERENCES),
            ("token scope", self.scope, TOKEN_SCOPES),
        ):
            if value not in known:
                raise InputError(f"re-weighting {name}: there is no {value!r}. Choose one of {', '.join(known)}.")
        if not self.strength >= 0 or math.isinf(self.strength):
            raise InputError(f"re-weighting strength: {self.strength} is not possible. Give 0 (off) or more.")
        if not self.cap >= 1:
            raise InputError(f"re-weighting cap: {self.cap} is below 1. Give 1 or more.")
        if not self.temperature > 0:
            raise InputError(f"re-weighting temperature: {self.temperature} is not above 0. Raise it.")
        if self.decode_every < 1:
            raise InputError(f"re-weighting decode_every: {self.decode_every} is not possible. Give 1 or more steps.")
        if not 0 <= self.start_percent <= self.end_percent <= 1:
            raise InputError(
                f"re-weighting range: start {self.start_percent} to end {self.end_percent} does not lie in 0 to 1 in "
                "this order. Correct the two."
            )

    @property
    def source(self) -> str:
        """The difference that is used: "noisy" for ``authors``, "none" for ``prompt-to-prompt``, else as chosen."""
        return {"authors": "noisy", PROMPT_TO_PROMPT: "none"}.get(self.mode, self.difference)

    def in_range(self, percent: float) -> bool:
        """Whether weights apply at this share of the run."""
        return self.start_percent <= percent <= self.end_percent

    def chosen_columns(self, columns: Tensor) -> Tensor:
        """The context rows that are weighted, out of those that are the anomaly; bool [L] or [B, L]."""
        if self.scope == ALL_TOKENS:
            return torch.ones_like(columns)
        if self.mode == "authors":
            # The published code resets the columns from 1 on only, which leaves the first one weighted.
            columns = columns.clone()
            columns[..., 0] = True
        return columns


class Reweighter:
    """The state of one sampling run: the weights that follow from what was last seen. Make a new one per run."""

    def __init__(
        self, settings: ReweightingSettings, y0: Tensor, latent_mask: Tensor, columns: Tensor, steps: int = 0
    ) -> None:
        """y0: latents [B, C, h, w] of the normal pictures; latent_mask [B, 1, h, w]; columns as in AttentionGain.

        ``steps`` of the run matters to ``authors`` only.
        """
        self.settings = settings
        self._y0 = y0
        self._mask = latent_mask.expand(len(y0), -1, -1, -1).float()
        self._columns = settings.chosen_columns(columns)
        self._steps = steps
        self._weights: Tensor | None = None

    def region(self, time: float) -> Tensor:
        """The mask [B, 1, h, w] to blend in at ``time`` in 0 .. 999: the latent mask, grown in ``authors``."""
        return grown(self._mask, authors_radius(time, self._steps)) if self.settings.mode == "authors" else self._mask

    def see_noisy(self, noisy: Tensor, time: float) -> None:
        """Take the noisy latent [B, C, h, w] (variance preserving) a model call begins with; for ``authors`` only."""
        if self.settings.source == "noisy":
            region = self.region(time).to(noisy.device)[:, 0]
            self._weights = self._weights_from(latent_difference(noisy, self._y0), region)

    def observe(self, denoised: Tensor) -> None:
        """Take the clean estimate [B, C, h, w] of the step just done, before it is blended with y0."""
        if self.settings.source in (PREVIOUS, SAME):
            self.observe_difference(latent_difference(denoised, self._y0))

    def observe_difference(self, difference: Tensor) -> None:
        """Take a difference map [B, h, w] >= 0 from elsewhere, for example from decoded pictures."""
        mask = self._mask[:, 0].to(difference.device)
        self._weights = self._weights_from(difference.float(), mask)

    def gain(self, percent: float) -> AttentionGain | None:
        """The weights for the step at ``percent`` of the run; None before the first observation and out of range."""
        if self.settings.mode == PROMPT_TO_PROMPT and self.settings.in_range(percent):
            return AttentionGain(self.settings.strength * self._mask[:, 0], self._columns, replaces=True)
        if self._weights is None or not self.settings.in_range(percent):
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
    settings: ReweightingSettings | None, y0: Tensor, latent_mask: Tensor, columns: Tensor, steps: int = 0
) -> Reweighter | None:
    """A fresh Reweighter for one run, or None (nothing is to be installed) without settings or at strength 0."""
    if settings is None or settings.strength == 0:
        return None
    return Reweighter(settings, y0, latent_mask, columns, steps)
