"""The third seam, beside Denoiser and PromptEncoder: what draws latents, ComfyUI's samplers or diffusers' schedulers.

Conditioning is opaque to the engine: a host may carry areas, hooks or control in it. What the engine needs to know of
it stands in :class:`Conditioning`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from ..denoiser import Denoiser
from ..options import LARGEST_SEED, Settings, option
from ..progress import Progress
from .reweighting import ReweightingSettings

VAE_STEPS = 4
"""Sampling steps that an image on its way through the autoencoder counts for on a progress bar."""


@dataclass(frozen=True)
class SamplingSettings(Settings):
    """What every sampler asks for. Which names of samplers and schedulers there are is the sampler's to say."""

    seed: int = option(0, "Sample i uses the seed + i and does not depend on the others.", min=0, max=LARGEST_SEED)
    steps: int = option(25, "Sampling steps.", min=1, max=10000)
    cfg: float = option(
        2.5, "Guidance scale. 1 needs no negative conditioning and is twice as fast.", min=0, max=100, step=0.1
    )
    sampler_name: str = option("euler", "The sampler.")
    scheduler: str = option("normal", "The scheduler, which spaces the noise levels.")
    batch_size: int = option(8, "Samples computed at once. Changes speed and memory, not the result.", min=1, max=256)
    denoise: float = option(
        1.0, "1 redraws the masked region from noise; less keeps some of what is there.", min=0.01, max=1, step=0.01
    )


@dataclass(frozen=True)
class Weighting:
    """Re-weighting of one call. images [N, 3, H, W] in [0, 1]: what the latents are of, for decoded differences."""

    settings: ReweightingSettings
    images: Tensor | None = None

    def part(self, start: int, stop: int) -> Weighting:
        """That of some of the samples."""
        return replace(self, images=None if self.images is None else self.images[start:stop])


class Conditioning(Protocol):
    """What a sampler is told to draw: one row for all samples, or one row for each."""

    @property
    def resolution(self) -> int:
        """The resolution in pixels that its tokens were trained at, 0 when unknown."""
        ...

    @property
    def has_columns(self) -> bool:
        """Whether it says which rows of its context are the anomaly embedding, which re-weighting needs."""
        ...

    @property
    def placed(self) -> list[str]:
        """Names of what in it belongs to places of the whole image, so that windows are impossible."""
        ...

    def check(self, denoiser: Denoiser, name: str, count: int) -> None:
        """Raise InputError, naming the input ``name``, unless width, base model and rows fit ``count`` samples."""
        ...

    def select(self, places: Sequence[int], count: int) -> Conditioning:
        """The part of a conditioning for ``count`` samples that belongs to those at ``places``, in their order."""
        ...

    def for_masks(self, masks: Tensor) -> Conditioning:
        """The same with its anomaly embedding made anew for ``masks`` [B, 1, H, W] of {0, 1}, one row each."""
        ...


class Sampler(Protocol):
    """Draws latents with one model. Latents are in the scale that ``encode`` returns, on the CPU."""

    @property
    def denoiser(self) -> Denoiser:
        """The model that is sampled with."""
        ...

    def encode(self, images: Tensor, progress: Progress) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to latents. ``progress`` advances by VAE_STEPS for each image."""
        ...

    def decode(self, latents: Tensor, progress: Progress) -> Tensor:
        """Latents to images [B, 3, H, W] in [0, 1] on the CPU. ``progress`` advances by VAE_STEPS for each image."""
        ...

    def sample(
        self,
        latents: Tensor,
        cells: Tensor | None,
        positive: Conditioning,
        negative: Conditioning | None,
        settings: SamplingSettings,
        progress: Progress,
        weighting: Weighting | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """Sample over ``latents`` [N, C, h, w] inside ``cells`` [N, 1, h, w] of {0, 1}, or everywhere without.

        Sample i uses ``seeds[i]`` alone, by default ``settings.seed + i``. ``progress`` advances by
        ``settings.steps`` for each sample. Raises InputError for an unknown sampler or scheduler, and for a cfg other
        than 1 without a negative.
        """
        ...
