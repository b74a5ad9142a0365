"""The base model by the name of its file: the demo prior's layout, or what ComfyUI's own Load Checkpoint reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths

from ...anomalydiffusion_core.backends.text2img import is_text2img
from ...anomalydiffusion_core.errors import InputError
from . import folders
from .conditioning import Conditioning
from .ldm_files import encode_ldm_caption, load_ldm_checkpoint
from .text2img import load_text2img

STOCK = "checkpoints"
"""ComfyUI's model folder of checkpoints."""


@dataclass(frozen=True)
class BaseModel:
    """MODEL, VAE, CONDITIONING of the empty caption and of a normal image, and CLIP; None for a file without one."""

    model: Any
    vae: Any
    empty: Conditioning
    normal: Conditioning
    clip: Any = None


def checkpoint_files() -> list[str]:
    """Names of all files that `load_base_model` may be given, those in the demo prior's layout first."""
    own = folders.model_files(folders.CHECKPOINTS)
    return [*own, *(name for name in folders.model_files(STOCK) if name not in own)]


def checkpoint_fingerprint(name: str | None) -> str:
    """Changes with the file; see `folders.file_fingerprint`."""
    return folders.file_fingerprint(folders.CHECKPOINTS, name) or folders.file_fingerprint(STOCK, name)


def load_base_model(name: str, caption: str) -> BaseModel:
    """Load a file by its name.

    caption: a prompt that names a normal part, for files with a text encoder; the demo prior knows its own. Raises
    InputError for a file that neither loader reads, and for one without a text encoder or VAE.
    """
    path = _path(name)
    if path is None:
        own = folders.model_file(folders.CHECKPOINTS, name)
        if is_text2img(own):
            model, vae, clip = load_text2img(own, folder_paths.get_folder_paths("embeddings"))
            return BaseModel(model, vae, encode_prompt(clip, ""), encode_prompt(clip, caption), clip)
        found = load_ldm_checkpoint(own)
        return BaseModel(found.model, found.vae, found.empty, found.normal)
    embeddings = folder_paths.get_folder_paths("embeddings")
    try:
        model, clip, vae = comfy.sd.load_checkpoint_guess_config(str(path), embedding_directory=embeddings)[:3]
    except RuntimeError as error:
        raise InputError(f"checkpoint: {name} is not a checkpoint that ComfyUI knows ({error}).") from error
    for part, what in ((clip, "text encoder"), (vae, "VAE")):
        if part is None:
            raise InputError(f"checkpoint: {name} has no {what}. Choose a full checkpoint.")
    return BaseModel(model, vae, encode_prompt(clip, ""), encode_prompt(clip, caption), clip)


def encode_caption(name: str, caption: str, clip: Any = None) -> Conditioning:
    """A caption as conditioning: by the CLIP where there is one, else by the words of a file."""
    if clip is not None:
        return encode_prompt(clip, caption)
    if _path(name) is not None:
        raise InputError(f"clip: {name} has its text encoder apart. Connect the CLIP of Load LDM Checkpoint.")
    own = folders.model_file(folders.CHECKPOINTS, name)
    if is_text2img(own):
        raise InputError(f"clip: {name} has a text encoder of its own. Connect the CLIP of Load LDM Checkpoint.")
    return encode_ldm_caption(own, caption)


def encode_prompt(clip: Any, text: str) -> Conditioning:
    """What the stock node CLIP Text Encode makes of a text."""
    made: Conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    return made


def _path(name: str) -> Path | None:
    """The file in ComfyUI's folder of checkpoints, None when the name is one of ours, which come first, or unknown."""
    if name in folders.model_files(folders.CHECKPOINTS) or name not in folders.model_files(STOCK):
        return None
    return Path(folder_paths.get_full_path_or_raise(STOCK, name))
