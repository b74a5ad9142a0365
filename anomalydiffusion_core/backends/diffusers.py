"""Host of a Stable Diffusion 1 or 2 model in a diffusers folder: headless use and parity checks.

Nothing is fetched: the folder holds ``unet``, ``vae`` and ``scheduler`` with safetensors weights. A folder of
LDMTextToImagePipeline, the paper's base model, calls its autoencoder ``vqvae``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..denoiser import NoiseSchedule, ScheduledDenoiser, clean_estimate, network_input
from ..errors import BundleError, InputError
from ..identity import VALUES, Fingerprints, weights_fingerprint
from ..plain_json import read_json
from ..weights import read_header
from .layout import original_unet_weights

if TYPE_CHECKING:
    from ..sampling.attention_gain import AttentionGain

EPSILON, VELOCITY = "epsilon", "v_prediction"
"""What a U-Net can predict, as scheduler_config.json calls it."""
WANTED = "Use a Stable Diffusion 1.5 or 2 model in a diffusers folder"
_LARGEST, _MOST_LAYERS = 1 << 17, 256
"""Limits of the numbers in a configuration."""
VAES = ("AutoencoderKL", "AutoencoderTiny")
WEIGHTS = "diffusion_pytorch_model"
# Options of a U-Net that add conditions or change a cross-attention layer, with the values that do neither.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "addition_embed_type": (None,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "time_cond_proj_dim": (None,),
    "cross_attention_norm": (None,),
    "attention_type": (None, "default"),
    "dual_cross_attention": (None, False),
}


class DiffusersDenoiser(ScheduledDenoiser):
    """A :class:`~anomalydiffusion_core.denoiser.Denoiser` over a diffusers U-Net, autoencoder and noise schedule.

    The U-Net may compute in float16 or bfloat16; what goes in and comes out is float32, and so is the autoencoder.
    """

    def __init__(
        self,
        unet: Any,
        vae: Any,
        schedule: NoiseSchedule,
        prediction: str = EPSILON,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        checkpointing: bool = False,
    ) -> None:
        """Wrap models that are already loaded.

        unet: ``UNet2DConditionModel``; vae: one of VAES; prediction: what the U-Net predicts, EPSILON or
        VELOCITY. Both models are moved to ``device`` and frozen. checkpointing: compute activations twice
        in training instead of keeping them. Raises InputError for a model that needs more than a context, and for
        float16 on the CPU.
        """
        check_parts(unet.config, vae.config)
        if dtype is torch.float16 and torch.device(device).type == "cpu":
            raise InputError("dtype: the CPU cannot train in float16. Choose float32 or bfloat16.")
        if checkpointing:
            unet.enable_gradient_checkpointing()
        # Before the cast, so that the compute precision does not make it another model.
        self._known = Fingerprints(original_unet_weights(unet.state_dict(), unet.config))
        self.applied = ""
        """What a LoRA adds to the U-Net now, see ``identity.py:adaptation_fingerprint``."""
        # The library's own `to` warns about a cast, which is meant for models with parts that must not be cast.
        self.unet = nn.Module.to(unet, device, dtype).eval().requires_grad_(False)
        self.vae = nn.Module.to(vae, device, torch.float32).eval().requires_grad_(False)
        self.device, self.compute_dtype = torch.device(device), dtype
        self.schedule, self.prediction = schedule, prediction
        self.latent_channels = int(unet.config.in_channels)
        self.context_width = int(unet.config.cross_attention_dim)
        self._tiny = type(vae).__name__ == "AutoencoderTiny"
        levels = vae.config.encoder_block_out_channels if self._tiny else vae.config.block_out_channels
        self.downscale = 2 ** (len(levels) - 1)
        self._shift = float(vae.config.get("shift_factor") or 0.0)
        self._scale = float(vae.config.scaling_factor)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to the mean latents of the VAE, scaled."""
        encoded = self.vae.encode(images.to(self.device, torch.float32) * 2 - 1)
        latents: Tensor = encoded.latents if self._tiny else encoded.latent_dist.mode()
        return (latents - self._shift) * self._scale

    @torch.no_grad()
    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the autoencoder's posterior, both like a latent.

        Raises InputError for an autoencoder without a posterior.
        """
        if self._tiny:
            raise InputError("model: an AutoencoderTiny gives no deviation of its latents. Use their mean.")
        posterior = self.vae.encode(images.to(self.device, torch.float32) * 2 - 1).latent_dist
        return (posterior.mean - self._shift) * self._scale, posterior.std * self._scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images [B, 3, H, W], clamped to [0, 1]."""
        scaled = latents.to(self.device, torch.float32) / self._scale + self._shift
        images: Tensor = self.vae.decode(scaled).sample
        return (images / 2 + 0.5).clamp(0, 1)

    def denoised(self, x: Tensor, sigma: Tensor, context: Tensor, attention: AttentionGain | None = None) -> Tensor:
        """As of a Denoiser."""
        x, sigma = x.to(self.device), sigma.to(self.device)
        seen, rows = (part.to(self.device, self.compute_dtype) for part in (network_input(x, sigma), context))
        told = self.schedule.timestep(sigma)
        with _weighted_attention(self.unet, attention):
            output: Tensor = self.unet(seen, told, encoder_hidden_states=rows, return_dict=False)[0].float()
        return clean_estimate(output, x, sigma, self.prediction == VELOCITY)

    @contextmanager
    def training_mode(self) -> Iterator[None]:
        """As of a Denoiser. The weights are always frozen, so only gradients are switched on."""
        with torch.inference_mode(False), torch.enable_grad():
            yield

    def vae_fingerprint(self) -> str:
        """Tells one autoencoder from another."""
        return weights_fingerprint(self.vae.state_dict(), VALUES)

    def fingerprint(self, like: str = "") -> str:
        """The same text as ComfyUI and the plain backend give for the same U-Net, whatever the compute precision."""
        return self._known.like(like)

    def adaptation(self) -> str:
        """As of a Denoiser."""
        return self.applied


