"""Files in the layout of the original latent diffusion release, as the demo prior is stored."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from .ldm_autoencoder import Autoencoder, AutoencoderConfig
from .ldm_unet import UNet, UNetConfig

UNET_PREFIX = "model.diffusion_model."
AUTOENCODER_PREFIX = "first_stage_model."
WORDS_KEY = "cond_stage_model.words.weight"
FORMAT = "anomalydiffusion-ldm-1"
EPSILON, VELOCITY = "epsilon", "v"
"""What the network gives out: the noise, or sqrt(a) noise - sqrt(1 - a) latent (Salimans and Ho, ICLR 2022)."""
# The host divides encoded images by vae_scale and multiplies them by the latent format's factor: the model sees the
# autoencoder's own latents when both are equal.
LATENT_SCALE = 0.18215


def prediction_of(metadata: dict[str, str]) -> str:
    """What the noise predictor of a stored file gives out. Raises ValueError for what is neither of the two."""
    found = metadata.get("prediction", EPSILON)
    if found not in (EPSILON, VELOCITY):
        raise ValueError(f"prediction: '{found}', must be '{EPSILON}' or '{VELOCITY}'.")
    return found


def restore(path: Path) -> tuple[Autoencoder, UNet, Tensor, dict[str, str]]:
    """Autoencoder (full width), noise predictor, word table [V, d] and metadata of a stored file, in single precision.

    Raises:
        ValueError: the file is not a demo prior.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(
                f"{path}: not a file of format '{FORMAT}' (found '{metadata.get('format')}'). "
                "Give the file that pretrain-demo-prior wrote."
            )
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}
    unet = UNet(UNetConfig.from_host_arguments(json.loads(metadata["architecture"])))
    autoencoder = Autoencoder(AutoencoderConfig(latent_channels=unet.config.in_channels).full())
    autoencoder.load_state_dict(_part(tensors, AUTOENCODER_PREFIX, skip=("vae_scale", "vae_shift")))
    unet.load_state_dict(_part(tensors, UNET_PREFIX))
    for module in (autoencoder, unet):
        module.eval().requires_grad_(False)
    return autoencoder, unet, tensors[WORDS_KEY], metadata


def _part(tensors: dict[str, Tensor], prefix: str, skip: tuple[str, ...] = ()) -> dict[str, Tensor]:
    names = (name for name in tensors if name.startswith(prefix) and name.removeprefix(prefix) not in skip)
    return {name.removeprefix(prefix): tensors[name] for name in names}
