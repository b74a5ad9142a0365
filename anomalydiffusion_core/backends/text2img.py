"""Latent diffusion's text-to-image model in its original file layout (text2img-large): the base model of the paper.

One file holds the U-Net (context 1280, 8 heads), an autoencoder with 8 pixels to a cell, and a text encoder of its own
(``ldm_bert.py``); widths and counts are those of the weights. ComfyUI builds its own networks of the parts; here they
become diffusers models through diffusers' own conversion.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import BundleError, InputError
from ..restricted_pickle import Between
from ..weights import check_shapes, read_header, read_state, shapes_of
from .bert_words import bert_words
from .diffusers import DiffusersDenoiser
from .diffusers_text import DiffusersTextEncoder
from .ldm_bert import load_bert
from .ldm_files import AUTOENCODER_PREFIX, LATENT_SCALE, UNET_PREFIX
from .ldm_schedule import noise_schedule

LAYOUT = "the layout of text2img-large"
TEXT_PREFIX = "cond_stage_model.transformer."
CHECKPOINT_EXTENSION = ".ckpt"
HEADS = 8
"""Of every attention in the U-Net; no file records it."""
_TEXT_NAME = f"{TEXT_PREFIX}token_emb.weight"
_ENCODER_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
# What a checkpoint holds beside the network: logits that nothing reads.
_UNUSED_TEXT = "to_logits."
_INPUT = re.compile(r"input_blocks\.(\d+)\.(.+)")
_DOWN = re.compile(r"encoder\.down\.(\d+)\.block\.(\d+)\.conv1\.weight")


@dataclass(frozen=True)
class OriginalParts:
    """Weights of the three parts under their names in the release, without the prefix of the part."""

    unet: dict[str, Tensor]
    autoencoder: dict[str, Tensor]
    text: dict[str, Tensor]


def names_text2img(names: Collection[str]) -> bool:
    """Whether these names of weights are those of text2img-large."""
    return _TEXT_NAME in names and f"{UNET_PREFIX}input_blocks.0.0.weight" in names


def is_text2img(path: Path) -> bool:
    """Whether a safetensors file is of this layout, by its names alone. A .ckpt is taken for one."""
    if Path(path).suffix == CHECKPOINT_EXTENSION:
        return True
    try:
        return names_text2img(read_header(path).shapes)
    except BundleError:
        return False


def read_text2img(path: Path, between: Between = lambda: None) -> OriginalParts:
    """The parts of a file, a .ckpt through the allow-list reader.

    between: called now and then; may raise to interrupt the reading. Raises InputError that names what is missing.
    """
    path = Path(path)
    state = read_state(path, between)
    if not names_text2img(state):
        has = ", ".join(sorted({name.split(".")[0] for name in state})[:6]) or "nothing"
        raise InputError(
            f"model: {path.name} is not text2img-large: the weight {_TEXT_NAME} is missing (it holds {has}). Stable "
            "Diffusion checkpoints are loaded by the stock node Load Checkpoint."
        )

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

    # Training left its discriminator in the autoencoder of some copies.
    autoencoder = {name: value for name, value in part(AUTOENCODER_PREFIX).items() if name.startswith(_ENCODER_PARTS)}
    text = {name: value for name, value in part(TEXT_PREFIX).items() if not name.startswith(_UNUSED_TEXT)}
    if "encoder.conv_in.weight" not in autoencoder:
        raise InputError(f"model: {path.name} holds no autoencoder ({AUTOENCODER_PREFIX}*). Use another copy.")
    return OriginalParts(part(UNET_PREFIX), autoencoder, text)


@dataclass(frozen=True)
class UNetShape:
    """Levels of a U-Net: channels, residual blocks and whether there are transformers, from the finest level on."""

    channels: tuple[int, ...]
    blocks: int
    attends: tuple[bool, ...]
    context: int
    latent_channels: int

    @staticmethod
    def of(state: Mapping[str, Tensor]) -> UNetShape:
        """What the weights say. Raises InputError for levels of different depth."""
        stages: dict[int, set[str]] = {}
        for name in state:
            if match := _INPUT.match(name):
                stages.setdefault(int(match[1]), set()).add(match[2])
        levels: list[list[int]] = [[]]
        for number in sorted(stages)[1:]:
            if "0.op.weight" in stages[number]:
                levels.append([])
            else:
                levels[-1].append(number)
        if len({len(level) for level in levels}) != 1 or not levels[0]:
            raise InputError("model: the levels of its U-Net have different depths. Use another copy.")
        attends = tuple(any(part.startswith("1.") for part in stages[level[0]]) for level in levels)
        key = next((name for name in state if name.endswith("attn2.to_k.weight")), None)
        if key is None:
            raise InputError("model: its U-Net has no cross-attention. Use another copy.")
        return UNetShape(
            tuple(len(state[f"input_blocks.{level[0]}.0.out_layers.3.weight"]) for level in levels),
            len(levels[0]),
            attends,
            state[key].shape[1],
            state["input_blocks.0.0.weight"].shape[1],
        )

    def diffusers(self) -> dict[str, Any]:
        """Arguments of ``UNet2DConditionModel``."""
        return {
            "in_channels": self.latent_channels,
            "out_channels": self.latent_channels,
            "block_out_channels": self.channels,
            "down_block_types": tuple("CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in self.attends),
            "up_block_types": tuple("CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(self.attends)),
            "layers_per_block": self.blocks,
            "cross_attention_dim": self.context,
            # For historic reasons diffusers calls the number of heads so in models of this kind.
            "attention_head_dim": HEADS,
        }


@dataclass(frozen=True)
class AutoencoderShape:
    """Channels of the levels of an autoencoder, and its residual blocks; latents are 8 pixels to a cell."""

    channels: tuple[int, ...]
    blocks: int
    latent_channels: int

    @staticmethod
    def of(state: Mapping[str, Tensor]) -> AutoencoderShape:
        """What the weights say. Raises InputError unless there are four levels, as 8 pixels to a cell need."""
        found = {(int(match[1]), int(match[2])): name for name in state if (match := _DOWN.match(name))}
        levels = 1 + max((level for level, _ in found), default=-1)
        if levels != 4:
            raise InputError(f"model: its autoencoder has {levels} levels, 4 are required. Use another copy.")
        channels = tuple(len(state[found[level, 0]]) for level in range(levels))
        return AutoencoderShape(channels, 1 + max(block for _, block in found), len(state["quant_conv.weight"]) // 2)

    def diffusers(self) -> dict[str, Any]:
        """Arguments of ``AutoencoderKL``."""
        return {
            "down_block_types": ("DownEncoderBlock2D",) * len(self.channels),
            "up_block_types": ("UpDecoderBlock2D",) * len(self.channels),
            "block_out_channels": self.channels,
            "layers_per_block": self.blocks,
            "latent_channels": self.latent_channels,
            "scaling_factor": LATENT_SCALE,
        }

    def original(self) -> dict[str, Any]:
        """Arguments of the original code's autoencoder, which ComfyUI uses."""
        own = {
            "double_z": True,
            "z_channels": self.latent_channels,
            "resolution": 256,
            "in_channels": 3,
            "out_ch": 3,
            "ch": self.channels[0],
            "ch_mult": [count // self.channels[0] for count in self.channels],
            "num_res_blocks": self.blocks,
            "attn_resolutions": [],
            "dropout": 0.0,
        }
        return {"ddconfig": own, "embed_dim": self.latent_channels}


def open_text2img(
    path: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, *, checkpointing: bool = False
) -> tuple[DiffusersDenoiser, DiffusersTextEncoder]:
    """The model of a file and its text encoder, whose vocabulary lies beside the file as ``vocab.txt``.

    Raises InputError that names what is missing or does not fit.
    """
    # Absolute, since this module's neighbour has the package's name.
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    parts = read_text2img(path)
    with torch.inference_mode(False):
        shape = UNetShape.of(parts.unet).diffusers()
        prefixed = {UNET_PREFIX + name: value.float() for name, value in parts.unet.items()}
        unet = _filled(UNet2DConditionModel, shape, convert_ldm_unet_checkpoint(prefixed, dict(shape)), path)
        shape = AutoencoderShape.of(parts.autoencoder).diffusers()
        prefixed = {AUTOENCODER_PREFIX + name: value.float() for name, value in parts.autoencoder.items()}
        vae = _filled(AutoencoderKL, shape, convert_ldm_vae_checkpoint(prefixed, dict(shape)), path)
        denoiser = DiffusersDenoiser(
            unet, vae, noise_schedule(), device=device, dtype=dtype, checkpointing=checkpointing
        )
        text = DiffusersTextEncoder(load_bert(path, parts.text), bert_words([Path(path).parent]), device)
    return denoiser, text


def _filled(kind: Any, config: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path) -> Any:
    with torch.device("meta"):
        model = kind(**config)
    check_shapes(path, shapes_of(weights), shapes_of(model.state_dict()), LAYOUT)
    model.load_state_dict(dict(weights), assign=True)
    return model
