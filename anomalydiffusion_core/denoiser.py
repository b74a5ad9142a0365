"""The seam between the method and the program that holds the diffusion model.

Everything in this package talks to a latent diffusion model through :class:`Denoiser` only. The ComfyUI adapter
(``nodes/host/denoiser.py``) and the backends without ComfyUI (``backends/``) implement it; the same weights must give
the same numbers through each of them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from .errors import InputError

if TYPE_CHECKING:
    from .sampling.attention_gain import AttentionGain


@runtime_checkable
class Denoiser(Protocol):
    """A frozen latent diffusion model with cross-attention conditioning, whatever its network predicts.

    Shapes: images float32 [B, 3, H, W] in [0, 1] with H and W multiples of ``downscale``; latents float32
    [B, latent_channels, H / downscale, W / downscale] in the scale the diffusion model works in (any VAE scale factor
    and shift already applied); context float32 [B, L, context_width]; t int64 [B] in 0 .. T-1. Everything returned
    lies on ``device``.
    """

    @property
    def latent_channels(self) -> int:
        """Channels of a latent (4 for Stable Diffusion 1.5)."""
        ...

    @property
    def downscale(self) -> int:
        """Pixels per latent cell along one side (8 for Stable Diffusion 1.5)."""
        ...

    @property
    def context_width(self) -> int:
        """Width of one context row (768 for Stable Diffusion 1.5)."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the model computes; the core places its own tensors there."""
        ...

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise levels that the model was trained at."""
        ...

    @property
    def alphas_cumprod(self) -> Tensor:
        """Float32 [T], the cumulative products of the noise schedule, falling from about 1 to about 0."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to latents. Deterministic; no gradient is needed."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images [B, 3, H, W], clamped to [0, 1]. No gradient is needed."""
        ...

    def denoised(self, x: Tensor, sigma: Tensor, context: Tensor, attention: AttentionGain | None = None) -> Tensor:
        """The clean latents that the model sees in ``x`` = x_0 + sigma * noise, at noise levels ``sigma`` [B].

        The network is told the timestep whose level is nearest. Differentiable with respect to ``context`` inside
        :meth:`training_mode`. With ``attention`` every cross-attention layer replaces its attention call by
        ``attention.attend(q, k, v, heads, height, width)`` (before the output projection); with None the layer runs
        exactly as it would without this argument.
        """
        ...

    def predict_noise(self, x_t: Tensor, t: Tensor, context: Tensor, attention: AttentionGain | None = None) -> Tensor:
        """The noise eps the model sees in ``x_t`` = sqrt(alpha) x_0 + sqrt(1 - alpha) eps, of the shape of ``x_t``."""
        ...

    def training_mode(self) -> AbstractContextManager[None]:
        """Inside, gradients flow through the frozen weights to the context; the weights themselves get none.

        Whatever was changed to make that possible is restored on the way out, also after an exception.
        """
        ...

    def fingerprint(self, like: str = "") -> str:
        """Tells one base model from another, without what a LoRA adds; see ``identity.py:weights_fingerprint``."""
        ...

    def adaptation(self) -> str:
        """Tells what a LoRA adds, "" for a bare model; see ``identity.py:adaptation_fingerprint``."""
        ...


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The noise levels of a discrete schedule, sigma^2 = (1 - alpha) / alpha, float32 [T], rising, with logarithms.

    Rounded as ComfyUI rounds them: levels and logarithms each from double precision.
    """

    sigmas: Tensor
    log_sigmas: Tensor

    @classmethod
    def of_betas(cls, betas: Tensor) -> NoiseSchedule:
        """From the variances [T] of the steps."""
        alphas = torch.cumprod(1 - betas.double(), 0)
        sigmas = ((1 - alphas) / alphas) ** 0.5
        return cls(sigmas.float(), sigmas.log().float())

    @property
    def alphas_cumprod(self) -> Tensor:
        """Float32 [T]."""
        with torch.inference_mode(False):
            return 1 / (self.sigmas.detach().clone().double().cpu().square() + 1).float()

    def timestep(self, sigma: Tensor) -> Tensor:
        """The timesteps, int64 [B], whose noise levels are nearest to ``sigma`` [B] on a logarithmic scale."""
        return (sigma.log()[:, None] - self.log_sigmas.to(sigma.device)[None]).abs().argmin(dim=1)

    def level(self, times: Tensor) -> Tensor:
        """The noise levels at fractional timesteps, float [B]; log sigma is interpolated."""
        times = times.float().clamp(0, len(self.sigmas) - 1)
        low, high, share = times.floor().long(), times.ceil().long(), times.frac()
        return ((1 - share) * self.log_sigmas[low] + share * self.log_sigmas[high]).exp()


class ScheduledDenoiser:
    """What follows from a schedule and clean estimates, the same for all hosts down to the rounding."""

    schedule: NoiseSchedule

    @property
    def alphas_cumprod(self) -> Tensor:
        """As of a Denoiser."""
        return self.schedule.alphas_cumprod

    def denoised(self, x: Tensor, sigma: Tensor, context: Tensor, attention: AttentionGain | None = None) -> Tensor:
        """As of a Denoiser."""
        raise NotImplementedError

    def predict_noise(self, x_t: Tensor, t: Tensor, context: Tensor, attention: AttentionGain | None = None) -> Tensor:
        """As of a Denoiser, whatever the network itself predicts."""
        sigma = self.schedule.sigmas.to(x_t.device)[t.to(x_t.device)]
        wide = sigma.view(-1, 1, 1, 1)
        x = x_t * (1 + wide.square()).sqrt()
        return (x - self.denoised(x, sigma, context, attention)) / wide


def clean_estimate(output: Tensor, x: Tensor, sigma: Tensor, velocity: bool) -> Tensor:
    """The clean latents from what a network gives out for ``x`` / sqrt(1 + sigma^2): the noise, or the velocity.

    The operations and their order are ComfyUI's, so that rounding is the same.
    """
    wide = sigma.view(-1, 1, 1, 1)
    if velocity:
        return x / (wide**2 + 1.0) - output * wide / (wide**2 + 1.0) ** 0.5
    return x - output * wide


def network_input(x: Tensor, sigma: Tensor) -> Tensor:
    """What a network sees of x = x_0 + sigma * noise: scaled to unit variance."""
    return x / (sigma.view(-1, 1, 1, 1) ** 2 + 1.0) ** 0.5


def check_rows(denoiser: Denoiser, context: Tensor | None, name: str, count: int) -> None:
    """Raise InputError, naming the input ``name``, for a context that does not fit the model and ``count`` samples."""
    if context is None or context.ndim != 3:
        raise InputError(f"{name}: has no context of rows and columns. Use the conditioning of a caption.")
    check_width(denoiser, context.shape[-1], name)
    if context.shape[0] not in (1, count):
        raise InputError(
            f"{name}: has {context.shape[0]} rows for {count} samples. Give one row, or one for each sample."
        )


def check_width(denoiser: Denoiser, width: int, name: str) -> None:
    """Raise InputError with both widths unless ``width`` is that of the model's context."""
    if width != denoiser.context_width:
        raise InputError(
            f"{name}: its width is {width}, the model's context has {denoiser.context_width}. Use the model it was "
            "made for."
        )
