"""The adapter to ComfyUI, second part: loading the demo prior, and the core's Denoiser over a MODEL and a VAE."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sd
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor, nn

from ..anomalydiffusion_core.backends.ldm import caption_context
from ..anomalydiffusion_core.demo_prior.storing import (
    AUTOENCODER_PREFIX,
    EPSILON,
    FORMAT,
    UNET_PREFIX,
    VELOCITY,
    WORDS_KEY,
    prediction_of,
)
from ..anomalydiffusion_core.denoiser import weights_fingerprint
from ..anomalydiffusion_core.errors import InputError
from . import host_compute
from .host import Progress, tensor_digest

if TYPE_CHECKING:
    from ..anomalydiffusion_core.attention_gain import AttentionGain

ALL_MEMORY = 1e20
"""Asks ComfyUI to free what it can before a model is loaded whole, as its own trainer does."""
VAE_BATCH = 8
"""Pictures per call of the VAE. ComfyUI alone would take as many as fit into all free memory."""
VAE_STEPS = 4
"""Sampling steps that a picture on its way through the VAE counts for on a progress bar."""
Conditioning = list[list[Any]]


# Checkpoints in the original LDM layout


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
    """A loaded file: MODEL, VAE, and CONDITIONING of the empty caption and of a good part."""

    model: Any
    vae: Any
    empty: Conditioning
    normal: Conditioning
    metadata: dict[str, str]


def load_ldm_checkpoint(path: Path) -> LdmCheckpoint:
    """Load a file that ``pretrain-demo-prior`` wrote. Raises InputError for a file of another layout."""
    state, metadata = _read_ldm_file(path)
    try:
        architecture = json.loads(metadata["architecture"])
        scale = float(metadata["latent_scale"])
        captions = [json.loads(metadata[f"{kind}_caption"]) for kind in ("empty", "normal")]
        preview = json.loads(metadata.get("latent_rgb_factors", "null"))
        prediction = prediction_of(metadata)
        words = state[WORDS_KEY].float()
        empty, normal = (words[torch.tensor(ids)][None] for ids in captions)
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(f"file: {path.name} is damaged ({error!r}). Use another copy.") from error
    model = _build_model(path, architecture, _latent_format(scale, preview), prediction, _part(state, UNET_PREFIX))
    autoencoder = _part(state, AUTOENCODER_PREFIX)
    vae = comfy.sd.VAE(sd=autoencoder)
    if vae.first_stage_model is None:
        raise InputError(f"file: {path.name} holds no autoencoder. Use another copy.")
    _require_fit(path, vae.first_stage_model, autoencoder)
    return LdmCheckpoint(model, vae, to_conditioning(empty), to_conditioning(normal), dict(metadata))


def encode_ldm_caption(path: Path, caption: str) -> Conditioning:
    """The conditioning of words of a file's own table, as ``backends.ldm.caption_context`` reads them.

    Raises InputError for a file of another layout and for a word that is unknown or of several slots.
    """
    state, metadata = _read_ldm_file(path)
    try:
        slots, names = (json.loads(metadata["captions"])[part] for part in ("slots", "words"))
        words = state[WORDS_KEY].float()
    except (KeyError, ValueError) as error:
        raise InputError(f"file: {path.name} is damaged ({error!r}). Use another copy.") from error
    return to_conditioning(caption_context(words, caption, slots, names))


def _read_ldm_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    state, metadata = comfy.utils.load_torch_file(str(path), return_metadata=True)
    if (metadata or {}).get("format") != FORMAT:
        raise InputError(
            f"file: {path.name} is not of the layout '{FORMAT}'. Stable Diffusion checkpoints are loaded by the stock "
            "node Load Checkpoint."
        )
    return state, metadata


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _latent_format(scale: float, preview: list[list[float]] | None) -> type:
    """A latent format with this scale; ``preview`` [5, 3] maps a latent and 1 to the colour it stands for."""

    class LdmLatent(comfy.latent_formats.LatentFormat):
        scale_factor = scale
        latent_channels = 4
        latent_rgb_factors = preview[:4] if preview else None
        latent_rgb_factors_bias = preview[4] if preview else None

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
            f"{found.get(name)}, needed is {expected.get(name)}. Use another copy."
        )


# Conditioning


COLUMNS = "anomalydiffusion_columns"
"""Entry of a conditioning's dictionary: bool [L], the rows of its context that are the anomaly embedding."""


BASE = "anomalydiffusion_base"
"""Entry of a conditioning's dictionary: fingerprint of the model that the embedding was trained on."""


def to_conditioning(context: Tensor, **extra: Any) -> Conditioning:
    """Context [B, L, width] as CONDITIONING; ``extra`` goes into its dictionary, which the host carries along."""
    return [[context.detach().cpu(), extra]]


def single_context(conditioning: Conditioning, name: str) -> Tensor:
    """The context [L, width] of a conditioning of one entry and one row, as a normal tensor for the core."""
    if len(conditioning) != 1 or conditioning[0][0] is None or conditioning[0][0].shape[0] != 1:
        raise InputError(f"{name}: {len(conditioning)} entries. Connect the conditioning of one caption.")
    with torch.inference_mode(False):
        return conditioning[0][0][0].detach().clone().float().cpu()


def conditioning_digest(conditioning: Conditioning | None) -> str:
    """A hash of the contexts of a conditioning, for content keys."""
    return tensor_digest(*(entry[0] for entry in conditioning or ()))


