"""Writes checkpoints of random weights in the layout of Stable Diffusion 1.5, which the stock Load Checkpoint takes.

``write_slim``: two narrow levels, a tiny autoencoder, and the text encoder. ``write_full``: every part at full size
(859 M weights in the U-Net). Both need ComfyUI's modules, which know the names and shapes. Weights are in half
precision, scaled so that activations neither vanish nor explode. The same seed gives the same file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
    "context_dim": 768,
    "use_linear_in_transformer": False,
    "num_heads": 8,
    "legacy": False,
}
SLIM: dict[str, Any] = {
    "channel_mult": [1, 1],
    "num_res_blocks": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
}
FULL: dict[str, Any] = {
    "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
}
VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
SCALE = 0.18215


def write_slim(path: Path, seed: int = 0) -> int:
    """Write a small file (about 330 MB, three quarters of it the text encoder); returns the U-Net's weights."""
    from comfy.taesd.taesd import TAESD

    with torch.device("meta"):
        tiny = TAESD()
    parts = [("first_stage_model.", tiny)]
    return _write(path, _unet(SLIM), parts, seed)


def write_full(path: Path, seed: int = 0) -> int:
    """Write a file of full size (2.1 GB); returns the U-Net's weights."""
    from comfy.ldm.models.autoencoder import AutoencoderKL

    with torch.device("meta"):
        autoencoder = AutoencoderKL(ddconfig=VAE, embed_dim=4)
    return _write(path, _unet(FULL), [("first_stage_model.", autoencoder)], seed)


def _unet(levels: dict[str, Any]) -> nn.Module:
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    made: nn.Module = UNetModel(**UNET, **levels, device="meta", operations=comfy.ops.disable_weight_init)
    return made


def _text_encoder() -> nn.Module:
    import comfy.sd1_clip

    made: nn.Module = comfy.sd1_clip.SD1ClipModel(device="meta").clip_l.transformer
    return made


def _write(path: Path, unet: nn.Module, parts: list[tuple[str, nn.Module]], seed: int) -> int:
    generator = torch.Generator().manual_seed(seed)
    modules = [("model.diffusion_model.", unet), *parts, ("cond_stage_model.transformer.", _text_encoder())]
    weights = {prefix + name: value for prefix, module in modules for name, value in _random(module, generator)}
    # The tiny autoencoder keeps its scale in the file.
    for name, value in (("vae_scale", SCALE), ("vae_shift", 0.0)):
        if f"first_stage_model.{name}" in weights:
            weights[f"first_stage_model.{name}"] = torch.tensor(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, str(path))
    return sum(value.numel() for value in unet.state_dict().values())


def _random(module: nn.Module, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    for name, value in module.state_dict().items():
        shape = tuple(value.shape)
        if len(shape) > 1:
            spread = 0.02 if "embedding" in name else 1 / math.sqrt(math.prod(shape[1:]))
            yield name, (torch.randn(shape, generator=generator) * spread).half()
        else:
            # One-dimensional weights are those of normalisations.
            yield name, torch.full(shape, float(name.endswith("weight"))).half()
