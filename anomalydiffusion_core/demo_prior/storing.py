"""The demo prior as one safetensors file in the layout of the original latent diffusion release."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backends.ldm_autoencoder import Autoencoder, widen
from ..backends.ldm_files import AUTOENCODER_PREFIX, FORMAT, LATENT_SCALE, UNET_PREFIX, VELOCITY, WORDS_KEY
from ..backends.ldm_unet import UNet
from ..files import replacing
from ..synthetic.captions import SLOTS, caption_ids, normal_caption_ids
from .renderers import SURFACES, Renderer
from .renders import RenderSource, as_tensor


def store(
    path: Path,
    autoencoder: Autoencoder,
    unet: UNet,
    words: Tensor,
    training: dict[str, Any],
    prediction: str = VELOCITY,
    renderer: Renderer = SURFACES,
) -> None:
    """Write weights in half precision with all that a loader needs in the metadata; atomic.

    Args:
        training: settings and data seed of the pretraining, kept as text.
        prediction: what `unet` gives out, `EPSILON` or `VELOCITY`.
        renderer: whose words `words` are.
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
        "latent_rgb_factors": json.dumps(_preview_factors(autoencoder, renderer)),
        "captions": json.dumps({"slots": SLOTS, "words": renderer.words}),
        "empty_caption": json.dumps(caption_ids(None, renderer.words)),
        "normal_caption": json.dumps(normal_caption_ids(renderer.words)),
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


@lru_cache(maxsize=1)
def _preview_images(renderer: Renderer) -> Tensor:
    return as_tensor(RenderSource(renderer, 5, 128, renderer.mask_share).take(32))


@torch.no_grad()
def _preview_factors(autoencoder: Autoencoder, renderer: Renderer) -> list[list[float]]:
    """Least-squares map from a latent (and 1) to the colour it stands for in -1..1, [C + 1, 3]: quick previews."""
    images = _preview_images(renderer)
    latents = autoencoder.encode(images).permute(0, 2, 3, 1).flatten(0, 2)
    colours = torch.nn.functional.avg_pool2d(images * 2 - 1, 8).permute(0, 2, 3, 1).reshape(-1, 3)
    design = torch.cat([latents, torch.ones(len(latents), 1)], 1)
    return torch.linalg.lstsq(design, colours).solution.tolist()
