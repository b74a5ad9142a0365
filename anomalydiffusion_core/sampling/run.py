"""Blended sampling from images and masks to finished samples: one object for node, command and benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..conditioning.context import mask_digests
from ..data.provenance import SOURCES
from ..devices import check_images_fit
from ..errors import InputError
from ..options import Settings, option
from ..progress import MakeProgress, Quiet
from .blending import eroded, fit_masks, marked_part
from .control import control_recipe
from .records import records, report_lines, scale_notices
from .retry import RetrySettings, sample_best
from .reweighting import ReweightingSettings
from .sampler import VAE_STEPS, Conditioning, Sampler, SamplingSettings
from .scene import FinishSettings, Recipe, Scene
from .windows import CropSettings

WEAK_SAMPLERS = ("ddim", "lcm")
FALLBACK_RESOLUTION = 512
"""Resolution of windows where the embedding does not say what it was trained at; that of Stable Diffusion 1.5."""
_PLANES = 24
"""Values of a pixel of a sample: image, mask, normal image, its reconstruction, and copies in between."""


@dataclass(frozen=True)
class BlendingSettings(Settings):
    """Everything that can be set about blended sampling."""

    sampling: SamplingSettings = SamplingSettings()
    weights: ReweightingSettings = ReweightingSettings()
    window: CropSettings = CropSettings()
    finish: FinishSettings = FinishSettings()
    retry: RetrySettings = RetrySettings()
    control_samples: int = option(4, "How many of the samples are sampled again with the control.", min=0, max=1000)
    foreground_overlap: float = option(
        0.0,
        "Smallest share of a mask that must lie on the foreground. 0 allows any mask that touches it.",
        min=0,
        max=1,
        step=0.05,
    )

    def to_record(self) -> dict[str, Any]:
        """What was set, for the records of the samples."""
        values = asdict(self.sampling)
        own = {name: values[name] for name in ("steps", "cfg", "sampler_name", "scheduler", "denoise")}
        return {**own, **asdict(self.finish), **self.weights.to_record()}


@dataclass(frozen=True)
class Blended:
    """Finished samples.

    images [N, 3, H, W] in [0, 1]; masks [N, 1, H, W] of {0, 1} cover every changed pixel; latents [N, C, h, w] in the
    sampler's scale, see `Scene.latents_of`, none where they were not wanted; records: one dictionary for each sample;
    notices: what the user should know.
    """

    images: Tensor
    masks: Tensor
    latents: Tensor
    records: list[dict[str, Any]]
    notices: list[str]
    min_effect: float = 0.0

    @property
    def report(self) -> str:
        """Effect, retries and control in some lines, and the notices."""
        return "\n".join([*report_lines(self.records, self.min_effect), *self.notices])


class BlendedSampling:
    """Samples defects inside masks on normal images, with windows, retries and a control."""

    def __init__(self, sampler: Sampler, settings: BlendingSettings, make_progress: MakeProgress = Quiet) -> None:
        self.sampler, self.settings, self._make_progress = sampler, settings, make_progress

    def run(
        self,
        images: Tensor,
        masks: Tensor,
        positive: Conditioning,
        negative: Conditioning | None = None,
        control: Conditioning | None = None,
        foreground: Tensor | None = None,
        want_latents: bool = True,
    ) -> Blended:
        """Generate one sample for each image and mask: 1 image with N masks, N with 1, or N with N.

        images [*, 3, H, W] in [0, 1]; masks and foreground [*, 1, h, w] of {0, 1}, of the images' aspect. Conditioning
        has one row, or one for each sample. want_latents: latents of finished images are needed, which costs an
        encoding of each. Raises InputError that names the input.
        """
        settings, notices = self.settings, list[str]()
        given = mask_digests(masks)
        masks = fit_masks(masks, images.shape[-2:], notices)
        shared = len(images) == 1
        images, masks = matched(images, masks)
        if foreground is not None:
            ground = fit_masks(foreground, images.shape[-2:], notices, "foreground")
            masks = on_foreground(masks, ground, settings.foreground_overlap)
        total = len(images)
        check_images_fit("image", total, images.shape[-2:], _PLANES)
        self.sampler.check(settings.sampling, negative)
        for name, conditioning in (("positive", positive), ("control", control), ("negative", negative)):
            if conditioning is not None:
                conditioning.check(self.sampler.denoiser, name, total)
        positive = coupled(positive, given, masks, notices)
        notices += sampling_notices(settings, masks)
        window = self._window([positive, negative, control], positive, notices)
        if settings.weights.active and not positive.has_columns:
            notices.append("notice: positive does not say which of its columns are an anomaly, nothing is re-weighted")

        recipe = Recipe(settings.sampling, settings.weights, settings.finish)
        remade, reach = foreground is not None, settings.finish.reach
        scene = Scene(self.sampler, images, masks, window, remade, shared, positive.view, reach)
        notices += scale_notices(scene.windows, images.shape[-2:], positive)
        count = min(settings.control_samples, total) if control is not None else 0
        cropped = total - scene.windows.count(None) if want_latents else 0
        drawn = scene.drawn(range(total)) + scene.drawn(range(count))
        vae_steps = 2 * scene.encodings + drawn + cropped
        progress = self._make_progress(settings.sampling.steps * drawn + VAE_STEPS * vae_steps)
        scene.prepare(progress)
        kept = sample_best(scene, positive, negative, recipe, settings.retry, progress)
        listed = records(kept, scene.windows, settings.to_record(), positive.view)
        if positive.learned_from:
            listed = [{**entry, SOURCES: positive.learned_from} for entry in listed]
        if count and control is not None:
            plain, seeds = control_recipe(recipe), kept.seeds[:count]
            other = scene.sample(control, negative, plain, range(count), seeds, progress).scores
            for entry, score in zip(listed, other.effect.tolist(), strict=False):
                entry["control_score"] = round(score, 3)
        latents = scene.latents_of(kept.samples, progress) if want_latents else torch.empty(0)
        return Blended(kept.samples.images, masks, latents, listed, notices, settings.retry.min_effect)

    def _window(
        self, conditionings: Sequence[Conditioning | None], positive: Conditioning, notices: list[str]
    ) -> CropSettings:
        """How to crop. Raises InputError where cropping was asked for and the conditioning does not allow it."""
        chosen = self.settings.window
        size = chosen.crop_size or positive.resolution or FALLBACK_RESOLUTION
        if positive.view is not None and chosen.crop == "auto":
            size = chosen.crop_size  # windows have the scale of the training unless the user gives a size
        found = sorted({name for one in conditionings if one is not None for name in one.placed})
        if not found or chosen.crop == "off":
            return replace(chosen, crop_size=size)
        text = f"the conditioning is tied to places of the whole image ({', '.join(found)})"
        if chosen.crop == "always":
            raise InputError(f"crop: always is not possible, {text}. Set crop to off.")
        notices.append(f"notice: {text}, so whole images were sampled at their own size")
        return replace(chosen, crop="off")


def coupled(positive: Conditioning, given: Sequence[str], masks: Tensor, notices: list[str]) -> Conditioning:
    """The conditioning for the masks [N, 1, H, W] that are drawn: remade, with a notice, where it is of other masks.

    given: `mask_digests` of what was connected, one for all samples or one for each.
    """
    count = len(masks)
    made = positive.made_for
    if not made or _one_each(made, count) == _one_each(given, count):
        return positive
    notices.append(
        f"notice: positive was made for {len(made)} other mask{'' if len(made) == 1 else 's'} than those that are "
        "drawn, so it was made anew for these. Connect the same masks to Spatial Anomaly Embedding and to the sampler"
    )
    return positive.for_masks(masks)


def _one_each(digests: Sequence[str], count: int) -> list[str]:
    return list(digests) * count if len(digests) == 1 else list(digests)


def sampling_notices(settings: BlendingSettings, masks: Tensor) -> list[str]:
    """What makes defects weaker than a user may expect."""
    notices = []
    if settings.sampling.sampler_name in WEAK_SAMPLERS:
        notices.append(
            f"notice: the sampler {settings.sampling.sampler_name} draws new noise over what it has drawn and reaches "
            "about half of the effect of euler or dpmpp_2m"
        )
    feather = settings.finish.feather
    thin = []
    for place, mask in enumerate(masks if feather else ()):
        rows, columns = marked_part(mask[None])
        if not bool(eroded(mask[None, :, rows, columns], feather).any()):
            thin.append(place)
    if thin:
        notices.append(
            f"notice: feather {feather} is wider than {len(thin)} of {len(masks)} masks are thick, so these defects "
            "are faded everywhere. Lower feather"
        )
    return notices


def matched(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Images and masks of one number: 1 with N, N with 1, or N with N. Raises InputError that says the rule."""
    count = max(len(images), len(masks))
    if not {len(images), len(masks)} <= {1, count}:
        raise InputError(
            f"image, mask: {len(images)} images and {len(masks)} masks. Connect 1 image with N masks, N images with "
            "1 mask, or N with N."
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
            reason = f"lies on it by {share:.2f}, less than {smallest:g}" if share else "does not lie on it at all"
            raise InputError(
                f"foreground: entry {place} of {len(masks)} of mask {reason}. Move that mask onto the object, or "
                "connect another foreground."
            )
    return inside
