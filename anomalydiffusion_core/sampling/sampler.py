"""The third seam, beside Denoiser and PromptEncoder: ComfyUI's samplers or diffusers' schedulers.

Conditioning is opaque to the engine: a host may carry areas, hooks or control in it. What the engine needs to know of
it stands in :class:`Conditioning`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..errors import InputError
from ..options import LARGEST_SEED, Settings, option
from ..progress import Progress
from ..scale import TrainedView
from .reweighting import ReweightingSettings

VAE_STEPS = 4
"""Sampling steps that an image on its way through the autoencoder counts for on a progress bar."""


@dataclass(frozen=True)
class SamplingSettings(Settings):
    """What every sampler asks for. Which names of samplers and schedulers there are is the sampler's to say."""

    seed: int = option(0, "Sample i uses seed + i and does not depend on the others.", min=0, max=LARGEST_SEED)
    steps: int = option(25, "Sampling steps.", min=1, max=10000)
    cfg: float = option(
        2.5, "Guidance scale. 1 needs no negative conditioning and is twice as fast.", min=0, max=100, step=0.1
    )
    sampler_name: str = option("euler", "The sampler.")
    scheduler: str = option("normal", "The scheduler, which spaces the noise levels.")
    batch_size: int = option(
        8,
        "Samples computed at once. Changes speed and memory use; a few values may differ by one level of 255.",
        min=1,
        max=256,
    )
    denoise: float = option(
        1.0, "1 redraws the masked region from noise; less keeps some of what is there.", min=0.01, max=1, step=0.01
    )

    @property
    def guided(self) -> bool:
        """Whether the negative conditioning is used."""
        return abs(self.cfg - 1) > 1e-9


@dataclass(frozen=True)
class Weighting:
    """Re-weighting of one call. images [N, 3, H, W] in [0, 1]: what the latents are of, for decoded differences."""

    settings: ReweightingSettings
    images: Tensor | None = None

    def part(self, start: int, stop: int) -> Weighting:
        """The part for some of the samples."""
        return replace(self, images=None if self.images is None else self.images[start:stop])


class Conditioning(Protocol):
    """What a sampler is told to generate: one row for all samples, or one row for each."""

    @property
    def resolution(self) -> int:
        """The resolution in pixels that its tokens were trained at, 0 when unknown."""
        ...

    @property
    def view(self) -> TrainedView | None:
        """How its defect type was looked at in training, None when that is not known."""
        ...

    @property
    def made_for(self) -> tuple[str, ...]:
        """`mask_digests` of the masks that its rows were made for, none where it does not depend on masks."""
        ...

    @property
    def learned_from(self) -> Mapping[str, Any]:
        """Marks of the images that its tokens were learned from, see ``data/provenance.py``; empty when unknown."""
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
        """The same with its anomaly embedding remade for ``masks`` [B, 1, H, W] of {0, 1}, one row each."""
        ...


class Sampler(Protocol):
    """Samples latents with one model. Latents are in the scale that ``encode`` returns, on the CPU."""

    @property
    def denoiser(self) -> Denoiser:
        """The model that is sampled with."""
        ...

    def check(self, settings: SamplingSettings, negative: Conditioning | None) -> None:
        """Raise InputError for an unknown sampler or scheduler, and for a cfg other than 1 without a negative."""
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

        Sample i uses ``seeds[i]`` alone, by default ``settings.seed + i``. Conditioning must fit (see its ``check``).
        ``progress`` advances by ``settings.steps`` for each sample. Raises as ``check``.
        """
        ...


class BatchedSampler(ABC):
    """What the samplers share: they check their settings and sample in parts of ``batch_size``."""

    samplers: Sequence[str]
    schedulers: Sequence[str]

    def check(self, settings: SamplingSettings, negative: Any) -> None:
        """As of a Sampler."""
        for name, value, known in (
            ("sampler_name", settings.sampler_name, self.samplers),
            ("scheduler", settings.scheduler, self.schedulers),
        ):
            if value not in known:
                raise InputError(f"{name}: unknown value '{value}'. Choose one of: {', '.join(known)}.")
        if settings.guided and negative is None:
            raise InputError(f"cfg: {settings.cfg:g} requires a negative conditioning. Connect one or set cfg to 1.")

    def sample(
        self,
        latents: Tensor,
        cells: Tensor | None,
        positive: Any,
        negative: Any,
        settings: SamplingSettings,
        progress: Progress,
        weighting: Weighting | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """As of a Sampler."""
        self.check(settings, negative)
        count, size = len(latents), self.part_size(settings)
        seeds = range(settings.seed, settings.seed + count) if seeds is None else seeds
        done = []
        for start in range(0, count, size):
            stop = min(start + size, count)
            places = range(start, stop)
            done.append(
                self.sample_part(
                    latents[start:stop],
                    None if cells is None else cells[start:stop],
                    positive.select(places, count),
                    None if negative is None else negative.select(places, count),
                    settings,
                    progress,
                    None if weighting is None else weighting.part(start, stop),
                    seeds[start:stop],
                )
            )
        return torch.cat(done)

    def part_size(self, settings: SamplingSettings) -> int:
        """Samples computed at once."""
        return settings.batch_size

    @abstractmethod
    def sample_part(
        self,
        latents: Tensor,
        cells: Tensor | None,
        positive: Any,
        negative: Any,
        settings: SamplingSettings,
        progress: Progress,
        weighting: Weighting | None,
        seeds: Sequence[int],
    ) -> Tensor:
        """Sample all of these at once; conditioning has one row, or one for each of them."""


def starting_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Noise [N, *shape] on the CPU; entry i comes from ``seeds[i]`` alone."""
    return torch.stack([torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def sample_from_noise(
    sampler: Sampler,
    count: int,
    size: tuple[int, int],
    positive: Conditioning,
    negative: Conditioning | None,
    settings: SamplingSettings,
    progress: Progress,
) -> Tensor:
    """``count`` images [count, 3, H, W] in [0, 1] of ``size`` (H, W) from noise, for example of masks (Eq. 10).

    ``progress`` advances by ``settings.steps + VAE_STEPS`` for each. Raises InputError for a size that the model's
    grid does not divide, and as ``Sampler.check``.
    """
    denoiser = sampler.denoiser
    if any(side < denoiser.downscale or side % denoiser.downscale for side in size):
        raise InputError(f"size: {size[1]} x {size[0]} is not a multiple of {denoiser.downscale}. Choose 256, say.")
    cells = [side // denoiser.downscale for side in size]
    start = torch.zeros(count, denoiser.latent_channels, *cells)
    return sampler.decode(sampler.sample(start, None, positive, negative, settings, progress), progress)
