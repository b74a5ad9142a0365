"""Writes model folders of diffusers out of weights in the original layout, with diffusers' own conversion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, PNDMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from torch import Tensor

from anomalydiffusion_core.backends.ldm import LdmDenoiser, load_ldm
from anomalydiffusion_core.backends.ldm_files import UNET_PREFIX


def unet_config(architecture: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `UNet2DConditionModel` for a U-Net that ComfyUI builds from `architecture`."""
    mults, depths = list(architecture["channel_mult"]), list(architecture["transformer_depth"])
    layers = architecture["num_res_blocks"][0]
    attends = [bool(depths[level * layers]) for level in range(len(mults))]
    return {
        "in_channels": architecture["in_channels"],
        "out_channels": architecture["out_channels"],
        "block_out_channels": tuple(mult * architecture["model_channels"] for mult in mults),
        "down_block_types": tuple("CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attends)),
        "layers_per_block": layers,
        "cross_attention_dim": architecture["context_dim"],
        # For historic reasons diffusers calls the number of heads so in models of this kind.
        "attention_head_dim": architecture["num_heads"],
    }


def convert_unet(weights: dict[str, Tensor], architecture: dict[str, Any]) -> Any:
    """The diffusers model with these weights, which are given under their original names without a prefix."""
    unet: Any = UNet2DConditionModel(**unet_config(architecture))
    prefixed = {UNET_PREFIX + name: value.float() for name, value in weights.items()}
    unet.load_state_dict(convert_ldm_unet_checkpoint(prefixed, dict(unet.config)))
    return unet


def convert_tiny_autoencoder(weights: dict[str, Tensor]) -> Any:
    """The diffusers model with the weights of a TAESD (`taesd_encoder.0.weight`, ...)."""
    vae: Any = AutoencoderTiny()
    renamed = {}
    for name, value in weights.items():
        part, number, rest = name.split(".", 2)
        # The original decoder counts a clamp that diffusers' decoder applies by itself.
        place = int(number) - (part == "taesd_decoder")
        renamed[f"{part.removeprefix('taesd_')}.layers.{place}.{rest}"] = value.float()
    vae.load_state_dict(renamed)
    return vae


def write_folder(folder: Path, unet: Any, vae: Any, **schedule: Any) -> Path:
    """A model folder as `StableDiffusionPipeline.save_pretrained` writes it, without safety checker."""
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", **schedule}
    scheduler: Any = PNDMScheduler(**settings)
    scheduler.save_pretrained(folder / "scheduler")
    return folder


def write_from_ldm(folder: Path, path: Path) -> Path:
    """A stored demo prior as a model folder."""
    prior: LdmDenoiser = load_ldm(path)
    unet = convert_unet(dict(prior.unet.state_dict()), prior.unet.config.host_arguments())
    return write_folder(folder, unet, convert_tiny_autoencoder(dict(prior.autoencoder.state_dict())))


def random_autoencoder(seed: int) -> Any:
    """A small autoencoder of the kind of Stable Diffusion, 8 pixels to a cell."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(32, 32, 32, 32),
            layers_per_block=1,
            latent_channels=4,
            scaling_factor=0.18215,
        )


def edit_config(folder: Path, part: str, **values: Any) -> None:
    """Change the configuration of one part."""
    path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def write_ldm_pipeline(folder: Path, path: Path) -> Path:
    """A file of text2img-large as a folder of LDMTextToImagePipeline, with diffusers' own classes."""
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    from anomalydiffusion_core.backends.text2img import AutoencoderShape, UNetShape, open_text2img, read_text2img

    denoiser, _ = open_text2img(path)
    parts = read_text2img(path)
    assert UNetShape.of(parts.unet) and AutoencoderShape.of(parts.autoencoder)
    text, width = parts.text, parts.text["norm.weight"].shape[0]
    depth = sum(name.endswith("to_q.weight") for name in text)
    inner = len(text["attn_layers.layers.0.1.to_q.weight"])
    config = LDMBertConfig(
        vocab_size=len(text["token_emb.weight"]), max_position_embeddings=77, encoder_layers=depth,
        encoder_ffn_dim=4 * width, encoder_attention_heads=inner // 64, head_dim=64, d_model=width,
    )  # fmt: skip
    bert: Any = LDMBertModel(config)
    places = {
        "model.embed_tokens.": "token_emb.",
        "model.embed_positions.": "pos_emb.emb.",
        "model.layer_norm.": "norm.",
    }
    for layer in range(depth):
        attention, forward = (f"attn_layers.layers.{2 * layer + second}." for second in (0, 1))
        own = f"model.layers.{layer}."
        places |= {f"{own}self_attn_layer_norm.": f"{attention}0.", f"{own}final_layer_norm.": f"{forward}0."}
        places |= {f"{own}fc1.": f"{forward}1.net.0.0.", f"{own}fc2.": f"{forward}1.net.2."}
        for theirs, ours in (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out")):
            places[f"{own}self_attn.{theirs}."] = f"{attention}1.{ours}."
    state = bert.state_dict()
    for theirs, ours in places.items():
        for kind in ("weight", "bias"):
            if theirs + kind in state:
                state[theirs + kind] = text[ours + kind].float()
    bert.load_state_dict(state)
    denoiser.unet.save_pretrained(folder / "unet")
    denoiser.vae.save_pretrained(folder / "vqvae")
    bert.save_pretrained(folder / "bert")
    scheduler: Any = PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.save_pretrained(folder / "scheduler")
    return folder
