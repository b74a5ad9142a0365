"""The seam between the method and the program that holds the diffusion model.

Everything in this package talks to a latent diffusion model through :class:`Denoiser` only. The ComfyUI adapter
(``nodes/host/denoiser.py``) and the backends without ComfyUI (``backends/``) implement it; the same weights must give
the same numbers through each of them.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
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
    def alphas_cumprod(self) -> Tensor:
        """Float32 [T], the cumulative products of the noise schedule, falling from about 1 to about 0."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to latents. Deterministic; no gradient is needed."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images [B, 3, H, W], clamped to [0, 1]. No gradient is needed."""
        ...

    def predict_noise(self, x_t: Tensor, t: Tensor, context: Tensor, attention: AttentionGain | None = None) -> Tensor:
        """The noise eps the model sees in ``x_t``, of the shape of ``x_t``.

        ``t`` may be fractional, float [B]: a noise level between two entries of the schedule, see :func:`noise_level`.
        Differentiable with respect to ``context`` inside :meth:`training_mode`. With ``attention`` every
        cross-attention layer replaces its attention call by ``attention.attend(q, k, v, heads, height, width)``
        (before the output projection); with None the layer runs exactly as it would without this argument.
        """
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


def noise_level(alphas_cumprod: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The timestep that the network is told, int64 [B], and the exact alpha, float32 [B, 1, 1, 1], of times ``t`` [B].

    Between two entries of the schedule log sigma is interpolated, and the network is told the nearer entry, as
    ComfyUI does. sigma^2 = (1 - alpha) / alpha.
    """
    alphas = alphas_cumprod.to(t.device)
    if not t.is_floating_point():
        return t, alphas[t][:, None, None, None]
    log_sigmas = ((1 - alphas) / alphas).sqrt().log()
    times = t.clamp(0, len(alphas) - 1)
    low, high, share = times.floor().long(), times.ceil().long(), times.frac()
    levels = (1 - share) * log_sigmas[low] + share * log_sigmas[high]
    nearest = (levels[:, None] - log_sigmas[None]).abs().argmin(dim=1)
    return nearest, (1 / (levels.exp().square() + 1))[:, None, None, None]


def schedule_sigmas(alphas_cumprod: Tensor) -> Tensor:
    """The noise levels sqrt(1 / alpha_cumprod - 1) of a schedule, float32 [T], rising."""
    alphas = alphas_cumprod.double().cpu()
    return ((1 - alphas) / alphas).sqrt().float()


def timestep_of(sigmas: Tensor, sigma: float) -> float:
    """The fractional timestep whose noise level is ``sigma``, for the rising levels ``sigmas`` [T] of a schedule.

    Between two entries log sigma is interpolated; levels beyond the ends get the last timestep there.
    """
    logs, level = sigmas.double().log(), math.log(sigma)
    high = min(max(int(torch.searchsorted(logs, level)), 1), len(sigmas) - 1)
    below, above = float(logs[high - 1]), float(logs[high])
    return min(max(high - 1 + (level - below) / (above - below), 0.0), len(sigmas) - 1.0)


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