def load_diffusers(
    folder: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    checkpointing: bool = False,
) -> DiffusersDenoiser:
    """Load a local model folder. Raises InputError that says what in the folder is missing or not supported."""
    # The package's name is that of this module; inside a function it is the installed one.
    from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel

    folder = Path(folder)
    own = autoencoder_folder(folder)
    configs = {part: read_config(folder, part) for part in ("unet", own, "scheduler")}
    check_schedule(configs["scheduler"])
    check_parts(configs["unet"], configs[own])
    vae_class: Any = AutoencoderTiny if configs[own].get("_class_name") == "AutoencoderTiny" else AutoencoderKL
    # Loaded in inference mode the weights could never be differentiated through.
    with torch.inference_mode(False):
        unet = _load_weights(UNet2DConditionModel, folder, "unet")
        vae = _load_weights(vae_class, folder, own)
        # Only the schedule is taken, and that is the same for every kind of sampler.
        schedule: Any = DDPMScheduler.from_config(configs["scheduler"])
        prediction = configs["scheduler"].get("prediction_type", EPSILON)
        return DiffusersDenoiser(
            unet,
            vae,
            NoiseSchedule.of_betas(schedule.betas),
            prediction,
            device=device,
            dtype=dtype,
            checkpointing=checkpointing,
        )


def autoencoder_folder(folder: Path) -> str:
    """The name of the autoencoder's folder: that of LDMTextToImagePipeline where there is no other."""
    return "vqvae" if (folder / "vqvae").is_dir() and not (folder / "vae").is_dir() else "vae"


def read_config(folder: Path, part: str) -> dict[str, Any]:
    """The configuration of one part of a model folder. Raises InputError that names the file."""
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    path = folder / part / name
    if not path.is_file():
        there = ", ".join(sorted(x.name for x in folder.iterdir() if x.is_dir())) if folder.is_dir() else ""
        found = f"it holds {there}" if there else ("it holds no folders" if folder.is_dir() else "it does not exist")
        raise InputError(f"model: {folder} lacks {part}/{name} ({found}). {WANTED}.")
    config: dict[str, Any] = read_json(path, "model")
    return config


def check_schedule(config: Mapping[str, Any]) -> None:
    """Raise InputError unless the scheduler's configuration is that of a model that predicts noise or velocity."""
    kind = config.get("prediction_type", EPSILON)
    if kind not in (EPSILON, VELOCITY):
        raise InputError(
            f"model: prediction_type {kind!r} in scheduler_config.json is not supported, only {EPSILON}, {VELOCITY}. "
            f"{WANTED}."
        )
    if "num_train_timesteps" not in config or "flow" in str(config.get("_class_name", "")).lower():
        raise InputError(f"model: {config.get('_class_name')} is not a discrete noise schedule. {WANTED}.")


