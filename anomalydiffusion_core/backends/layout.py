"""Names of a diffusers U-Net's weights in the original latent diffusion layout, which ComfyUI uses.

Only names differ between the two layouts of a Stable Diffusion U-Net: shapes and numbers are the same, and so is a
fingerprint over original names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import InputError

_SINGLE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def original_unet_weights(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a diffusers ``UNet2DConditionModel`` under their original names (``input_blocks.0.0.weight``).

    config: the model's configuration. Raises InputError for a model that the original layout cannot hold.
    """
    layers = config["layers_per_block"]
    if not isinstance(layers, int):
        raise InputError(f"model: layers_per_block is {layers}; one number is supported, as in Stable Diffusion 1.5.")
    # The original upsamplers stand behind a transformer where there is one.
    attends = {match[2] for name in weights if (match := _BLOCK.match(name)) and match[1] + match[3] == "upattentions"}
    return {_original(name, layers, attends): value for name, value in weights.items()}


def _original(name: str, layers: int, attends: set[str]) -> str:
    module, _, kind = name.rpartition(".")
    if module in _SINGLE:
        return f"{_SINGLE[module]}.{kind}"
    if match := _MIDDLE.match(name):
        part, number, rest = match.groups()
        # Residual blocks and transformers take turns.
        return f"middle_block.{2 * int(number) + (part == 'attentions')}.{_inside(part, rest)}"
    if match := _BLOCK.match(name):
        side, block, part, number, rest = match.groups()
        place = int(block) * (layers + 1) + int(number)
        if part == "downsamplers":
            return f"input_blocks.{1 + place + layers}.0.op.{kind}"
        if part == "upsamplers":
            return f"output_blocks.{place + layers}.{1 + (block in attends)}.conv.{kind}"
        stage = f"input_blocks.{1 + place}" if side == "down" else f"output_blocks.{place}"
        return f"{stage}.{int(part == 'attentions')}.{_inside(part, rest)}"
    raise InputError(f"model: the weight {name} has no place in the layout of Stable Diffusion 1.5. Use such a model.")


def _inside(part: str, rest: str) -> str:
    if part == "attentions":
        return rest
    module, _, kind = rest.rpartition(".")
    if module not in _RESNET:
        raise InputError(f"model: the weight {rest} of a residual block is unknown. Use a Stable Diffusion 1.5 model.")
    return f"{_RESNET[module]}.{kind}"
