"""Good pictures with masks, prepared once, from which defects are drawn: whole pictures and enlarged windows alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..anomalydiffusion_core.errors import InputError
from ..anomalydiffusion_core.sampling.blending import (
    Padding,
    composite,
    crop_back,
    latent_mask,
    pad_mask_to_multiple,
    pad_to_multiple,
)
from ..anomalydiffusion_core.sampling.effect import Effect, effect_score
from ..anomalydiffusion_core.sampling.reweighting import ReweightingSettings
from ..anomalydiffusion_core.sampling.windows import CropSettings, Window, cut_mask, cut_picture, plan_window, stitch
from .host import conditioning as host_conditioning
from .host import denoiser as host_models
from .host import sampler as host_sampling
from .host.progress import Progress

SMALLEST_CELLS = 4
"""Smaller pictures are padded to this many latent cells a side: a U-Net halves them, and norms need more than one."""


@dataclass(frozen=True)
class Drawing:
    """How defects are drawn and finished. feather in pixels; grey_lock keeps grey pictures grey."""

    settings: host_sampling.SamplingSettings
    reweighting: ReweightingSettings | None = None
    feather: int = 2
    grey_lock: bool = False


@dataclass(frozen=True)
class Drawn:
    """Finished pictures [n, 3, H, W], the sampled latents of the views they were drawn in, and their scores."""

    images: Tensor
    latents: list[Tensor]
    scores: Effect


@dataclass(frozen=True)
class _View:
    """What one sample is drawn in: a window of its picture, or all of it (window None).

    picture [3, h, w] and mask [1, h, w] at the size that is sampled, latent [C, h', w'] of the padded picture,
    reconstruction [3, H, W]: the whole picture with the view in it as the VAE alone returns it.
    """

    window: Window | None
    picture: Tensor
    mask: Tensor
    latent: Tensor | None = None
    reconstruction: Tensor | None = None


@dataclass
class Scene:
    """Pictures [N, 3, H, W] in [0, 1] and masks [N, 1, H, W] of {0, 1}, as many of each, and a view of each.

    ``remade``: conditioning is made anew for the masks as they are here (they are not what the user connected).
    """

    denoiser: host_models.ComfyDenoiser
    normals: Tensor
    masks: Tensor
    crop: CropSettings
    remade: bool = False
    shared: bool = False
    _views: list[_View] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        windows = [plan_window(mask, self.crop, self.denoiser.downscale) for mask in self.masks]
        for picture, mask, window in zip(self.normals, self.masks, windows, strict=True):
            if window is not None:
                picture, mask = cut_picture(picture, window), cut_mask(mask, window)
            self._views.append(_View(window, picture, mask))

    def __len__(self) -> int:
        return len(self.normals)

    @property
    def windows(self) -> list[Window | None]:
        """The window of each sample, None for a whole picture."""
        return [view.window for view in self._views]

    @property
    def encodings(self) -> int:
        """Pictures that ``prepare`` puts through the VAE, both ways."""
        whole = self.windows.count(None)
        return len(self) - whole + (min(whole, 1) if self.shared else whole)

    def prepare(self, progress: Progress) -> None:
        """Latents and reconstructions of all views. ``progress`` goes on by 2 VAE_STEPS for each of ``encodings``."""
        for places in self._groups(range(len(self))):
            whole = self._views[places[0]].window is None
            chosen = places[:1] if whole and self.shared else places
            pictures = torch.stack([self._views[place].picture for place in chosen])
            latents = self.denoiser.vae_encode(self._padded(pictures)[0], progress)
            decoded = self._decode(latents, chosen, progress)
            for number, place in enumerate(places):
                number = min(number, len(chosen) - 1)
                changed = replace(self._views[place], latent=latents[number], reconstruction=decoded[number])
                self._views[place] = changed

    def draw(
        self,
        positive: host_models.Conditioning,
        negative: host_models.Conditioning | None,
        drawing: Drawing,
        places: Sequence[int],
        seeds: Sequence[int],
        progress: Progress,
    ) -> Drawn:
        """Sample the views at ``places`` with these seeds, put them back into their pictures, and measure.

        Conditioning has one row, or one for each of ``places``. ``progress`` goes on by the steps and VAE_STEPS for
        each of them.
        """
        count = len(places)
        for name, conditioning in (("positive", positive), ("negative", negative)):
            host_conditioning.check_conditioning(self.denoiser, conditioning, name, count)
        images, latents = self.normals[list(places)].clone(), [torch.empty(0)] * count
        for group in self._groups(places):
            numbers = [list(places).index(place) for place in group]
            own = host_conditioning.select(positive, numbers, count)
            against = None if negative is None else host_conditioning.select(negative, numbers, count)
            sampled = self._sample(own, against, drawing, group, [seeds[number] for number in numbers], progress)
            for number, latent, picture in zip(numbers, sampled, self._decode(sampled, group, progress), strict=True):
                images[number], latents[number] = picture, latent
        return self._finish(images, latents, drawing, places)

    def latent_of(self, drawn: Sequence[Tensor], images: Tensor, progress: Progress) -> Tensor:
        """Latents [N, C, h, w] of whole pictures: those that were sampled; of windows, of the finished picture."""
        windows = self.windows
        if not any(windows):
            return torch.stack(list(drawn))
        padded, _ = self._padded(images)
        latents = []
        for place, window in enumerate(windows):
            own = padded[place : place + 1]
            latents.append(drawn[place] if window is None else self.denoiser.vae_encode(own, progress)[0])
        return torch.stack(latents)

    def _padded(self, pictures: Tensor) -> tuple[Tensor, Padding]:
        grid = self.denoiser.downscale
        return pad_to_multiple(pictures, grid, SMALLEST_CELLS * grid)

    def _groups(self, places: Sequence[int]) -> list[list[int]]:
        """``places`` in groups whose views have one size and can be sampled together; whole pictures apart."""
        groups: dict[tuple[bool, int, int], list[int]] = {}
        for place in places:
            view = self._views[place]
            height, width = view.picture.shape[-2:]
            groups.setdefault((view.window is None, height, width), []).append(place)
        return list(groups.values())

    def _sample(
        self,
        positive: host_models.Conditioning,
        negative: host_models.Conditioning | None,
        drawing: Drawing,
        places: Sequence[int],
        seeds: Sequence[int],
        progress: Progress,
    ) -> Tensor:
        views = [self._views[place] for place in places]
        grid = self.denoiser.downscale
        masks = torch.stack([view.mask for view in views])
        if self.remade or views[0].window is not None:
            positive = host_conditioning.for_masks(positive, masks)
        weighting = None
        if drawing.reweighting is not None:
            padded, _ = self._padded(torch.stack([view.picture for view in views]))
            weighting = host_sampling.Weighting(drawing.reweighting, padded)
        return host_sampling.sample_latents(
            self.denoiser,
            torch.stack([_known(view.latent) for view in views]),
            latent_mask(pad_mask_to_multiple(masks, grid, SMALLEST_CELLS * grid), grid),
            positive,
            negative,
            drawing.settings,
            progress,
            weighting,
            seeds,
        )

    def _decode(self, latents: Tensor, places: Sequence[int], progress: Progress) -> Tensor:
        """Whole pictures [n, 3, H, W] with decoded views in them."""
        views = [self._views[place] for place in places]
        _, padding = self._padded(views[0].picture[None])
        decoded = crop_back(self.denoiser.vae_decode(latents, progress), padding)
        parts = [
            part if view.window is None else stitch(part, self.normals[place], view.window)
            for part, view, place in zip(decoded, views, places, strict=True)
        ]
        return torch.stack(parts)

    def _finish(self, images: Tensor, latents: list[Tensor], drawing: Drawing, places: Sequence[int]) -> Drawn:
        normals, masks = self.normals[list(places)], self.masks[list(places)]
        if drawing.grey_lock:
            grey = (normals == normals[:, :1]).flatten(1).all(dim=1)
            images[grey] = images[grey].mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
        finished = composite(images, normals, masks, drawing.feather)
        reconstruction = torch.stack([_known(self._views[place].reconstruction) for place in places])
        return Drawn(finished, latents, effect_score(finished, reconstruction, normals, masks))


def _known(value: Tensor | None) -> Tensor:
    if value is None:
        raise RuntimeError("the scene was not prepared")
    return value


def matched(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures and masks of one number: 1 with N, N with 1, or N with N. Raises InputError that says the rule."""
    count = max(len(images), len(masks))
    if not {len(images), len(masks)} <= {1, count}:
        raise InputError(
            f"image, mask: {len(images)} pictures and {len(masks)} masks. Connect 1 picture with N masks, N pictures "
            "with 1 mask, or N with N."
        )
    return images.expand(count, -1, -1, -1), masks.expand(count, -1, -1, -1)


def on_foreground(masks: Tensor, foreground: Tensor, smallest: float) -> Tensor:
    """Masks [N, 1, H, W] within the foreground [1 or N, 1, H, W].

    Raises InputError, naming the entry, for a mask of which nothing, or a smaller share than ``smallest`` (0 to 1),
    lies on the foreground, and for another number of foregrounds.
    """
    if len(foreground) not in (1, len(masks)):
        raise InputError(
            f"foreground: {len(foreground)} masks for {len(masks)} samples. Connect one, or one for each sample."
        )
    inside = masks * foreground
    shares = inside.flatten(1).sum(dim=1) / masks.flatten(1).sum(dim=1)
    for place, share in enumerate(shares.tolist()):
        if share == 0 or share < smallest:
            reason = f"lies on it by {share:.2f}, wanted is {smallest:g}" if share else "does not lie on it at all"
            raise InputError(
                f"foreground: entry {place} of {len(masks)} of mask {reason}. Move that mask onto the object, or "
                "connect another foreground."
            )
    return inside
