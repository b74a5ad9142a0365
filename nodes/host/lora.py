"""The adapter to ComfyUI, eighth part: LoRA files of the U-Net, as the stock LoRA loaders read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.lora
import folder_paths
from torch import Tensor

from ...anomalydiffusion_core.bundles.bundle import METADATA_KEY, write_new
from ...anomalydiffusion_core.errors import InputError
from ...anomalydiffusion_core.training.lora import PREFIX
from .folders import LORAS


def with_lora(model: Any, tensors: Mapping[str, Tensor]) -> Any:
    """A MODEL that is ``model`` with a LoRA at strength 1, as LoraLoaderModelOnly makes it; ``model`` is not changed.

    Raises InputError for layers that the host cannot map to the model.
    """
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    wanted = {name.rpartition(".lora_down")[0] for name in tensors if ".lora_down" in name}
    loaded = comfy.lora.load_lora(dict(tensors), {name: known[name] for name in wanted if name in known})
    adapted = model.clone()
    applied = adapted.add_patches(loaded, 1.0)
    if len(set(applied)) != len(wanted):
        lost = sorted(name.removeprefix(PREFIX) for name in wanted if known.get(name) not in applied)
        raise InputError(
            f"lora: {len(lost)} of {len(wanted)} layers are not in the model, as {lost[0]}. Use the model it was made "
            "for."
        )
    return adapted


def save_lora(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write a LoRA file in one step, ``record`` in its metadata. Raises BundleError when it cannot be written."""
    from safetensors.torch import save

    text = json.dumps(dict(record), sort_keys=True, ensure_ascii=True)
    write_new(path, bytes(save(dict(tensors), metadata={METADATA_KEY: text})))
    folder_paths.filename_list_cache.pop(LORAS, None)


def find_lora(content_key: str) -> tuple[Path, dict[str, Any]] | None:
    """A stored LoRA that a training of the same content wrote, and its record; None when there is none."""
    from safetensors import SafetensorError, safe_open

    for name in folder_paths.get_filename_list(LORAS):
        path = folder_paths.get_full_path(LORAS, name)
        if path is None or not name.endswith(".safetensors"):
            continue
        try:
            with safe_open(path, framework="pt") as stored:
                record = json.loads((stored.metadata() or {}).get(METADATA_KEY, "{}"))
        except (SafetensorError, OSError, ValueError):
            continue  # somebody else's damaged file is no reason to fail here
        if isinstance(record, dict) and record.get("content_key") == content_key:
            return Path(path), record
    return None


def read_lora(path: Path) -> dict[str, Tensor]:
    """The tensors of a file."""
    from safetensors.torch import load_file

    return dict(load_file(str(path)))