def check_parts(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Raise InputError for configurations of a U-Net that needs more than a context, or of a VAE it does not fit."""
    for name, plain in _PLAIN.items():
        if unet.get(name) not in plain:
            raise InputError(
                f"model: its U-Net has {name} = {unet[name]!r} and needs conditions beside a context (SDXL and some "
                f"others do); that is not supported. {WANTED}."
            )
    width = unet.get("cross_attention_dim")
    if not isinstance(width, int):
        raise InputError(f"model: its U-Net has cross_attention_dim = {width!r}, one width is required. {WANTED}.")
    kind = vae.get("_class_name", "AutoencoderKL")
    if kind not in VAES:
        raise InputError(f"model: its autoencoder is {kind}, supported are {', '.join(VAES)}. {WANTED}.")
    channels = [
        int(c) for c in (unet.get("in_channels", 4), unet.get("out_channels", 4), vae.get("latent_channels", 4))
    ]
    if len(set(channels)) != 1:
        raise InputError(
            f"model: its U-Net takes {channels[0]} channels and gives {channels[1]} for latents of {channels[2]} "
            f"(inpainting?). {WANTED}."
        )


def _load_weights(cls: Any, folder: Path, part: str) -> Any:
    plain, half = (folder / part / f"{WEIGHTS}{kind}.safetensors" for kind in ("", ".fp16"))
    sharded = plain.with_name(f"{plain.name}.index.json").is_file()
    variant = "fp16" if half.is_file() and not plain.is_file() and not sharded else None
    if variant is None and not plain.is_file() and not sharded:
        raise InputError(f"model: {plain} is missing; weights in other formats are not read. {WANTED}.")
    check_size(folder / part, lambda: cls.from_config(read_config(folder, part)))
    try:
        return cls.from_pretrained(
            str(folder),
            subfolder=part,
            variant=variant,
            torch_dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
        )
    except Exception as error:  # a damaged file makes the library raise almost anything
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"model: the weights in {folder / part} cannot be loaded ({reason}). Use another copy."
        ) from error


def check_size(folder: Path, build: Callable[[], nn.Module]) -> None:
    """Raise InputError when the configuration in a folder describes a larger model than its files hold weights of.

    build: makes the model, here without memory. Names are not compared: older files have other ones for some layers.
    """
    config = read_json(folder / "config.json", "model")
    numbers = [value for entry in config.values() for value in (entry if isinstance(entry, list) else [entry])]
    layers = [value for name, value in config.items() if "layers" in name and isinstance(value, int)]
    if any(isinstance(value, int) and value > _LARGEST for value in numbers) or max(layers, default=0) > _MOST_LAYERS:
        raise InputError(
            f"model: {folder / 'config.json'} holds a number above {_LARGEST}, or more than {_MOST_LAYERS} layers. "
            "Use another copy."
        )
    try:
        shapes = [
            shape for path in sorted(folder.glob("*.safetensors")) for shape in read_header(path).shapes.values()
        ]
        with torch.device("meta"):
            described = sum(value.numel() for value in build().state_dict().values())
    except BundleError as error:
        raise InputError(f"model: the weights in {folder} cannot be loaded ({error})") from error
    except Exception as error:  # a damaged configuration makes the library raise almost anything
        reason = str(error).strip().split("\n")[0][:200]
        raise InputError(f"model: {folder / 'config.json'} is not possible ({reason}). Use another copy.") from error
    stored = sum(math.prod(shape) for shape in shapes)
    if described > 1.1 * stored + 1_000_000:
        raise InputError(
            f"model: {folder / 'config.json'} describes {described} weights, its files hold {stored}. Use another "
            "copy."
        )


class _WeightedAttention:
    """Stands in for the processor of one cross-attention layer during one model call."""

    def __init__(self, attention: AttentionGain, shape: list[int]) -> None:
        self._attention, self._shape = attention, shape

    def __call__(self, layer: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        q = layer.to_q(hidden_states)
        k, v = layer.to_k(encoder_hidden_states), layer.to_v(encoder_hidden_states)
        mixed: Tensor = self._attention.attend(q, k, v, layer.heads, self._shape[0], self._shape[1])
        for module in layer.to_out:
            mixed = module(mixed)
        return mixed


@contextmanager
def _weighted_attention(unet: nn.Module, attention: AttentionGain | None) -> Iterator[None]:
    """Every cross-attention layer of ``unet`` with these weights; all is as before afterwards."""
    if attention is None:
        yield
        return
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    exchanged: list[tuple[Any, Any]] = []
    hooks = []
    try:
        for stage in unet.modules():
            if isinstance(stage, Transformer2DModel):
                # A layer sees a row of positions; only the transformer around it knows their height and width.
                shape = [0, 0]
                hooks.append(stage.register_forward_pre_hook(_shape_into(shape), with_kwargs=True))
                for block in stage.transformer_blocks:
                    layer: Any = block.attn2
                    if layer is not None:
                        exchanged.append((layer, layer.processor))
                        layer.processor = _WeightedAttention(attention, shape)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, processor in exchanged:
            layer.processor = processor


def _shape_into(shape: list[int]) -> Any:
    def hook(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        hidden = arguments[0] if arguments else options["hidden_states"]
        shape[:] = hidden.shape[-2:]

    return hook
