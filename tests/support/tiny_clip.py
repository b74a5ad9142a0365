"""A CLIP text encoder of random weights, 64 wide, in a diffusers model folder and in ComfyUI."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from anomalydiffusion_core.server.process import find_host

WIDTH = 64
SHAPE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


def write_text_encoder(folder: Path, seed: int = 0) -> None:
    """`text_encoder` with the names of the published Stable Diffusion 1.5, and its `tokenizer`, out of ComfyUI's."""
    config = CLIPTextConfig(hidden_act="quick_gelu", bos_token_id=0, eos_token_id=2, **SHAPE)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPTextModel(config)
        for name, parameter in model.named_parameters():
            # As initialised, a layer changes next to nothing and what lies in the prompt would not matter.
            if name.endswith("weight") and parameter.ndim == 2 and "embedding" not in name:
                torch.nn.init.normal_(parameter, std=0.2)
            elif parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    target = folder / "text_encoder"
    model.save_pretrained(target)
    path = target / "model.safetensors"
    weights = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(path).items()}
    save_file(weights, str(path), metadata={"format": "pt"})
    shutil.copytree(find_host().comfyui / "comfy" / "sd1_tokenizer", folder / "tokenizer")


def load_in_comfyui(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The text encoder of the folder as ComfyUI's CLIP."""
    import comfy.sd
    import comfy.sd1_clip

    target = SimpleNamespace(params={}, clip=comfy.sd1_clip.SD1ClipModel, tokenizer=comfy.sd1_clip.SD1Tokenizer)
    clip = comfy.sd.CLIP(target, model_options={"clip_l_model_config": SHAPE, "dtype": dtype})
    weights = load_file(folder / "text_encoder" / "model.safetensors")
    missing = clip.load_sd({**weights, "text_projection.weight": torch.eye(WIDTH)})
    assert not any(missing), missing
    return clip
