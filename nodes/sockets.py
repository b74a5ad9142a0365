"""Custom sockets and small helpers that all node families share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

CATEGORY = "AnomalyDiffusion"

Dataset = io.Custom("ANOMALYDIFFUSION_DATASET")
"""A core AnomalyDataset."""
Bundle = io.Custom("ANOMALYDIFFUSION_BUNDLE")
"""A core AnomalyBundle of either kind; nodes check the kind."""
TrainingOptions = io.Custom("ANOMALYDIFFUSION_TRAINING_OPTIONS")
"""A TrainingChoices of training_options.py."""
Effect = io.Custom("ANOMALYDIFFUSION_EFFECT")
"""A list with one dictionary for each sample: seed, effect_score, fill_share, outside_max_abs_diff, settings."""


MASKS_SHOWN = 16


def shown_masks(masks: Tensor) -> Tensor:
    """The first of some core masks [B, 1, H, W] as IMAGE, to be shown."""
    return masks[:MASKS_SHOWN].expand(-1, 3, -1, -1).movedim(1, -1)


def shown(report: str, image: Any = None, cls: Any = None, **more: list[Any]) -> Mapping[str, list[Any]]:
    """What a node shows below itself and leaves in the history: a text, IMAGE previews, named lists for programs.

    The page draws the text through web/reports.js: ComfyUI itself only keeps it.
    """
    content: dict[str, list[Any]] = {"text": [report], **more}
    if image is not None:
        content["images"] = ui.PreviewImage(image, cls=cls).as_dict()["images"]
    return content
