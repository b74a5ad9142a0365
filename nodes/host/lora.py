"""LoRAs: applied as ComfyUI's own LoRA loaders do, and recognised in a MODEL or CLIP whoever applied them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import comfy.lora
from torch import Tensor

from ...anomalydiffusion_core.errors import InputError
from ...anomalydiffusion_core.identity import Addition, Identity, adaptation_fingerprint
from ...anomalydiffusion_core.training.lora import PREFIX, load_lora
from .folders import applied_lora


def with_lora(model: Any, tensors: Mapping[str, Tensor], strength: float = 1.0) -> Any:
    """A MODEL that is ``model`` with a LoRA at a strength, as LoraLoaderModelOnly makes it; ``model`` is not changed.

    Raises InputError for layers that the host cannot map to the model.
    """
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    wanted = {name.rpartition(".lora_down")[0] for name in tensors if ".lora_down" in name}
    loaded = comfy.lora.load_lora(dict(tensors), {name: known[name] for name in wanted if name in known})
    adapted = model.clone()
    applied = adapted.add_patches(loaded, strength)
    if len(set(applied)) != len(wanted):
        lost = sorted(name.removeprefix(PREFIX) for name in wanted if known.get(name) not in applied)
        raise InputError(
            f"lora: {len(lost)} of {len(wanted)} layers are not in the model, such as {lost[0]}. Use the model it was "
            "trained on."
        )
    return adapted


def with_needed_lora(model: Any, learned_on: Identity) -> Any:
    """The MODEL with the LoRA that something was learned with, from ComfyUI's folder of LoRAs; itself where it has it.

    Raises InputError, naming the LoRA, where no file there is the same, and for a MODEL with another one.
    """
    own = adaptation_fingerprint(additions(model, "diffusion_model."))
    if not learned_on.adaptation or own == learned_on.adaptation:
        return model
    if own:
        raise InputError(f"model: has the LoRA {own}, the bundle needs {learned_on.lora}. Connect the bare model.")
    path = applied_lora(learned_on)
    if path is None:
        raise InputError(
            f"model: the bundle needs {learned_on.lora}, which is not in models/loras. Copy the file there; its name "
            "does not matter."
        )
    return with_lora(model, load_lora(path).tensors, learned_on.strength)


def additions(patcher: Any, prefix: str = "") -> Iterator[Addition]:
    """What is added to the weights below ``prefix`` of a ModelPatcher, by LoRA loaders or otherwise."""
    for key, patches in patcher.patches.items():
        if str(key).startswith(prefix):
            for strength, patch, kept, offset, function in patches:
                yield _addition(float(strength), patch, float(kept), (offset, function))


def _addition(strength: float, patch: Any, kept: float, more: tuple[Any, Any]) -> Addition:
    weights = getattr(patch, "weights", patch)
    plain = kept == 1 and more == (None, None)
    if plain and getattr(patch, "name", "") == "lora" and not any(part is not None for part in weights[3:]):
        up, down, alpha = weights[:3]
        return Addition((up, down), strength * (1.0 if alpha is None else float(alpha) / len(down)))
    kind = f"{getattr(patch, 'name', 'weights')}|{kept:g}|{more[0]}|{more[1] is not None}"
    return Addition(list(_tensors(weights)), strength, kind)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
