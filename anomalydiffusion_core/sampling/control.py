"""The control: the same sampling under the normal conditioning. What changes then is not a learned defect."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..progress import MakeProgress
from .effect import Effect
from .reweighting import OFF, ReweightingSettings
from .sampler import VAE_STEPS, Conditioning, Sampler, SamplingSettings
from .scene import Recipe, sample_blended

ALIKE = 2.0
"""A control whose effect is more than 1 / ALIKE of the defect's earns a warning."""


def control_recipe(recipe: Recipe) -> Recipe:
    """The recipe of a control: the same without re-weighting."""
    return replace(recipe, weights=ReweightingSettings(reweighting=OFF))


def control_summary(scores: Effect, control: Effect) -> str:
    """Both effects side by side, with a warning when they are alike (design: that is no learned defect)."""
    defect, other = float(scores.effect[: len(control.effect)].mean()), float(control.effect.mean())
    text = f"control, {len(control.effect)} samples: effect {other:.1f}; with the defect {defect:.1f}"
    if other * ALIKE > defect:
        text += (
            ". Warning: these are alike, so most of the change is not a learned defect; the model may not know the "
            "object"
        )
    return text


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
