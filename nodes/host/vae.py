"""ComfyUI's VAE without a MODEL: what it alone makes of images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...anomalydiffusion_core.identity import weights_fingerprint
from ...anomalydiffusion_core.masks.change import Reconstruct, reconstruction_of


class Autoencoder:
    """A VAE as the core sees it; latents are in the VAE's own scale."""

    def __init__(self, vae: Any) -> None:
        vae.throw_exception_if_invalid()
        self.vae, self.downscale = vae, int(vae.spacial_compression_encode())

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to latents on the CPU."""
        latents: Tensor = self.vae.encode(images.movedim(1, -1).cpu().contiguous())
        return latents.float().cpu()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images [B, 3, H, W] in [0, 1] on the CPU."""
        images: Tensor = self.vae.decode(latents)
        return images.movedim(-1, 1).float().clamp(0, 1).cpu()


def reconstruction(vae: Any) -> Reconstruct | None:
    """What a VAE makes of images of any size; None without one."""
    return None if vae is None else reconstruction_of(Autoencoder(vae))


def fingerprint(vae: Any) -> str:
    """Tells one VAE from another; empty without one."""
    return "" if vae is None else weights_fingerprint(vae.first_stage_model.state_dict())
