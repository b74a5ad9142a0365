"""Conditioning of a defect type out of a bundle: e = [e_a, E(mask)], itself or inside a prompt (paper, Eq. 8)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..conditioning.context import ContextConditioning, mask_digests
from ..conditioning.prompt_encoder import Prompt
from ..data.mask_resizing import resize_mask
from ..errors import InputError
from ..identity import Identified
from ..options import chosen_name
from ..scale import covering_scale
from .bundle import CLIP_ROUTE, AnomalyBundle, anomaly_tokens


def anomaly_conditioning(
    bundle: AnomalyBundle, key: str, masks: Tensor, prompt: Prompt | None = None
) -> ContextConditioning:
    """The conditioning of a type for masks [B, 1, H, W] of {0, 1} of any size, one row each.

    prompt: the text encoder with the prompt that the tokens were trained in; without it they are the context itself.
    Raises BundleError for a bundle of another kind, route or width and for an unknown type, InputError for an empty
    mask and another text encoder.
    """
    if prompt is None:
        bundle.require("anomaly")
    else:
        bundle.require("anomaly", prompt.encoder.width, CLIP_ROUTE)
        check_text_encoder(bundle, prompt.encoder)

    def remake(masks: Tensor) -> Tensor:
        tokens = tokens_for(bundle, key, masks)
        if prompt is None:
            return tokens
        with prompt.encoder.training_mode(), torch.no_grad():
            return prompt.contexts(tokens)

    rows = remake(masks)
    count = token_count(bundle, key)
    columns = torch.ones(count, dtype=torch.bool) if prompt is None else prompt.columns(count)
    view, learned = bundle.trained_view(key), bundle.learned_from
    return ContextConditioning(
        rows, columns, remake, bundle.resolution, bundle.base, view, learned, mask_digests(masks)
    )


def tokens_for(bundle: AnomalyBundle, key: str, masks: Tensor) -> Tensor:
    """E for masks of any size: the spatial encoder sees them at the size it was trained at.

    Where the bundle records what it looked at, the aspect of masks is kept: what they lack is empty.
    """
    if not bundle.resolution:
        return anomaly_tokens(bundle, key, masks)
    if bundle.trained_view(key) is None:
        return anomaly_tokens(bundle, key, resize_mask(masks, bundle.resolution))
    return anomaly_tokens(bundle, key, on_canvas(masks, bundle.canvas))


def on_canvas(masks: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Masks [B, 1, H, W] of {0, 1} as large as they fit into the middle of a canvas (height, width)."""
    height, width = masks.shape[-2:]
    scale = covering_scale((height, width), canvas)
    sides = [min(max(round(side / scale), 1), most) for side, most in zip((height, width), canvas, strict=True)]
    above, left = ((most - side) // 2 for side, most in zip(sides, canvas, strict=True))
    below, right = canvas[0] - sides[0] - above, canvas[1] - sides[1] - left
    return F.pad(resize_mask(masks, (sides[0], sides[1])), (left, right, above, below))


def token_count(bundle: AnomalyBundle, key: str) -> int:
    """How many tokens e of a type has, k + n."""
    return len(bundle.type_tokens(key)) + (bundle.spatial_encoder.tokens if bundle.spatial_encoder else 0)


def check_text_encoder(bundle: AnomalyBundle, encoder: Identified) -> None:
    """Raise InputError with both for another text encoder, or another LoRA in it, than the bundle was trained with."""
    trained_with = str(bundle.metadata.get("text_encoder_fingerprint") or "")
    own = encoder.fingerprint(trained_with)
    if trained_with and trained_with != own:
        raise InputError(
            f"clip: the bundle was trained with the text encoder {trained_with}, this one is {own}. Use the CLIP of "
            "the model it was trained on."
        )
    lora = bundle.metadata.get("text_encoder_adaptation")
    if lora is not None and lora != encoder.adaptation():
        raise InputError(
            f"clip: the bundle was trained with {lora or 'no LoRA'} in the text encoder, this one has "
            f"{encoder.adaptation() or 'no LoRA'}. Apply to the CLIP what it was trained with."
        )


def chosen_type(bundle: AnomalyBundle, text: str) -> str:
    """The bundle's type of this name, or its only type for an empty text. Raises InputError or BundleError."""
    key = chosen_name("defect_type", text, bundle.types)
    bundle.type_tokens(key)
    return key
