"""Files of the original LDM layout, such as the demo prior's, as ComfyUI's MODEL and VAE."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor, nn

from ...anomalydiffusion_core.backends.ldm import caption_context
from ...anomalydiffusion_core.backends.ldm_files import (
    AUTOENCODER_PREFIX,
    EPSILON,
    UNET_PREFIX,
    VELOCITY,
    WORDS_KEY,
    read_prior,
)
from ...anomalydiffusion_core.errors import InputError
from ...anomalydiffusion_core.weights import parsed_metadata
from .conditioning import Conditioning, to_conditioning
from .progress import interrupted


class _LdmConfig(comfy.supported_models_base.BASE):
    """A latent diffusion U-Net of any size; the architecture comes from the file."""

    unet_config: dict[str, Any] = {}
    unet_extra_config: dict[str, Any] = {}
    memory_usage_factor = 1.0
    prediction = EPSILON

    def model_type(self, state_dict: dict[str, Tensor], prefix: str = "") -> comfy.model_base.ModelType:
        """What the network gives out, by the file's word for it."""
        types = {EPSILON: comfy.model_base.ModelType.EPS, VELOCITY: comfy.model_base.ModelType.V_PREDICTION}
        return types[self.prediction]


@dataclass(frozen=True)
class LdmCheckpoint:
    """A loaded file: MODEL, VAE, and CONDITIONING of the empty caption and of a normal image."""

    model: Any
    vae: Any
    empty: Conditioning
    normal: Conditioning
    metadata: dict[str, str]


def load_ldm_checkpoint(path: Path) -> LdmCheckpoint:
    """Load a file that ``pretrain-demo-prior`` wrote. Raises BundleError for another or a damaged file."""
    stored = read_prior(path, interrupted)
    latents = _latent_format(stored.latent_scale, stored.config.in_channels, stored.preview)
    words = stored.tensors[WORDS_KEY].float()
    empty, normal = (words[torch.tensor(ids)][None] for ids in (stored.empty, stored.normal))
    architecture = parsed_metadata(path, stored.metadata["architecture"])
    model = _build_model(path, architecture, latents, stored.prediction, stored.part(UNET_PREFIX))
    autoencoder = stored.part(AUTOENCODER_PREFIX)
    vae = comfy.sd.VAE(sd=autoencoder)
    if vae.first_stage_model is None:
        raise InputError(f"file: {path.name} holds no autoencoder. Use another copy.")
    _require_fit(path, vae.first_stage_model, autoencoder)
    return LdmCheckpoint(model, vae, to_conditioning(empty), to_conditioning(normal), dict(stored.metadata))


def encode_ldm_caption(path: Path, caption: str) -> Conditioning:
    """The conditioning of words of a file's own table, as ``backends.ldm.caption_context`` reads them.

    Raises InputError for a file of another layout and for a word that is unknown or of several slots.
    """
    stored = read_prior(path, interrupted)
    words = stored.tensors[WORDS_KEY].float()
    return to_conditioning(caption_context(words, caption, stored.slots, stored.words))


def _latent_format(scale: float, channels: int, preview: list[list[float]] | None) -> type:
    """A latent format with this scale; ``preview`` [channels + 1, 3] maps a latent and 1 to a colour."""

    class LdmLatent(comfy.latent_formats.LatentFormat):
        scale_factor = scale
        latent_channels = channels
        latent_rgb_factors = preview[:-1] if preview else None
        latent_rgb_factors_bias = preview[-1] if preview else None

    return LdmLatent


def _build_model(
    path: Path, architecture: dict[str, Any], latent_format: type, prediction: str, state: dict[str, Tensor]
) -> Any:
    parts = {"latent_format": latent_format, "prediction": prediction}
    config = type("LdmConfig", (_LdmConfig,), parts)(architecture)
    # Small enough for single precision on any device, which is what it was trained in.
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device=comfy.model_management.unet_offload_device())
    _require_fit(path, model.diffusion_model, state)
    model.load_model_weights(state, "")
    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)


def _require_fit(path: Path, module: nn.Module, state: dict[str, Tensor]) -> None:
    """ComfyUI only logs what a file lacks, and leaves those weights uninitialised."""
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise InputError(
            f"file: {len(wrong)} weights of {path.name} do not fit its architecture; {name} has the shape "
            f"{found.get(name)}, {expected.get(name)} is required. Use another copy."
        )
