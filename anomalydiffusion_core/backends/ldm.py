"""Plain PyTorch host of a model in the demo prior's file layout: headless use, tests and parity checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..denoiser import ScheduledDenoiser, clean_estimate, network_input
from ..identity import Fingerprints
from ..synthetic.captions import SLOTS, caption_ids, normal_caption_ids, vocabulary, words_in
from .ldm_autoencoder import Autoencoder, AutoencoderConfig
from .ldm_files import EPSILON, LATENT_SCALE, VELOCITY, restore
from .ldm_schedule import noise_schedule
from .ldm_unet import UNet, UNetConfig

if TYPE_CHECKING:
    from ..sampling.attention_gain import AttentionGain


class LdmDenoiser(ScheduledDenoiser):
    """A :class:`~anomalydiffusion_core.denoiser.Denoiser` over our own autoencoder and U-Net.

    Args:
        words: word table [V, d] that captions index.
        empty_caption, normal_caption: rows of the table, one per slot.
        prediction: what the U-Net gives out, the noise or the velocity.
        names: the words of the table in its order.
    """

    downscale = 8

    def __init__(
        self,
        autoencoder: Autoencoder,
        unet: UNet,
        words: Tensor,
        empty_caption: list[int],
        normal_caption: list[int],
        prediction: str = EPSILON,
        names: Sequence[str] | None = None,
    ) -> None:
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.unet = unet.eval().requires_grad_(False)
        self.words = words
        self.schedule = noise_schedule()
        self.prediction = prediction
        self.latent_channels = unet.config.in_channels
        self.names = tuple(names or vocabulary())
        self._empty, self._normal = empty_caption, normal_caption
        self._known: Fingerprints | None = None
        self.applied = ""
        """What a LoRA adds to the U-Net now, see ``identity.py:adaptation_fingerprint``."""

    @classmethod
    def random(cls, seed: int, context_dim: int = 128) -> LdmDenoiser:
        """A tiny model of random weights (0.3 M parameters), for tests of code that needs a real one."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            autoencoder = Autoencoder(AutoencoderConfig((8, 8, 8, 8), (1, 1, 1, 1)))
            unet = UNet(UNetConfig(model_channels=32, channel_mult=(1, 1), attention=(0, 1), context_dim=context_dim))
            for parameter in unet.parameters():
                # Layers that start at zero would hide whether the context matters.
                if not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.05)
            words = torch.randn(len(vocabulary()), context_dim) * 0.5
        return cls(autoencoder, unet, words, caption_ids(None), normal_caption_ids())

    @property
    def context_width(self) -> int:
        """Width of one context row."""
        return self.unet.config.context_dim

    @property
    def device(self) -> torch.device:
        """Where the U-Net computes."""
        return self.words.device

    @property
    def empty_context(self) -> Tensor:
        """Context [1, slots, d] of the empty caption."""
        return self.words[self._empty][None]

    @property
    def normal_context(self) -> Tensor:
        """Context [1, slots, d] of the caption of a normal image."""
        return self.words[self._normal][None]

    def caption_context(self, text: str) -> Tensor:
        """Context [1, slots, d] of words separated by commas; see :func:`caption_context`."""
        return caption_context(self.words, text, SLOTS, self.names)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to latents.

        Here and in ``decode`` numbers go the ways of ComfyUI, to -1 .. 1 and to the VAE's scale and back, and in the
        memory layout of its images: then the two round alike, and a training gives the same bytes in both.
        """
        there = images.contiguous(memory_format=torch.channels_last) * 2.0 - 1.0
        return (self.autoencoder.encode(there * 0.5 + 0.5) / LATENT_SCALE * LATENT_SCALE).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images [B, 3, H, W], clamped to [0, 1]."""
        images = self.autoencoder.decode(latents / LATENT_SCALE * LATENT_SCALE).sub(0.5).mul(2)
        return ((images + 1.0) / 2.0).clamp(0, 1).contiguous()

    def denoised(self, x: Tensor, sigma: Tensor, context: Tensor, attention: AttentionGain | None = None) -> Tensor:
        """As of a Denoiser."""
        told = self.schedule.timestep(sigma)
        output = self.unet(network_input(x, sigma), told, context, None if attention is None else attention.attend)
        return clean_estimate(output, x, sigma, self.prediction == VELOCITY)

    @contextmanager
    def training_mode(self) -> Iterator[None]:
        """As of a Denoiser. The weights are always frozen, so only gradients are switched on."""
        with torch.inference_mode(False), torch.enable_grad():
            yield

    def fingerprint(self, like: str = "") -> str:
        """As of a Denoiser."""
        if self._known is None:
            # Once: a LoRA that is merged later does not make it another base model.
            self._known = Fingerprints(self.unet.state_dict())
        return self._known.like(like)

    def adaptation(self) -> str:
        """As of a Denoiser."""
        return self.applied


def caption_context(words: Tensor, text: str, slots: Sequence[str], names: Sequence[str]) -> Tensor:
    """Context [1, slots, d] of a text, as ``synthetic.captions.words_in`` reads it, from a word table [V, d].

    Several words of one slot give their mean: "stain, scratch" lies between the two. Raises InputError for a word that
    is unknown or of several slots.
    """
    return torch.stack([words[torch.tensor(ids)].mean(dim=0) for ids in words_in(text, slots, names)])[None].detach()


def load_ldm(path: Path) -> LdmDenoiser:
    """Load a file in the demo prior's layout.

    Raises:
        BundleError: the file is not of that layout, or damaged.
    """
    autoencoder, unet, words, stored = restore(path)
    return LdmDenoiser(autoencoder, unet, words, stored.empty, stored.normal, stored.prediction, stored.words)
