"""One augmented copy of a whole image."""

from __future__ import annotations

import torch

from anomalydiffusion_core.data.training import whole_views
from anomalydiffusion_core.training.augment import AugmentSettings, augment_view


def augment_pair(
    image: torch.Tensor,
    mask: torch.Tensor,
    generator: torch.Generator,
    side: int,
    settings: AugmentSettings | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`augment_view` of a whole image, for a square."""
    (view,) = whole_views(image[None], mask[None], (side, side))
    return augment_view(view, generator, (side, side), settings)
