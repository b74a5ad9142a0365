"""Learned tokens as ordinary textual-inversion files for Stable Diffusion 1.5 (key ``clip_l``)."""

from __future__ import annotations

import json
import re

from ..errors import BundleError
from ..store import METADATA_KEY
from .bundle import CLIP_ROUTE, AnomalyBundle

CLIP_L_KEY = "clip_l"
CLIP_L_WIDTH = 768
"""Width of the token embeddings of CLIP ViT-L/14, the text encoder of Stable Diffusion 1."""


def textual_inversion_file(bundle: AnomalyBundle, key: str) -> bytes:
    """The file of one type's tokens: safetensors, ``clip_l`` float32 [k, 768]. The same bytes for the same tokens.

    Raises BundleError with both values for tokens of another width, and for tokens that were not trained inside a
    prompt: those are no embeddings of words, and a text encoder would make something else of them.
    """
    from safetensors.torch import save

    rows = bundle.type_tokens(key)
    if bundle.width != CLIP_L_WIDTH:
        raise BundleError(
            f"bundle: its tokens have the width {bundle.width}, the text encoder of Stable Diffusion 1.5 has "
            f"{CLIP_L_WIDTH}. A textual-inversion file can only be made of a bundle trained with its CLIP."
        )
    if bundle.token_route != CLIP_ROUTE:
        raise BundleError(
            f"bundle: it was trained with the token route {bundle.token_route!r}, a textual-inversion file needs "
            f"{CLIP_ROUTE!r}: the tokens must have been learned inside a prompt. Train it with the CLIP connected."
        )
    details = {"type": key, "template": bundle.template, "base_fingerprint": bundle.base_fingerprint}
    text = json.dumps(details, sort_keys=True)
    return bytes(save({CLIP_L_KEY: rows.detach().float().cpu().contiguous()}, metadata={METADATA_KEY: text}))


def prompt_name(text: str) -> str:
    """``text`` with all that a prompt would cut or read as emphasis replaced by "_"; "/" stays."""
    return re.sub(r"[^\w/-]+", "_", text)
