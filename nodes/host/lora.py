"""LoRAs of the U-Net, applied as ComfyUI's own LoRA loaders do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.lora
from torch import Tensor

from ...anomalydiffusion_core.errors import InputError
from ...anomalydiffusion_core.training.lora import PREFIX


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
            f"lora: {len(lost)} of {len(wanted)} layers are not in the model, such as {lost[0]}. Use the model it was "
            "trained on."
        )
    return adapted
