"""Images that a training learns from, augmented and encoded before the loop, and renewed between its steps.

A step of the loop never calls the VAE. With a refresh rate, augmented images are replaced one by one by new ones;
which image comes next, and what it looks like, depends on the seed and the number of the replacement alone, so that
a resumed training finds the very bank it was stopped with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..data.mask_resizing import target_size
from ..data.training import View, fit_view, whole_views
from ..denoiser import Denoiser
from ..errors import InputError
from ..sampling.blending import latent_mask
from .augment import AugmentSettings, augment_view
from .settings import EmbeddingSettings

OnPrepare = Callable[[int, int], None]
Pairs = tuple[Tensor, Tensor] | Sequence[View]
"""Of one type: images [N, 3, H, W] in [0, 1] and masks [N, 1, H, W] of {0, 1} as wholes, or views."""


def views_of(pairs: Pairs, canvas: tuple[int, int]) -> Sequence[View]:
    """Pairs of a type as views for a canvas (height, width)."""
    if isinstance(pairs, tuple):
        return whole_views(pairs[0], pairs[1], canvas)
    return pairs


@dataclass(frozen=True)
class LatentBank:
    """Encoded images, ready for the loop.

    latents [M, C, h, w]; latent_masks [M, 1, h, w] of {0, 1}, max-pooled; masks uint8 [M, 1, H, W]; members: for each
    type the rows that belong to it. deviations: of the VAE's posterior, like latents; None where only means are used.
    """

    latents: Tensor
    latent_masks: Tensor
    masks: Tensor
    members: tuple[tuple[int, ...], ...]
    deviations: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Memory of all tensors in bytes."""
        tensors = (self.latents, self.latent_masks, self.masks, self.deviations)
        return sum(x.numel() * x.element_size() for x in tensors if x is not None)


def build_bank(
    denoiser: Denoiser,
    pairs: Sequence[Pairs],
    *,
    resolution: int | tuple[int, int],
    copies: int,
    seed: int,
    batch_size: int,
    augment: AugmentSettings | None = None,
    on_prepare: OnPrepare | None = None,
    deviations: bool = False,
) -> LatentBank:
    """Augment and encode the pairs of each type: every pair once as it is and ``copies`` times augmented.

    resolution: side of squares, or (height, width). ``on_prepare(done, total)`` is called after each encoded batch and
    may raise. deviations: keep the deviation of the VAE's posterior too. Raises InputError for bad sizes, grey or
    empty masks, and a VAE without a posterior.
    """
    canvas = target_size(resolution)
    if any(side < denoiser.downscale or side % denoiser.downscale for side in canvas):
        sides = " x ".join(str(side) for side in dict.fromkeys(canvas))
        raise InputError(
            f"resolution: {sides} is not a multiple of {denoiser.downscale}. Choose one, for example 256."
        )
    if copies < 0:
        raise InputError(f"augmented copies: {copies} is not possible. Give 0 or more.")
    generator = torch.Generator().manual_seed(seed)
    types = [views_of(own, canvas) for own in pairs]
    total = sum(len(views) for views in types) * (1 + copies)
    mirror = augment is None or augment.mirror
    waiting: list[Tensor] = []
    masks: list[Tensor] = []
    members: list[tuple[int, ...]] = []
    encoded: list[tuple[Tensor, Tensor | None]] = []

    def add(image: Tensor, mask: Tensor) -> None:
        # Encoded as they come: all images at once could take far more memory than the training.
        waiting.append(image)
        masks.append(mask)
        if len(waiting) == batch_size or len(masks) == total:
            encoded.append(_encode(denoiser, torch.stack(waiting), deviations))
            waiting.clear()
            if on_prepare is not None:
                on_prepare(len(masks), total)

    for views in types:
        first = len(masks)
        for view in views:
            add(*fit_view(view, canvas, mirror))
            for _ in range(copies):
                add(*augment_view(view, generator, canvas, augment))
        members.append(tuple(range(first, len(masks))))
    all_masks = torch.stack(masks)
    spreads = [spread for _, spread in encoded if spread is not None]
    return LatentBank(
        latents=torch.cat([mean for mean, _ in encoded]),
        latent_masks=latent_mask(all_masks, denoiser.downscale).to(denoiser.device),
        masks=all_masks.to(torch.uint8),
        members=tuple(members),
        deviations=torch.cat(spreads) if spreads else None,
    )


