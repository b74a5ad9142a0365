"""Files in the layout of the original latent diffusion release, as the demo prior is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import BundleError
from ..restricted_pickle import Between
from ..weights import (
    check_finite,
    check_shapes,
    finite_number,
    parsed_metadata,
    read_header,
    read_safetensors,
    shapes_of,
    whole_number,
)
from .ldm_autoencoder import Autoencoder, AutoencoderConfig
from .ldm_unet import UNet, UNetConfig

UNET_PREFIX = "model.diffusion_model."
AUTOENCODER_PREFIX = "first_stage_model."
WORDS_KEY = "cond_stage_model.words.weight"
EXTRA = ("vae_scale", "vae_shift")
"""Of the autoencoder in ComfyUI: what encoded images are divided by, and what is added."""
FORMAT = "anomalydiffusion-ldm-1"
EPSILON, VELOCITY = "epsilon", "v"
"""What the network gives out: the noise, or sqrt(a) noise - sqrt(1 - a) latent (Salimans and Ho, ICLR 2022)."""
# The host divides encoded images by vae_scale and multiplies them by the latent format's factor: the model sees the
# autoencoder's own latents when both are equal.
LATENT_SCALE = 0.18215


@dataclass(frozen=True)
class PriorFile:
    """What a file holds, checked. metadata: as stored, texts. preview: [channels + 1][3], or None for no previews.

    slots, words: the kinds of words of a caption, and the word of each row of the table. empty, normal: rows of the
    empty caption and of that of a normal image.
    """

    config: UNetConfig
    latent_scale: float
    prediction: str
    preview: list[list[float]] | None
    slots: list[str]
    words: list[Any]
    empty: list[int]
    normal: list[int]
    metadata: dict[str, str]
    tensors: dict[str, Tensor]

    def part(self, prefix: str, skip: Sequence[str] = ()) -> dict[str, Tensor]:
        """Tensors of one network by their names inside of it."""
        names = (name for name in self.tensors if name.startswith(prefix) and name.removeprefix(prefix) not in skip)
        return {name.removeprefix(prefix): self.tensors[name] for name in names}


def read_prior(path: Path, between: Between = lambda: None) -> PriorFile:
    """Read a file of this layout. Its shapes are compared with its architecture before anything is built from it.

    between: called now and then; may raise to interrupt the reading. Raises BundleError that names the file and what
    is missing, wrong, or not finite in it.
    """
    path = Path(path)
    header = read_header(path)
    metadata = header.metadata
    if metadata.get("format") != FORMAT:
        raise BundleError(
            f"file: {path.name} does not have the layout '{FORMAT}' (found '{str(metadata.get('format'))[:40]}'). "
            "Give the file that pretrain-demo-prior wrote; ComfyUI loads Stable Diffusion with Load Checkpoint."
        )
    prediction = metadata.get("prediction", EPSILON)
    if prediction not in (EPSILON, VELOCITY):
        raise BundleError(
            f"file: {path.name} says prediction '{prediction[:40]}', '{EPSILON}' or '{VELOCITY}' is possible. Use "
            "another copy."
        )
    try:
        config = UNetConfig.from_host_arguments(parsed_metadata(path, metadata.get("architecture"), "architecture"))
        with torch.device("meta"):
            unet, autoencoder = UNet(config), Autoencoder(AutoencoderConfig(latent_channels=config.in_channels).full())
    except BundleError:
        raise
    except (ValueError, KeyError, TypeError, ArithmeticError, AssertionError, RuntimeError) as error:
        raise BundleError(f"file: the architecture in {path.name} cannot be ({error}). Use another copy.") from error
    expected = {UNET_PREFIX + name: shape for name, shape in shapes_of(unet.state_dict()).items()}
    expected |= {AUTOENCODER_PREFIX + name: shape for name, shape in shapes_of(autoencoder.state_dict()).items()}
    expected |= {AUTOENCODER_PREFIX + name: () for name in EXTRA}
    rows = header.shapes.get(WORDS_KEY, (0,))[0]
    check_shapes(path, header.shapes, {**expected, WORDS_KEY: (rows, config.context_dim)}, "its architecture")
    captions = parsed_metadata(path, metadata.get("captions"), "captions")
    slots, words = captions.get("slots"), captions.get("words")
    if not isinstance(slots, list) or not isinstance(words, list) or len(words) != rows:
        raise BundleError(f"file: the captions in {path.name} do not fit its {rows} words. Use another copy.")
    tensors = read_safetensors(path, between)
    check_finite(path, tensors)
    empty, normal = (_rows(path, metadata, name, rows) for name in ("empty_caption", "normal_caption"))
    return PriorFile(
        config,
        finite_number(path, "latent_scale", metadata.get("latent_scale"), above=0),
        prediction,
        _preview(path, metadata, config.in_channels),
        slots,
        words,
        empty,
        normal,
        metadata,
        tensors,
    )


def _rows(path: Path, metadata: Mapping[str, str], name: str, count: int) -> list[int]:
    found = _listed(path, metadata, name)
    return [whole_number(path, name, row, 0, count - 1) for row in found]


def _preview(path: Path, metadata: Mapping[str, str], channels: int) -> list[list[float]] | None:
    name = "latent_rgb_factors"
    if name not in metadata:
        return None
    found = _listed(path, metadata, name)
    if len(found) != channels + 1 or not all(isinstance(row, list) and len(row) == 3 for row in found):
        raise BundleError(f"file: {name} in {path.name} are not {channels + 1} rows of 3. Use another copy.")
    return [[finite_number(path, name, value) for value in row] for row in found]


def _listed(path: Path, metadata: Mapping[str, str], name: str) -> list[Any]:
    found = parsed_metadata(path, f'{{"{name}": {metadata.get(name) or "null"}}}', name).get(name)
    if not isinstance(found, list):
        raise BundleError(f"file: {name} in {path.name} is no list. Use another copy.")
    return found


def restore(path: Path, between: Between = lambda: None) -> tuple[Autoencoder, UNet, Tensor, PriorFile]:
    """Autoencoder (full width), noise predictor, word table [V, d] and the rest of a file, in single precision.

    Raises BundleError as ``read_prior``.
    """
    stored = read_prior(path, between)
    autoencoder = Autoencoder(AutoencoderConfig(latent_channels=stored.config.in_channels).full())
    unet = UNet(stored.config)
    for module, prefix, skip in ((autoencoder, AUTOENCODER_PREFIX, EXTRA), (unet, UNET_PREFIX, ())):
        module.load_state_dict({name: value.float() for name, value in stored.part(prefix, skip).items()})
        module.eval().requires_grad_(False)
    return autoencoder, unet, stored.tensors[WORDS_KEY].float(), stored
