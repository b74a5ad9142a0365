"""Opens a base model from disk for every command: a diffusers folder, text2img-large, or the demo prior's layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..devices import compute_device
from ..errors import BundleError, InputError
from ..identity import VALUES, weights_fingerprint
from .diffusers import DiffusersDenoiser, load_diffusers
from .diffusers_text import DiffusersTextEncoder, load_text_encoder
from .ldm import LdmDenoiser, load_ldm
from .text2img import is_text2img, open_text2img

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Model:
    """A base model from disk.

    identity: tells one from another, the autoencoder and the number format included. text_encoder: loads the text
    encoder that belongs to it; raises InputError where there is none. caption: a text to the context [L, width] that
    it stands for; "" is the empty caption. normal: the name of an object to the context of a normal part of it.
    unet: the network that the denoiser computes with.
    """

    denoiser: DiffusersDenoiser | LdmDenoiser
    identity: str
    text_encoder: Callable[[], DiffusersTextEncoder]
    caption: Callable[[str], Tensor]
    normal: Callable[[str], Tensor]
    unet: nn.Module


def open_model(path: Path, device: str = "", dtype: str = DTYPES[0], *, checkpointing: bool = False) -> Model:
    """Open a diffusers folder, text2img-large in its original layout, or a file in the demo prior's layout.

    The last computes in float32 on the CPU only.

    device: as for ``compute_device``. checkpointing: recompute activations in training to save memory. Raises
    InputError that names what is missing or not supported.
    """
    path = Path(path)
    if dtype not in DTYPES:
        raise InputError(f"dtype: unknown value '{dtype}'. Choose one of {', '.join(DTYPES)}.")
    if path.is_dir():
        return _open_folder(path, compute_device(device), dtype, checkpointing)
    if not path.is_file():
        raise InputError(f"model: {path} does not exist. Give a diffusers folder, or a file like the demo prior.")
    if is_text2img(path):
        parts = open_text2img(path, compute_device(device), getattr(torch, dtype), checkpointing=checkpointing)
        return _with_text(parts[0], lambda: parts[1], dtype)
    if device not in ("", "cpu") or dtype != DTYPES[0] or checkpointing:
        raise InputError(
            f"model: a file like {path.name} computes in float32 on the CPU. Leave device, dtype, checkpointing out."
        )
    return _open_file(path)


def _open_folder(path: Path, device: torch.device, dtype: str, checkpointing: bool) -> Model:
    denoiser = load_diffusers(path, device, getattr(torch, dtype), checkpointing=checkpointing)
    loaded: list[DiffusersTextEncoder] = []

    def text_encoder() -> DiffusersTextEncoder:
        if not loaded:
            loaded.append(load_text_encoder(path, device))
        return loaded[0]

    return _with_text(denoiser, text_encoder, dtype)


def _with_text(denoiser: DiffusersDenoiser, text_encoder: Callable[[], DiffusersTextEncoder], dtype: str) -> Model:
    identity = f"{denoiser.fingerprint(VALUES)}|{denoiser.vae_fingerprint()}|{dtype}"

    def caption(text: str) -> Tensor:
        return text_encoder().caption(text)[0]

    return Model(denoiser, identity, text_encoder, caption, lambda name: caption(f"a photo of {name}"), denoiser.unet)


def _open_file(path: Path) -> Model:
    try:
        prior = load_ldm(path)
    except BundleError as error:
        raise InputError(f"model: {error}") from error

    def text_encoder() -> DiffusersTextEncoder:
        raise InputError(f"clip: {path.name} has no text encoder. Leave it out, or give a diffusers folder.")

    identity = f"{prior.fingerprint(VALUES)}|{weights_fingerprint(prior.autoencoder.state_dict(), VALUES)}"
    return Model(
        prior,
        identity,
        text_encoder,
        lambda text: prior.caption_context(text)[0],
        lambda _: prior.normal_context[0],
        prior.unet,
    )
