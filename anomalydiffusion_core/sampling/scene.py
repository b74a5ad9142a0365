"""Normal images with masks, encoded once, in which defects are sampled: whole images and windows alike.

Images may be huge, so beside the images themselves only boxes around their masks are kept and computed with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..options import Settings, option
from ..progress import Progress
from ..scale import TrainedView
from .blending import Padding, composite, crop_back, latent_mask, pad_mask_to_multiple, pad_to_multiple
from .effect import Effect, effect_score
from .reweighting import OFF, ReweightingSettings
from .sampler import Conditioning, Sampler, SamplingSettings, Weighting
from .windows import CropSettings, Window, around, cut, cut_image, cut_mask, join, mask_box, plan_windows, stitch

SCORES = tuple(field.name for field in fields(Effect))
TILE_STRIDE = 7_368_787
"""Distance of the seeds of two tiles of one sample, far from those of other samples and of retries."""
LATENT_PIXELS = 2**22
"""Finished images with more pixels are not encoded."""
SMALLEST_CELLS = 4
"""Smaller images are padded to this many latent cells a side: a U-Net halves them, and norms need more than one."""


@dataclass(frozen=True)
class FinishSettings(Settings):
    """The last step, in pixels."""

    feather: int = option(2, "Width in pixels of the transition, which lies inside the mask.", min=0, max=64)
    grey_lock: bool = option(
        False, "Keep grey images grey: where all channels of the image are equal, so are those of the result."
    )

    @property
    def reach(self) -> int:
        """How far in pixels the composite of a pixel depends on the mask around it."""
        return 2 * self.feather + 1


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
    """What is sampled at once: a window of an image, one of several along its mask, or all of it (window None).

    sample: whose it is, and tile its number there. image [3, h, w] and mask [1, h, w] at the size that is sampled,
    latent [C, h', w'] of the padded image.
    """

    sample: int
    tile: int
    window: Window | None
    image: Tensor
    mask: Tensor
    latent: Tensor | None = None

    def seed(self, own: int) -> int:
        """Of the seed of its sample; the first tile has that seed itself."""
        return (own + self.tile * TILE_STRIDE) % 2**63 if self.tile else own


@dataclass
class Scene:
    """Images [N, 3, H, W] in [0, 1] and masks [N, 1, H, W] of {0, 1}, as many of each, and a view of each.

    remade: conditioning is remade for the masks as they are here (they are not what the user connected). shared: all
    images are the same one. view: how the defects were looked at in training, None where that is not known. margin:
    pixels around a mask that its composite depends on.
    """

    sampler: Sampler
    normals: Tensor
    masks: Tensor
    crop: CropSettings = CropSettings("off")
    remade: bool = False
    shared: bool = False
    view: TrainedView | None = None
    margin: int = 0
    _views: list[_View] = field(default_factory=list, init=False)
    _own: list[list[int]] = field(default_factory=list, init=False)
    _boxes: list[tuple[int, int, int, int]] = field(default_factory=list, init=False)
    _rebuilt: dict[int, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._grid = self.sampler.denoiser.downscale
        for sample, (image, mask) in enumerate(zip(self.normals, self.masks, strict=True)):
            self._boxes.append(_box(mask, self.margin))
            first = len(self._views)
            planned = plan_windows(mask, self.crop, self._grid, self.view)
            self._views += [
                _View(sample, tile, window, cut_image(image, window), cut_mask(mask, window))
                for tile, window in enumerate(planned)
            ] or [_View(sample, 0, None, image, mask)]
            self._own.append(list(range(first, len(self._views))))

    def __len__(self) -> int:
        return len(self.normals)

    @property
    def windows(self) -> list[Window | None]:
        """The window of each sample, that around all of its tiles, None for a whole image."""
        return [around(self._windows_of(place)) for place in range(len(self))]

    @property
    def encodings(self) -> int:
        """Images that ``prepare`` puts through the autoencoder, both ways."""
        whole = self.windows.count(None)
        return len(self._views) - whole + (min(whole, 1) if self.shared else whole)

    def drawn(self, places: Sequence[int]) -> int:
        """How many views are sampled for these samples."""
        return sum(len(self._own[place]) for place in places)

    def prepare(self, progress: Progress) -> None:
        """Latents and reconstructions of all views; ``progress`` advances by 2 VAE_STEPS for each of ``encodings``."""
        decoded = dict[int, Tensor]()
        for group in self._groups(range(len(self._views))):
            whole = self._views[group[0]].window is None
            chosen = group[:1] if whole and self.shared else group
            images = torch.stack([self._views[number].image for number in chosen])
            latents = self.sampler.encode(self._padded(images)[0], progress)
            rebuilt = self._decode(latents, chosen, progress)
            for place, number in enumerate(group):
                place = min(place, len(chosen) - 1)
                decoded[number] = rebuilt[place]
                self._views[number] = replace(self._views[number], latent=latents[place])
                self._keep(self._rebuilt, decoded, self._views[number].sample)

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
        ``drawn(places)``.
        """
        own = dict(zip(places, seeds, strict=True))
        latents, decoded, changed = dict[int, Tensor](), dict[int, Tensor](), dict[int, Tensor]()
        for group in self._groups([number for place in places for number in self._own[place]]):
            chosen = [self._views[number].seed(own[self._views[number].sample]) for number in group]
            sampled = self._sample(positive, negative, recipe, group, chosen, progress)
            parts = self._decode(sampled, group, progress)
            for number, latent, part in zip(group, sampled, parts, strict=True):
                decoded[number], latents[number] = part, latent
                self._keep(changed, decoded, self._views[number].sample)
        firsts = [latents[self._own[place][0]] for place in places]
        return self._finish([changed[place] for place in places], firsts, recipe.finish, places)

    def latents_of(self, samples: Samples, progress: Progress) -> Tensor:
        """Latents [N, C, h, w] of whole images: those that were sampled; of windows, of the finished image.

        Of images with more than LATENT_PIXELS those of the windows (the first of several) as they were sampled, padded
        with zeros to one size: whole images would take more memory than everything else.
        """
        windows = self.windows
        if not any(windows):
            return torch.stack(samples.latents)
        if self.normals.shape[-2] * self.normals.shape[-1] > LATENT_PIXELS:
            sides = [max(one.shape[axis] for one in samples.latents) for axis in (-2, -1)]
            return torch.stack(
                [F.pad(x, (0, sides[1] - x.shape[-1], 0, sides[0] - x.shape[-2])) for x in samples.latents]
            )
        padded, _ = self._padded(samples.images)
        latents = []
        for place, window in enumerate(windows):
            own = padded[place : place + 1]
            latents.append(samples.latents[place] if window is None else self.sampler.encode(own, progress)[0])
        return torch.stack(latents)

    def _padded(self, images: Tensor) -> tuple[Tensor, Padding]:
        return pad_to_multiple(images, self._grid, SMALLEST_CELLS * self._grid)

    def _windows_of(self, place: int) -> list[Window]:
        return [view.window for number in self._own[place] if (view := self._views[number]).window is not None]

    def _groups(self, numbers: Sequence[int]) -> list[list[int]]:
        """Views in groups that have one size and can be sampled together; whole images apart."""
        groups: dict[tuple[bool, int, int], list[int]] = {}
        for number in numbers:
            view = self._views[number]
            height, width = view.image.shape[-2:]
            groups.setdefault((view.window is None, height, width), []).append(number)
        return list(groups.values())

    def _sample(
        self,
        positive: Conditioning,
        negative: Conditioning | None,
        recipe: Recipe,
        numbers: Sequence[int],
        seeds: Sequence[int],
        progress: Progress,
    ) -> Tensor:
        views, count = [self._views[number] for number in numbers], len(self)
        places = [view.sample for view in views]
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

    def _decode(self, latents: Tensor, numbers: Sequence[int], progress: Progress) -> Tensor:
        """Decoded views of one size, [n, 3, h, w]."""
        _, padding = self._padded(self._views[numbers[0]].image[None])
        return crop_back(self.sampler.decode(latents, progress), padding)

    def _keep(self, kept: dict[int, Tensor], decoded: dict[int, Tensor], place: int) -> None:
        """Once all views of a sample are decoded, keep what of its image can change, [3, *box], with them in it."""
        numbers, box, image = self._own[place], self._boxes[place], self.normals[place]
        if not all(number in decoded for number in numbers):
            return
        parts, windows = [decoded.pop(number) for number in numbers], self._windows_of(place)
        if not windows:
            kept[place] = cut(parts[0], box).clone()
        elif len(windows) == 1:
            kept[place] = stitch(parts[0], image, windows[0], box)
        else:
            kept[place] = join(parts, image, windows, box)

    def _finish(
        self, changed: Sequence[Tensor], latents: list[Tensor], finish: FinishSettings, places: Sequence[int]
    ) -> Samples:
        images = torch.empty((len(places), *self.normals.shape[1:]), dtype=self.normals.dtype)
        scores = []
        for number, (place, part) in enumerate(zip(places, changed, strict=True)):
            box, image = self._boxes[place], self.normals[place]
            normal, mask = cut(image, box)[None], cut(self.masks[place], box)[None]
            if finish.grey_lock and bool((image == image[:1]).all()):
                part = part.mean(dim=0, keepdim=True).expand(3, -1, -1)
            finished = composite(part[None], normal, mask, finish.feather)
            scores.append(effect_score(finished, _known(self._rebuilt.get(place))[None], normal, mask))
            images[number] = image
            cut(images[number], box).copy_(finished[0])
        columns = {name: torch.cat([getattr(score, name) for score in scores]) for name in SCORES}
        return Samples(images, latents, Effect(**columns))


def _box(mask: Tensor, margin: int) -> tuple[int, int, int, int]:
    """The box of a mask [1, H, W] with a margin, inside the image."""
    (top, bottom), (left, right) = mask_box(mask)
    first, start = max(top - margin, 0), max(left - margin, 0)
    last, stop = (min(end + margin, side) for end, side in zip((bottom, right), mask.shape[-2:], strict=True))
    return first, start, last - first, stop - start


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
    scene = Scene(sampler, normals, masks, margin=recipe.finish.reach)
    scene.prepare(progress)
    first = recipe.sampling.seed
    return scene.sample(positive, negative, recipe, range(count), range(first, first + count), progress)
