"""Adaptive attention re-weighting (paper, section 3.3): more attention where the anomaly is still weak.

The weight map compares a clean estimate of the image with the normal one, by default the estimate of the previous
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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..options import Settings, option
from .attention_gain import AttentionGain

OFF, MONOTONE, PAPER, AUTHORS, PROMPT_TO_PROMPT = "off", "monotone", "paper", "authors", "prompt-to-prompt"
MODES = (MONOTONE, PAPER, AUTHORS, PROMPT_TO_PROMPT)
AUTHORS_CAP = 1.5
PREVIOUS, SAME, DECODED = "previous step", "same step", "decoded"
DIFFERENCES = (PREVIOUS, SAME, DECODED)
"""Where the difference comes from: the clean estimate of the previous step; of this step, by one more model call
without weights; or images decoded every few steps."""
ANOMALY_TOKENS, ALL_TOKENS = "anomaly tokens", "all tokens"
TOKEN_SCOPES = (ANOMALY_TOKENS, ALL_TOKENS)
DECODED_CONTEXT = 4
"""Latent cells around the mask that are decoded with it, so that the decoder sees what borders on it."""


def latent_difference(denoised: Tensor, y0: Tensor) -> Tensor:
    """Squared difference of two latents [B, C, h, w], mean over channels: [B, h, w]."""
    return (denoised - y0).float().square().mean(dim=1)


def decoded_difference(images: Tensor, normals: Tensor, downscale: int) -> Tensor:
    """Squared difference of two images [B, 3, H, W], mean over channels and latent cells: [B, H / downscale, ...].

    The pixel form of Eq. 7, brought to latent resolution.
    """
    squared = (images - normals).float().square().mean(dim=1, keepdim=True)
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
class ReweightingSettings(Settings):
    """How to re-weight. Percents are shares of the sampling run, 0 at its first step.

    ``paper`` with temperature 1, raw_difference and a large cap is literal Eq. 7 inside the mask; ``paper`` and
    ``authors`` apply 1 + strength (w - 1). ``authors`` has a difference of its own.
    """

    reweighting: str = option(
        MODES[0],
        "Adaptive attention re-weighting: more attention to the anomaly where little has changed yet. monotone is "
        "safe; paper and authors follow the publication and its code; prompt-to-prompt replaces the attention map by "
        "the mask, for comparison; off is plain sampling.",
        choices=(OFF, *MODES),
    )
    strength: float = option(
        1.0, "Strength of the re-weighting. 0 is exactly plain sampling.", min=0, max=10, step=0.05
    )
    cap: float = option(
        2.0, "Largest weight of the re-weighting; authors never exceeds 1.5.", min=1, max=1_000_000, step=0.05
    )
    start_percent: float = option(0.0, "Share of the steps after which re-weighting starts.", min=0, max=1, step=0.01)
    end_percent: float = option(1.0, "Share of the steps after which re-weighting ends.", min=0, max=1, step=0.01)
    difference: str = option(
        DIFFERENCES[0],
        "What tells how much has changed: the latent of the previous step (free), the latent of the same step (one "
        "more model call), or decoded images. authors always uses the noisy latent, as its code does.",
        choices=DIFFERENCES,
    )
    decode_every: int = option(5, "With difference decoded: number of steps between two decodings.", min=1, max=1000)
    token_scope: str = option(
        TOKEN_SCOPES[0],
        "Which part of the conditioning gets more attention: only the anomaly's tokens, or all of it. Where all "
        "of it is the anomaly, as without a CLIP, re-weighting only scales what the layer adds.",
        choices=TOKEN_SCOPES,
    )
    temperature: float = option(
        1.0,
        "Softmax temperature of the mode paper. Higher spreads the weights more evenly.",
        min=0.001,
        max=1000,
        step=0.05,
        exact=True,
    )
    raw_difference: bool = option(
        False,
        "In the mode paper: use the difference as it is instead of dividing it by its mean inside the mask. With "
        "temperature 1 and a large cap this is literally Eq. 7.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start_percent > self.end_percent:
            raise InputError(
                f"start_percent, end_percent: {self.start_percent} is after {self.end_percent}. Give the start first."
            )

    @property
    def active(self) -> bool:
        """Whether it changes anything."""
        return self.reweighting != OFF and self.strength > 0

    @property
    def source(self) -> str:
        """The difference that is used: "noisy" for ``authors``, "none" for ``prompt-to-prompt``, else as chosen."""
        return {AUTHORS: "noisy", PROMPT_TO_PROMPT: "none"}.get(self.reweighting, self.difference)

    def in_range(self, percent: float) -> bool:
        """Whether weights apply at this share of the run."""
        return self.start_percent <= percent <= self.end_percent

    def chosen_columns(self, columns: Tensor) -> Tensor:
        """The context rows that are weighted, out of those that are the anomaly; bool [L] or [B, L]."""
        if self.token_scope == ALL_TOKENS:
            return torch.ones_like(columns)
        if self.reweighting == AUTHORS:
            # The published code resets the columns from 1 on only, which leaves the first one weighted.
            columns = columns.clone()
            columns[..., 0] = True
        return columns

    def to_record(self) -> dict[str, Any]:
        """What was set, for the record of a sample: only what has an effect in this mode."""
        record: dict[str, Any] = {"reweighting": self.reweighting, "strength": self.strength}
        if self.reweighting != OFF:
            record |= {"difference": self.source, "cap": self.cap, "start_percent": self.start_percent}
            record |= {"end_percent": self.end_percent, "scope": self.token_scope}
        if self.reweighting == PAPER:
            record |= {"temperature": self.temperature, "normalise": not self.raw_difference}
        return record


class Reweighter:
    """The state of one sampling run: the weights that follow from what was last seen. Make a new one per run."""

    def __init__(
        self,
        settings: ReweightingSettings,
        y0: Tensor,
        latent_mask: Tensor,
        columns: Tensor,
        steps: int = 0,
        decoded: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """y0: latents [B, C, h, w] of the normal images; latent_mask [B, 1, h, w]; columns as in AttentionGain.

        ``steps`` of the run matters to ``authors`` only. decoded: clean estimates to their decoded differences
        [B, h, w], as :class:`DecodedDifference`; used when the settings say so.
        """
        self.settings = settings
        self._y0 = y0
        self._mask = latent_mask.expand(len(y0), -1, -1, -1).float()
        self._columns = settings.chosen_columns(columns)
        self._steps = steps
        self._decoded = decoded if settings.source == DECODED else None
        self._decoded_at: int | None = None
        self._weights: Tensor | None = None

    def region(self, time: float) -> Tensor:
        """The mask [B, 1, h, w] to blend in at ``time`` in 0 .. 999: the latent mask, grown in ``authors``."""
        radius = authors_radius(time, self._steps) if self.settings.reweighting == AUTHORS else 0
        return grown(self._mask, radius)

    def before_step(
        self, noisy: Tensor, time: float, percent: float, unweighted: Callable[[], Tensor]
    ) -> AttentionGain | None:
        """The weights of a model call on ``noisy`` [B, C, h, w] (variance preserving) at ``percent`` of the run.

        unweighted: the clean estimate of this call without weights; called for the difference of the same step.
        """
        self.see_noisy(noisy, time)
        if self.settings.source == SAME and self.settings.in_range(percent):
            self.observe(unweighted())
        return self.gain(percent)

    def after_step(self, step: int, denoised: Tensor) -> None:
        """Take the guided clean estimate [B, C, h, w] of the model call number ``step``, before it is blended."""
        if self.settings.source == PREVIOUS:
            self.observe(denoised)
        elif self._decoded is not None and (
            self._decoded_at is None or step >= self._decoded_at + self.settings.decode_every
        ):
            self._decoded_at = step
            self.observe_difference(self._decoded(denoised))

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
        """Take a difference map [B, h, w] >= 0 from elsewhere, for example from decoded images."""
        mask = self._mask[:, 0].to(difference.device)
        self._weights = self._weights_from(difference.float(), mask)

    def gain(self, percent: float) -> AttentionGain | None:
        """The weights for the step at ``percent`` of the run; None before the first observation and out of range."""
        if self.settings.reweighting == PROMPT_TO_PROMPT and self.settings.in_range(percent):
            return AttentionGain(self.settings.strength * self._mask[:, 0], self._columns, replaces=True)
        if self._weights is None or not self.settings.in_range(percent):
            return None
        return AttentionGain(self._weights, self._columns, on_logits=self.settings.reweighting == AUTHORS)

    def _weights_from(self, difference: Tensor, mask: Tensor) -> Tensor:
        settings = self.settings
        if settings.reweighting == MONOTONE:
            return monotone_weights(difference, mask, settings.strength, settings.cap)
        if settings.reweighting == AUTHORS:
            weights = authors_weights(difference, mask, min(settings.cap, AUTHORS_CAP))
        else:
            source = difference if settings.raw_difference else normalised(difference, mask)
            weights = paper_weights(source, mask, settings.temperature)
        weights = (1 + settings.strength * (weights - 1)).clamp(0, settings.cap)
        return torch.where(mask > 0, weights, torch.ones_like(weights))


class DecodedDifference:
    """Differences of decoded clean estimates to the normal images, in windows of one size around the masks."""

    def __init__(
        self, images: Tensor, latent_mask: Tensor, downscale: int, decode: Callable[[Tensor], Tensor]
    ) -> None:
        """Images [B, 3, H, W] in [0, 1]; masks [B, 1, h, w]; decode: latents to images [B, 3, ...] in [0, 1]."""
        self._shape, self._decode, self._grid = latent_mask.shape, decode, downscale
        self._corners, self._size = common_windows(latent_mask, DECODED_CONTEXT)
        height, width = (side * downscale for side in self._size)
        parts = [
            image[:, top * downscale : top * downscale + height, left * downscale : left * downscale + width]
            for image, (top, left) in zip(images, self._corners, strict=True)
        ]
        self._normals = torch.stack(parts)

    def __call__(self, clean: Tensor) -> Tensor:
        """Difference maps [B, h, w] of clean estimates [B, C, h, w], 0 outside the windows."""
        height, width = self._size
        parts = [
            sample[:, top : top + height, left : left + width]
            for sample, (top, left) in zip(clean, self._corners, strict=True)
        ]
        decoded = self._decode(torch.stack(parts))
        values = decoded_difference(decoded, self._normals.to(decoded), self._grid).to(clean.device)
        maps = torch.zeros(self._shape[0], *self._shape[-2:], device=clean.device)
        for place, (top, left) in enumerate(self._corners):
            maps[place, top : top + height, left : left + width] = values[place]
        return maps


def common_windows(cells: Tensor, margin: int) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Windows of one size around masks [B, 1, h, w], none empty: their corners (top, left), and that (height, width).

    Each holds its mask with ``margin`` cells around it, as far as the map has them.
    """
    sides = tuple(cells.shape[-2:])
    boxes = []
    for mask in cells[:, 0] > 0:
        marked = [mask.any(dim=axis).nonzero().flatten() for axis in (1, 0)]
        boxes.append([(int(places[0]), int(places[-1]) + 1) for places in marked])
    lengths = [min(max(box[axis][1] - box[axis][0] for box in boxes) + 2 * margin, sides[axis]) for axis in range(2)]
    corners = []
    for box in boxes:
        starts = [
            min(max((box[axis][0] + box[axis][1] - lengths[axis]) // 2, 0), sides[axis] - lengths[axis])
            for axis in range(2)
        ]
        corners.append((starts[0], starts[1]))
    return corners, (lengths[0], lengths[1])
