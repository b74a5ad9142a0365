"""Writes files of random weights in the layout of text2img-large, at full size or at tiny widths.

Names are those of the release: the U-Net and the autoencoder as ComfyUI names them (it kept the names), the text
encoder written out here. Weights are scaled so that activations neither vanish nor explode, and are exact in half
precision, in which ComfyUI keeps text encoders. The same seed gives the same file.
"""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import random_checkpoint
import torch
from safetensors.torch import save_file
from torch import Tensor

TEXT = "cond_stage_model.transformer."


@dataclass(frozen=True)
class Size:
    """Widths; heads of the text encoder are 64 wide."""

    channels: int = 32
    mults: tuple[int, ...] = (1, 2)
    blocks: int = 1
    attends: tuple[int, ...] = (1, 0)
    width: int = 64
    heads: int = 1
    depth: int = 2
    words: int = 30522
    first_stage: int = 32
    first_stage_mults: tuple[int, ...] = (1, 1, 2, 2)
    first_stage_blocks: int = 1


TINY = Size()
FULL = Size(320, (1, 2, 4, 4), 2, (1, 1, 1, 0), 1280, 8, 32, 30522, 128, (1, 2, 4, 4), 2)


def text_shapes(size: Size) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the text encoder's weights, the unused logits included."""
    width, inner = size.width, 64 * size.heads
    yield "token_emb.weight", (size.words, width)
    yield "pos_emb.emb.weight", (77, width)
    for layer in range(size.depth):
        attention, forward = (f"attn_layers.layers.{2 * layer + second}" for second in (0, 1))
        for part in (attention, forward):
            yield f"{part}.0.weight", (width,)
            yield f"{part}.0.bias", (width,)
        for name in ("to_q", "to_k", "to_v"):
            yield f"{attention}.1.{name}.weight", (inner, width)
        yield f"{attention}.1.to_out.weight", (width, inner)
        yield f"{attention}.1.to_out.bias", (width,)
        yield f"{forward}.1.net.0.0.weight", (4 * width, width)
        yield f"{forward}.1.net.0.0.bias", (4 * width,)
        yield f"{forward}.1.net.2.weight", (width, 4 * width)
        yield f"{forward}.1.net.2.bias", (width,)
    yield "norm.weight", (width,)
    yield "norm.bias", (width,)
    yield "to_logits.weight", (size.words, width)
    yield "to_logits.bias", (size.words,)


def state_of(size: Size = TINY, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """All weights of a file by name."""
    import comfy.ops
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    levels = len(size.mults)
    shape: dict[str, Any] = {
        **random_checkpoint.UNET,
        "model_channels": size.channels,
        "context_dim": size.width,
        "channel_mult": list(size.mults),
        "num_res_blocks": [size.blocks] * levels,
        "transformer_depth": [depth for depth in size.attends for _ in range(size.blocks)],
        "transformer_depth_output": [depth for depth in size.attends for _ in range(size.blocks + 1)],
        "transformer_depth_middle": 1,
    }
    first_stage = {
        **random_checkpoint.VAE,
        "ch": size.first_stage,
        "ch_mult": list(size.first_stage_mults),
        "num_res_blocks": size.first_stage_blocks,
    }
    unet = UNetModel(**shape, device="meta", operations=comfy.ops.disable_weight_init)
    with torch.device("meta"):
        autoencoder = AutoencoderKL(ddconfig=first_stage, embed_dim=4)
    shapes = {f"model.diffusion_model.{name}": tuple(value.shape) for name, value in unet.state_dict().items()}
    shapes |= {f"first_stage_model.{name}": tuple(value.shape) for name, value in autoencoder.state_dict().items()}
    shapes |= {TEXT + name: value for name, value in text_shapes(size)}
    generator = torch.Generator().manual_seed(seed)
    return {name: _random(name, value, generator).half().to(dtype) for name, value in shapes.items()}


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if len(shape) == 1:
        # One-dimensional weights are those of normalisations.
        return torch.full(shape, float(name.endswith("weight"))) + 0.02 * torch.randn(shape, generator=generator)
    spread = 1.0 if "_emb." in name else 1 / math.sqrt(math.prod(shape[1:]))
    return torch.randn(shape, generator=generator) * spread


@contextmanager
def _lightning() -> Iterator[type]:
    """A class by the name of the trainer's, which its checkpoints refer to."""
    full = "pytorch_lightning.callbacks.model_checkpoint"
    names = [full.rsplit(".", count)[0] for count in (2, 1, 0)]
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update({name: ModuleType(name) for name in names})
    made = type("ModelCheckpoint", (), {"__module__": full})
    setattr(sys.modules[full], made.__name__, made)
    try:
        yield made
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None) if module is None else sys.modules.update({name: module})


def write_text2img(path: Path, size: Size = TINY, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, int]:
    """Write a .safetensors, or a .ckpt as the training code left it; returns the numbers of weights by part."""
    state = state_of(size, seed, dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".ckpt":
        with _lightning() as callback:
            callbacks = {callback: {"best_model_score": np.float64(0.5), "best_model_path": "x"}}
            torch.save({"epoch": 0, "state_dict": OrderedDict(state), "callbacks": callbacks}, path)
    else:
        save_file(state, str(path))
    parts = ("model.diffusion_model.", "first_stage_model.", TEXT)
    return {part: sum(value.numel() for name, value in state.items() if name.startswith(part)) for part in parts}
