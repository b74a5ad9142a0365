"""The demo prior as one safetensors file in the layout of the original latent diffusion release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import replacing
from ..synthetic.captions import SLOTS, caption_ids, normal_caption_ids, vocabulary
from .autoencoder import FULL, Autoencoder, widen
from .unet import UNet, UNetConfig

UNET_PREFIX = "model.diffusion_model."
AUTOENCODER_PREFIX = "first_stage_model."
WORDS_KEY = "cond_stage_model.words.weight"
FORMAT = "anomalydiffusion-ldm-1"
EPSILON, VELOCITY = "epsilon", "v"
"""What the network gives out: the noise, or sqrt(a) noise - sqrt(1 - a) latent (Salimans and Ho, ICLR 2022)."""
# The host divides encoded pictures by vae_scale and multiplies them by the latent format's factor: the model sees the
# autoencoder's own latents when both are equal.
LATENT_SCALE = 0.18215


def store(
    path: Path,
    autoencoder: Autoencoder,
    unet: UNet,
    words: Tensor,
    training: dict[str, Any],
    prediction: str = VELOCITY,
) -> None:
    """Write weights in half precision with all that a loader needs in the metadata; atomic.

    Args:
        training: settings and data seed of the pretraining, kept as text.
        prediction: what `unet` gives out, `EPSILON` or `VELOCITY`.
    """
    from safetensors.torch import save

    tensors = {UNET_PREFIX + name: value for name, value in unet.state_dict().items()}
    tensors |= {AUTOENCODER_PREFIX + name: value for name, value in widen(autoencoder).items()}
    tensors[AUTOENCODER_PREFIX + "vae_scale"] = torch.tensor(LATENT_SCALE)
    tensors[AUTOENCODER_PREFIX + "vae_shift"] = torch.tensor(0.0)
    tensors[WORDS_KEY] = words
    metadata = {
        "format": FORMAT,
        "prediction": prediction,
        "architecture": json.dumps(unet.config.host_arguments()),
        "latent_scale": str(LATENT_SCALE),
        "latent_rgb_factors": json.dumps(_preview_factors(autoencoder)),
        "captions": json.dumps({"slots": SLOTS, "words": vocabulary()}),
        "empty_caption": json.dumps(caption_ids(None)),
        "normal_caption": json.dumps(normal_caption_ids()),
        "training": json.dumps(training),
        "license": "Apache-2.0",
    }
    # vae_scale stays in single precision: half would shift every latent by a thousandth.
    halves = {
        name: (value.detach().float() if value.ndim == 0 else value.detach().half()).contiguous()
        for name, value in tensors.items()
    }
    with replacing(path) as partial:
        partial.write_bytes(save(halves, metadata=metadata))


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
    autoencoder, unet = Autoencoder(FULL), UNet(UNetConfig.from_host_arguments(json.loads(metadata["architecture"])))
    autoencoder.load_state_dict(_part(tensors, AUTOENCODER_PREFIX, skip=("vae_scale", "vae_shift")))
    unet.load_state_dict(_part(tensors, UNET_PREFIX))
    for module in (autoencoder, unet):
        module.eval().requires_grad_(False)
    return autoencoder, unet, tensors[WORDS_KEY], metadata


def _part(tensors: dict[str, Tensor], prefix: str, skip: tuple[str, ...] = ()) -> dict[str, Tensor]:
    names = (name for name in tensors if name.startswith(prefix) and name.removeprefix(prefix) not in skip)
    return {name.removeprefix(prefix): tensors[name] for name in names}


@torch.no_grad()
def _preview_factors(autoencoder: Autoencoder) -> list[list[float]]:
    """Least-squares map from a latent (and 1) to the colour it stands for in -1..1, [5, 3]: quick previews."""
    from .pictures import PictureRing, as_tensor

    ring = PictureRing(seed=5, size=128, capacity=32)
    ring.renew(32)
    images = as_tensor(ring.pictures)
    latents = autoencoder.encode(images).permute(0, 2, 3, 1).reshape(-1, 4)
    colours = torch.nn.functional.avg_pool2d(images * 2 - 1, 8).permute(0, 2, 3, 1).reshape(-1, 3)
    design = torch.cat([latents, torch.ones(len(latents), 1)], 1)
    return torch.linalg.lstsq(design, colours).solution.tolist()