# The core's view of a MODEL and a VAE


class ComfyDenoiser:
    """The core's Denoiser over ComfyUI's MODEL and VAE. Neither is changed: options are copied, weights put back.

    Raises InputError on creation for a model that is not a cross-attention U-Net predicting noise or velocity on the
    VAE's latents (Stable Diffusion 1 and 2 are, SDXL, Flux and inpainting models are not).

    compute: number format of the model in training, one of host_compute.FORMATS; the embeddings stay float32.
    checkpointing: compute activations twice in training instead of keeping them. companions: patchers of models that
    must stay loaded beside this one in training.
    """

    def __init__(
        self,
        model: Any,
        vae: Any,
        *,
        compute: str = host_compute.FORMATS[0],
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
        return torch.device(self.model.load_device)

    @property
    def alphas_cumprod(self) -> Tensor:
        sigmas = self._schedule.sigmas
        with torch.inference_mode(False):
            return 1 / (sigmas.detach().clone().double().cpu().square() + 1).float()

    @property
    def _schedule(self) -> Any:
        # Through the patcher: nodes may have replaced the model's own schedule.
        return self.model.get_model_object("model_sampling")

    def check_width(self, width: int, name: str) -> None:
        """Raise InputError with both widths unless ``width`` is that of the model's context."""
        if width != self.context_width:
            raise InputError(
                f"{name}: its width is {width}, the model's context has {self.context_width}. Use the model it was "
                "made for."
            )

    def check_base(self, trained_on: str, name: str) -> None:
        """Raise InputError with both fingerprints unless ``trained_on`` is this model's, or "" for not recorded."""
        own = self.fingerprint() if trained_on else ""
        if trained_on != own:
            raise InputError(
                f"{name}: the embedding was trained on the model {trained_on}, this one is {own}. Use the model it "
                "was trained on, or train it on this one."
            )

    def encode(self, images: Tensor) -> Tensor:
        return self.model.model.process_latent_in(self.vae_encode(images)).to(self.device)

    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the VAE's posterior, in the scale of ``encode``.

        Raises InputError for a VAE without one, like the tiny autoencoders.
        """
        posterior = getattr(self.vae.first_stage_model, "regularization", None)
        if posterior is None:
            raise InputError(
                "sample latents: this VAE has no posterior to draw from. Switch it off, or use another VAE."
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
        return self.vae_decode(self.model.model.process_latent_out(latents)).to(self.device)

    @torch.no_grad()
    def vae_encode(self, images: Tensor, progress: Progress | None = None) -> Tensor:
        """Images [B, 3, H, W] to latents in the VAE's scale, which is that of a LATENT, on the CPU.

        ``progress`` goes on by VAE_STEPS for each picture.
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

    def predict_noise(self, x_t: Tensor, t: Tensor, context: Tensor, attention: AttentionGain | None = None) -> Tensor:
        self._load()
        sigma = self._schedule.sigmas.to(self.device)[t.to(self.device)]
        wide = sigma.view(-1, 1, 1, 1)
        # ComfyUI's models take x = x_0 + sigma * noise and give x_0 back, whatever they predict inside.
        x = x_t * (1 + wide.square()).sqrt()
        options = self._options(attention)
        denoised = self.model.model.apply_model(x, sigma, c_crossattn=context, transformer_options=options)
        return (x - denoised) / wide

    def _options(self, attention: AttentionGain | None) -> dict[str, Any]:
        options = comfy.model_patcher.create_model_options_clone(self.model.model_options)
        transformer: dict[str, Any] = options["transformer_options"]
        if self._training:
            # Fused kernels of some backends have no backward pass.
            transformer["optimized_attention_override"] = host_compute.differentiable_attention
        if attention is not None:
            from .host_reweighting import FixedGain, replace_cross_attention

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

    def fingerprint(self) -> str:
        """The same text as the plain backend gives for the same U-Net; weights patched by a LoRA count unpatched."""
        backup = self.model.backup
        weights = self.model.model.diffusion_model.state_dict()
        patched = {name: backup[key].weight for name in weights if (key := f"diffusion_model.{name}") in backup}
        return weights_fingerprint(weights | patched)

    def patched_fingerprint(self) -> str:
        """As fingerprint, of the weights that compute: differs from it when a LoRA is applied."""
        self._load(whole=True)
        return weights_fingerprint(self.model.model.diffusion_model.state_dict())

    def vae_fingerprint(self) -> str:
        """Tells one VAE from another."""
        return weights_fingerprint(self.vae.first_stage_model.state_dict())


def _check_model(model: Any, vae: Any) -> int:
    """Width of the model's context. Raises InputError as ComfyDenoiser says."""
    kind = type(model.model).__name__
    wanted = "Use a Stable Diffusion 1.5 model or the demo prior"
    schedule = model.get_model_object("model_sampling")
    if not isinstance(schedule, comfy.model_sampling.ModelSamplingDiscrete):
        names = ", ".join(base.__name__ for base in type(schedule).__bases__)
        raise InputError(f"model: {kind} samples by {names}, needed is a discrete noise schedule. {wanted}.")
    widths = {
        block.attn2.to_k.weight.shape[1]
        for block in model.model.diffusion_model.modules()
        if getattr(block, "attn2", None) is not None and hasattr(block.attn2, "to_k")
    }
    if len(widths) != 1:
        raise InputError(f"model: {kind} has {len(widths)} widths of cross-attention, needed is 1. {wanted}.")
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