@torch.no_grad()
def _encode(denoiser: Denoiser, images: Tensor, deviations: bool) -> tuple[Tensor, Tensor | None]:
    pixels = images.to(denoiser.device)
    if not deviations:
        return denoiser.encode(pixels).float().clone(), None
    moments: Any = getattr(denoiser, "encode_moments", None)
    if moments is None:
        raise InputError("sample latents: this VAE gives no deviation. Switch the option off, or use another VAE.")
    mean, deviation = moments(pixels)
    return mean.float().clone(), deviation.float().clone()


class BankRefresher:
    """Replaces the augmented images of a bank one by one, in a fixed random order, round after round."""

    def __init__(
        self,
        denoiser: Denoiser,
        bank: LatentBank,
        pairs: Sequence[Pairs],
        *,
        resolution: int | tuple[int, int],
        copies: int,
        seed: int,
        augment: AugmentSettings | None = None,
    ) -> None:
        """The same arguments as of the ``build_bank`` that made ``bank``. Raises InputError without copies."""
        if copies < 1:
            raise InputError("refresh: there are no augmented copies to renew. Give at least 1, or set refresh to 0.")
        self.denoiser, self.bank, self.canvas = denoiser, bank, target_size(resolution)
        self.types = [views_of(own, self.canvas) for own in pairs]
        self.seed, self.augment = seed, augment
        self._sources: list[tuple[int, int, int]] = []
        row = 0
        for kind, views in enumerate(self.types):
            for number in range(len(views)):
                self._sources += [(row + 1 + copy, kind, number) for copy in range(copies)]
                row += 1 + copies
        order = torch.randperm(len(self._sources), generator=torch.Generator().manual_seed(seed)).tolist()
        self._sources = [self._sources[i] for i in order]

    def refresh(self, number: int) -> None:
        """Carry out replacement ``number``, from 0. Raises what the VAE raises; the bank is then unchanged."""
        row, kind, place = self._sources[number % len(self._sources)]
        digest = hashlib.sha256(f"{self.seed}|{number}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        image, mask = augment_view(self.types[kind][place], generator, self.canvas, self.augment)
        # Alone in its batch: a resumed training repeats the replacement and must get the same numbers.
        mean, deviation = _encode(self.denoiser, image[None], self.bank.deviations is not None)
        self.bank.latents[row] = mean[0].to(self.bank.latents)
        if self.bank.deviations is not None and deviation is not None:
            self.bank.deviations[row] = deviation[0].to(self.bank.deviations)
        self.bank.latent_masks[row] = latent_mask(mask[None], self.denoiser.downscale)[0].to(self.bank.latent_masks)
        self.bank.masks[row] = mask.to(torch.uint8)

    def replay(self, count: int) -> None:
        """Bring a freshly built bank to where it is after ``count`` replacements."""
        for number in range(max(0, count - len(self._sources)), count):
            self.refresh(number)


def bank_of(
    denoiser: Denoiser,
    pairs: Sequence[Pairs],
    settings: EmbeddingSettings,
    on_prepare: OnPrepare | None = None,
    moves: AugmentSettings | None = None,
    canvas: tuple[int, int] | None = None,
) -> tuple[LatentBank, BankRefresher | None]:
    """The bank that a training's settings ask for, and what renews it where they ask for that.

    moves: how copies are augmented; the settings say whether they are mirrored too. canvas: (height, width) of what is
    learned, by default a square of the settings' resolution.
    """
    augment = replace(moves or AugmentSettings(), flips=settings.flips)
    sizes = {"resolution": canvas or settings.resolution, "copies": settings.augmented_copies, "seed": settings.seed}
    bank = build_bank(
        denoiser,
        pairs,
        **sizes,  # type: ignore[arg-type]
        batch_size=settings.batch_size,
        augment=augment,
        on_prepare=on_prepare,
        deviations=settings.options.sample_latents,
    )
    if not settings.options.refresh_every:
        return bank, None
    return bank, BankRefresher(denoiser, bank, pairs, **sizes, augment=augment)  # type: ignore[arg-type]
