"""ComfyUI's MODEL and VAE: the core's Denoiser over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import torch
from torch import Tensor

from ...anomalydiffusion_core.denoiser import NoiseSchedule, ScheduledDenoiser
from ...anomalydiffusion_core.errors import InputError
from ...anomalydiffusion_core.identity import VALUES, adaptation_fingerprint, weights_fingerprint
from ...anomalydiffusion_core.progress import Progress
from ...anomalydiffusion_core.sampling.sampler import VAE_STEPS
from ...anomalydiffusion_core.training.settings import COMPUTE_FORMATS
from . import compute as host_compute
from .attention import FixedGain, replace_cross_attention
from .lora import additions

if TYPE_CHECKING:
    from ...anomalydiffusion_core.sampling.attention_gain import AttentionGain

ALL_MEMORY = 1e20
"""Asks ComfyUI to free what it can before a model is loaded whole, as its own trainer does."""
VAE_BATCH = 8
"""Images per call of the VAE. ComfyUI alone would take as many as fit into all free memory."""


class ComfyDenoiser(ScheduledDenoiser):
    """The core's Denoiser over ComfyUI's MODEL and VAE. Neither is changed: options are copied, weights put back.

    Raises InputError on creation for a model that is not a cross-attention U-Net predicting noise or velocity on the
    VAE's latents (Stable Diffusion 1 and 2 are, SDXL, Flux and inpainting models are not).

    compute: number format of the model in training, one of COMPUTE_FORMATS; the embeddings stay float32.
    checkpointing: compute activations twice in training instead of keeping them. companions: patchers of models that
    must stay loaded beside this one in training.
    """

    def __init__(
        self,
        model: Any,
        vae: Any,
        *,
        compute: str = COMPUTE_FORMATS[0],
        checkpointing: bool = False,
        companions: Sequence[Any] = (),
    ) -> None:
        self.model, self.vae = model, vae
        self.checkpointing, self.companions = checkpointing, tuple(companions)
        self.compute_dtype = host_compute.training_dtype(model, compute)
        self._training = False
        self.context_width = _check_model(model, vae)
        self.latent_channels = int(vae.latent_channels)
        self.downscale = int(vae.spacial_compression_encode())

    @property
    def device(self) -> torch.device:
        """The device that ComfyUI computes on."""
        return torch.device(self.model.load_device)

    @property
    def schedule(self) -> NoiseSchedule:  # type: ignore[override]
        """The MODEL's schedule."""
        own = self._sampling
        return NoiseSchedule(own.sigmas, own.log_sigmas)

    @property
    def _sampling(self) -> Any:
        # Through the patcher: nodes may have replaced the model's own schedule.
        return self.model.get_model_object("model_sampling")

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to latents in the scale of the U-Net."""
        return self.model.model.process_latent_in(self.vae_encode(images)).to(self.device)

    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the VAE's posterior, in the scale of ``encode``.

        Raises InputError for a VAE without one, like the tiny autoencoders.
        """
        posterior = getattr(self.vae.first_stage_model, "regularization", None)
        if posterior is None:
            raise InputError(
                "sample latents: this VAE has no posterior to sample from. Switch it off, or use another VAE."
            )
        found: list[Tensor] = []
        hook = posterior.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].detach().float().cpu()))
        try:
            mean = self.encode(images)
        finally:
            hook.remove()
        logvar = torch.cat(found).chunk(2, dim=1)[1].clamp(-30, 20)
        deviation = (0.5 * logvar).exp()
        scale = self.model.model.process_latent_in
        return mean, (scale(deviation) - scale(torch.zeros_like(deviation))).to(mean)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents in the scale of the U-Net to images [B, 3, H, W] in [0, 1]."""
        return self.vae_decode(self.model.model.process_latent_out(latents)).to(self.device)

    @torch.no_grad()
    def vae_encode(self, images: Tensor, progress: Progress | None = None) -> Tensor:
        """Images [B, 3, H, W] to latents in the VAE's scale, which is that of a LATENT, on the CPU.

        ``progress`` advances by VAE_STEPS for each image.
        """
        latents = []
        for part in images.movedim(1, -1).cpu().contiguous().split(VAE_BATCH):
            latents.append(self.vae.encode(part).float().cpu())
            if progress is not None:
                progress.step(len(part) * VAE_STEPS)
        return torch.cat(latents)

    @torch.no_grad()
    def vae_decode(self, latents: Tensor, progress: Progress | None = None) -> Tensor:
        """Latents in the VAE's scale to images [B, 3, H, W] in [0, 1] on the CPU; ``progress`` as in vae_encode."""
        images = []
        for part in latents.split(VAE_BATCH):
            images.append(self.vae.decode(part).movedim(-1, 1).float().clamp(0, 1).cpu())
            if progress is not None:
                progress.step(len(part) * VAE_STEPS)
        return torch.cat(images)

    def denoised(self, x: Tensor, sigma: Tensor, context: Tensor, attention: AttentionGain | None = None) -> Tensor:
        """As of a Denoiser, whatever the MODEL itself predicts."""
        self._load()
        options, sigma = self._options(attention), sigma.to(self.device)
        clean: Tensor = self.model.model.apply_model(x, sigma, c_crossattn=context, transformer_options=options)
        return clean

    def _options(self, attention: AttentionGain | None) -> dict[str, Any]:
        options = comfy.model_patcher.create_model_options_clone(self.model.model_options)
        transformer: dict[str, Any] = options["transformer_options"]
        if self._training:
            # Fused kernels of some backends have no backward pass.
            transformer["optimized_attention_override"] = host_compute.differentiable_attention
        if attention is not None:
            replace_cross_attention(options, self.model.model.diffusion_model, FixedGain(attention))
            transformer = options["transformer_options"]
        return transformer

    def _load(self, whole: bool = False) -> None:
        # In training everything was loaded at the start; loading again would undo the exchange of the weights.
        if not self._training:
            comfy.model_management.load_models_gpu(
                [self.model, *(self.companions if whole else ())],
                memory_required=ALL_MEMORY if whole else 0,
                force_full_load=whole,
            )

    @contextmanager
    def training_mode(self) -> Iterator[None]:
        """Gradients flow through the frozen weights; everything is as before afterwards, also after an exception."""
        with torch.inference_mode():
            self._load(whole=True)
        base = self.model.model
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            host_compute.differentiable_weights(base),
            host_compute.computing_in(base, self.compute_dtype),
            host_compute.checkpointed(base.diffusion_model, self.checkpointing),
        ):
            self._training = True
            try:
                yield
            finally:
                self._training = False

    def fingerprint(self, like: str = "") -> str:
        """The same text as the plain backend gives for the same U-Net; weights patched by a LoRA count unpatched."""
        backup = self.model.backup
        weights = self.model.model.diffusion_model.state_dict()
        patched = {name: backup[key].weight for name in weights if (key := f"diffusion_model.{name}") in backup}
        return weights_fingerprint(weights | patched, like)

    def patched_fingerprint(self) -> str:
        """Of the values that compute, for content keys: differs where a LoRA is applied, and with the format."""
        self._load(whole=True)
        return weights_fingerprint(self.model.model.diffusion_model.state_dict(), VALUES)

    def adaptation(self) -> str:
        """The same text as the plain backend gives for the same LoRA."""
        return adaptation_fingerprint(additions(self.model, "diffusion_model."))

    def vae_fingerprint(self) -> str:
        """Tells one VAE from another."""
        return weights_fingerprint(self.vae.first_stage_model.state_dict(), VALUES)


