"""Normal images with masks, encoded once, in which defects are sampled: whole images and enlarged windows alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..options import Settings, option
from ..progress import Progress
from .blending import Padding, composite, crop_back, latent_mask, pad_mask_to_multiple, pad_to_multiple
from .effect import Effect, effect_score
from .reweighting import OFF, ReweightingSettings
from .sampler import Conditioning, Sampler, SamplingSettings, Weighting
from .windows import CropSettings, Window, cut_image, cut_mask, plan_window, stitch

SMALLEST_CELLS = 4
"""Smaller images are padded to this many latent cells a side: a U-Net halves them, and norms need more than one."""


@dataclass(frozen=True)
class FinishSettings(Settings):
    """The last step, in pixels."""

    feather: int = option(2, "Width in pixels of the transition, which lies inside the mask.", min=0, max=64)
    grey_lock: bool = option(
        False, "Keep grey images grey: where all channels of the image are equal, so are those of the result."
    )


@dataclass(frozen=True)
class Recipe:
    """How defects are sampled and finished."""

    sampling: SamplingSettings = SamplingSettings()
    weights: ReweightingSettings = ReweightingSettings(reweighting=OFF)
    finish: FinishSettings = FinishSettings()


@dataclass(frozen=True)
class Samples:
    """Finished images [n, 3, H, W], the latents of the views they were sampled in, and their scores."""

    images: Tensor
    latents: list[Tensor]
    scores: Effect


@dataclass(frozen=True)
class _View:
    """What one sample is sampled in: a window of its image, or all of it (window None).

    image [3, h, w] and mask [1, h, w] at the size that is sampled, latent [C, h', w'] of the padded image,
    reconstruction [3, H, W]: the whole image with the view in it as the autoencoder alone returns it.
    """

    window: Window | None
    image: Tensor
    mask: Tensor
    latent: Tensor | None = None
    reconstruction: Tensor | None = None


@dataclass
class Scene:
    """Images [N, 3, H, W] in [0, 1] and masks [N, 1, H, W] of {0, 1}, as many of each, and a view of each.

    remade: conditioning is remade for the masks as they are here (they are not what the user connected). shared: all
    images are the same one.
    """

    sampler: Sampler
    normals: Tensor
    masks: Tensor
    crop: CropSettings = CropSettings("off")
    remade: bool = False
    shared: bool = False
    _views: list[_View] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._grid = self.sampler.denoiser.downscale
        windows = [plan_window(mask, self.crop, self._grid) for mask in self.masks]
        for image, mask, window in zip(self.normals, self.masks, windows, strict=True):
            if window is not None:
                image, mask = cut_image(image, window), cut_mask(mask, window)
            self._views.append(_View(window, image, mask))

    def __len__(self) -> int:
        return len(self.normals)

    @property
    def windows(self) -> list[Window | None]:
        """The window of each sample, None for a whole image."""
        return [view.window for view in self._views]

    @property
    def encodings(self) -> int:
        """Images that ``prepare`` puts through the autoencoder, both ways."""
        whole = self.windows.count(None)
        return len(self) - whole + (min(whole, 1) if self.shared else whole)

    def prepare(self, progress: Progress) -> None:
        """Latents and reconstructions of all views; ``progress`` advances by 2 VAE_STEPS for each of ``encodings``."""
        for places in self._groups(range(len(self))):
            whole = self._views[places[0]].window is None
            chosen = places[:1] if whole and self.shared else places
            images = torch.stack([self._views[place].image for place in chosen])
            latents = self.sampler.encode(self._padded(images)[0], progress)
            decoded = self._decode(latents, chosen, progress)
            for number, place in enumerate(places):
                number = min(number, len(chosen) - 1)
                changed = replace(self._views[place], latent=latents[number], reconstruction=decoded[number])
                self._views[place] = changed

    def sample(
        self,
        positive: Conditioning,
        negative: Conditioning | None,
        recipe: Recipe,
        places: Sequence[int],
        seeds: Sequence[int],
        progress: Progress,
    ) -> Samples:
        """Sample the views at ``places`` with these seeds, put them back into their images, and measure.

        Conditioning is that of the whole scene. ``progress`` advances by the steps and VAE_STEPS for each of
        ``places``.
        """
        images, latents = self.normals[list(places)].clone(), [torch.empty(0)] * len(places)
        for group in self._groups(places):
            numbers = [list(places).index(place) for place in group]
            sampled = self._sample(positive, negative, recipe, group, [seeds[number] for number in numbers], progress)
            for number, latent, image in zip(numbers, sampled, self._decode(sampled, group, progress), strict=True):
                images[number], latents[number] = image, latent
        return self._finish(images, latents, recipe.finish, places)

    def latents_of(self, samples: Samples, progress: Progress) -> Tensor:
        """Latents [N, C, h, w] of whole images: those that were sampled; of windows, of the finished image."""
        windows = self.windows
        if not any(windows):
            return torch.stack(samples.latents)
        padded, _ = self._padded(samples.images)
        latents = []
        for place, window in enumerate(windows):
            own = padded[place : place + 1]
            latents.append(samples.latents[place] if window is None else self.sampler.encode(own, progress)[0])
        return torch.stack(latents)

    def _padded(self, images: Tensor) -> tuple[Tensor, Padding]:
        return pad_to_multiple(images, self._grid, SMALLEST_CELLS * self._grid)

    def _groups(self, places: Sequence[int]) -> list[list[int]]:
        """``places`` in groups whose views have one size and can be sampled together; whole images apart."""
        groups: dict[tuple[bool, int, int], list[int]] = {}
        for place in places:
            view = self._views[place]
            height, width = view.image.shape[-2:]
            groups.setdefault((view.window is None, height, width), []).append(place)
        return list(groups.values())

    def _sample(
        self,
        positive: Conditioning,
        negative: Conditioning | None,
        recipe: Recipe,
        places: Sequence[int],
        seeds: Sequence[int],
        progress: Progress,
    ) -> Tensor:
        views, count = [self._views[place] for place in places], len(self)
        masks = torch.stack([view.mask for view in views])
        own = positive.select(places, count)
        weighting = None
        if recipe.weights.active:
            padded, _ = self._padded(torch.stack([view.image for view in views]))
            weighting = Weighting(recipe.weights, padded)
        return self.sampler.sample(
            torch.stack([_known(view.latent) for view in views]),
            latent_mask(pad_mask_to_multiple(masks, self._grid, SMALLEST_CELLS * self._grid), self._grid),
            own.for_masks(masks) if self.remade or views[0].window is not None else own,
            None if negative is None else negative.select(places, count),
            recipe.sampling,
            progress,
            weighting,
            seeds,
        )

    def _decode(self, latents: Tensor, places: Sequence[int], progress: Progress) -> Tensor:
        """Whole images [n, 3, H, W] with decoded views in them."""
        views = [self._views[place] for place in places]
        _, padding = self._padded(views[0].image[None])
        decoded = crop_back(self.sampler.decode(latents, progress), padding)
        parts = [
            part if view.window is None else stitch(part, self.normals[place], view.window)
            for part, view, place in zip(decoded, views, places, strict=True)
        ]
        return torch.stack(parts)

    def _finish(self, images: Tensor, latents: list[Tensor], finish: FinishSettings, places: Sequence[int]) -> Samples:
        normals, masks = self.normals[list(places)], self.masks[list(places)]
        if finish.grey_lock:
            grey = (normals == normals[:, :1]).flatten(1).all(dim=1)
            images[grey] = images[grey].mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
        finished = composite(images, normals, masks, finish.feather)
        reconstruction = torch.stack([_known(self._views[place].reconstruction) for place in places])
        return Samples(finished, latents, effect_score(finished, reconstruction, normals, masks))


def _known(value: Tensor | None) -> Tensor:
    if value is None:
        raise RuntimeError("the scene was not prepared")
    return value


def sample_blended(
    sampler: Sampler,
    normals: Tensor,
    masks: Tensor,
    positive: Conditioning,
    negative: Conditioning | None,
    recipe: Recipe,
    progress: Progress,
) -> Samples:
    """Defects inside ``masks`` on ``normals`` without windows, retries or control (paper, Eq. 1).

    normals [N, 3, H, W] in [0, 1] and masks [N, 1, H, W] of {0, 1}, none empty. ``progress`` advances by the steps and
    3 VAE_STEPS for each. Raises InputError for conditioning that does not fit, and as ``Sampler.check``.
    """
    count = len(normals)
    sampler.check(recipe.sampling, negative)
    for name, conditioning in (("positive", positive), ("negative", negative)):
        if conditioning is not None:
            conditioning.check(sampler.denoiser, name, count)
    scene = Scene(sampler, normals, masks)
    scene.prepare(progress)
    first = recipe.sampling.seed
    return scene.sample(positive, negative, recipe, range(count), range(first, first + count), progress)
