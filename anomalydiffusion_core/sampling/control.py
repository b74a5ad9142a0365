"""The control: the same sampling under the normal conditioning. What changes then is not a learned defect."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..progress import MakeProgress
from .reweighting import OFF, ReweightingSettings
from .sampler import VAE_STEPS, Conditioning, Sampler, SamplingSettings
from .scene import Recipe, sample_blended


def control_recipe(recipe: Recipe) -> Recipe:
    """The recipe of a control: the same without re-weighting."""
    return replace(recipe, weights=ReweightingSettings(reweighting=OFF))


def measure_control(
    sampler: Sampler,
    images: Tensor,
    masks: Tensor,
    normal: Conditioning,
    negative: Conditioning | None,
    settings: SamplingSettings,
    make_progress: MakeProgress,
) -> float | None:
    """Mean effect, 0 to 255, inside ``masks`` under the normal conditioning; None without images.

    images [N, 3, H, W] in [0, 1], masks [N, 1, H, W] of {0, 1}. Raises InputError as ``sample_blended``.
    """
    if not len(images):
        return None
    progress = make_progress(len(images) * (settings.steps + 3 * VAE_STEPS))
    samples = sample_blended(sampler, images, masks, normal, negative, Recipe(settings), progress)
    return round(float(samples.scores.effect.mean()), 3)