def _check_model(model: Any, vae: Any) -> int:
    """Width of the model's context. Raises InputError as ComfyDenoiser says."""
    kind = type(model.model).__name__
    wanted = "Use a Stable Diffusion 1.5 model or the demo prior"
    schedule = model.get_model_object("model_sampling")
    if not isinstance(schedule, comfy.model_sampling.ModelSamplingDiscrete):
        names = ", ".join(base.__name__ for base in type(schedule).__bases__)
        raise InputError(f"model: {kind} samples by {names}, a discrete noise schedule is required. {wanted}.")
    widths = {
        block.attn2.to_k.weight.shape[1]
        for block in model.model.diffusion_model.modules()
        if getattr(block, "attn2", None) is not None and hasattr(block.attn2, "to_k")
    }
    if len(widths) != 1:
        raise InputError(f"model: {kind} has {len(widths)} widths of cross-attention, 1 is required. {wanted}.")
    if model.model.adm_channels:
        raise InputError(
            f"model: {kind} needs {model.model.adm_channels} pooled text channels beside a context of width "
            f"{widths.pop()}; that is not supported, models with 0 are. {wanted}."
        )
    channels = int(model.model.model_config.unet_config.get("in_channels", 4))
    latent = int(model.get_model_object("latent_format").latent_channels)
    if channels != latent:
        raise InputError(f"model: {kind} takes {channels} channels for latents of {latent} (inpainting?). {wanted}.")
    vae.throw_exception_if_invalid()
    if vae.latent_channels != latent or vae.latent_dim != 2:
        raise InputError(
            f"vae: makes {vae.latent_channels} latent channels in {vae.latent_dim} dimensions, the model takes "
            f"{latent} in 2. Connect the VAE of the same checkpoint."
        )
    return int(widths.pop())
