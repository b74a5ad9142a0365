"""How ComfyUI's models compute while something is trained through them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

from ...anomalydiffusion_core.errors import InputError
from ...anomalydiffusion_core.training.settings import COMPUTE_FORMATS

_CHECKPOINTED = ("ResBlock", "BasicTransformerBlock")


def training_dtype(model: Any, compute: str) -> torch.dtype:
    """The number format to compute in. Raises InputError for one that is unknown or not supported by the device."""
    if compute not in COMPUTE_FORMATS:
        raise InputError(f"compute: unknown format {compute!r}. Choose one of: {', '.join(COMPUTE_FORMATS)}.")
    device = torch.device(model.load_device)
    if compute == "auto":
        own: torch.dtype = model.model.manual_cast_dtype or model.model.get_dtype()
        has_bf16 = comfy.model_management.should_use_bf16(device, prioritize_performance=False)
        return torch.bfloat16 if own is torch.float16 and has_bf16 else own
    dtype: torch.dtype = getattr(torch, compute)
    if dtype is torch.float16 and device.type == "cpu":
        raise InputError("compute: the CPU cannot train in float16. Choose auto or float32.")
    return dtype


@contextmanager
def computing_in(base: Any, dtype: torch.dtype) -> Iterator[None]:
    """Let a host's base model compute in ``dtype``, weights cast where they are used; as before afterwards."""
    own = base.manual_cast_dtype
    if (own or base.get_dtype()) is dtype:
        yield
        return
    casting = [part for part in base.modules() if hasattr(part, "comfy_cast_weights")]
    flags = [part.comfy_cast_weights for part in casting]
    try:
        base.manual_cast_dtype = dtype
        for part in casting:
            part.comfy_cast_weights = True
        yield
    finally:
        base.manual_cast_dtype = own
        for part, flag in zip(casting, flags, strict=True):
            part.comfy_cast_weights = flag


@contextmanager
def checkpointed(module: nn.Module, active: bool) -> Iterator[None]:
    """Keep only the inputs of residual and transformer blocks for the backward pass, and recompute the rest."""
    changed: list[nn.Module] = []
    try:
        for part in module.modules() if active else ():
            if type(part).__name__ in _CHECKPOINTED and "forward" not in part.__dict__:
                part.forward = _twice(part.forward)  # type: ignore[method-assign]
                changed.append(part)
        yield
    finally:
        for part in changed:
            del part.forward


def _twice(forward: Any) -> Any:
    def run(*arguments: Any, **named: Any) -> Any:
        # The host goes on writing into its options; the second run must see what the first one saw.
        seen = {key: dict(value) if isinstance(value, dict) else value for key, value in named.items()}
        return torch.utils.checkpoint.checkpoint(
            lambda *own: forward(*own, **seen), *arguments, use_reentrant=False, preserve_rng_state=False
        )

    return run


def differentiable_attention(_: Any, *arguments: Any, **options: Any) -> Tensor:
    """In place of fused kernels without a backward pass."""
    return comfy.ldm.modules.attention.attention_pytorch(*arguments, **options)


@contextmanager
def differentiable_weights(module: nn.Module) -> Iterator[None]:
    """Exchange parameters and buffers for twins that autograd may save for the backward pass; put back at the end.

    Loader nodes run in inference mode, and such tensors "cannot be saved for backward". A twin shares the memory.
    """
    exchanged: list[tuple[dict[str, Any], str, Tensor]] = []
    stores: list[dict[str, Any]] = [s for part in module.modules() for s in (part._parameters, part._buffers)]
    try:
        for store in stores:
            for name, value in list(store.items()):
                if value is not None:
                    exchanged.append((store, name, value))
                    twin = _twin(value)
                    is_parameter = isinstance(value, nn.Parameter)
                    store[name] = nn.Parameter(twin, requires_grad=False) if is_parameter else twin
        yield
    finally:
        for store, name, value in exchanged:
            store[name] = value


def _twin(value: Tensor) -> Tensor:
    try:
        return from_dlpack(value.detach())
    except (BufferError, RuntimeError, TypeError):  # a kind of tensor that cannot be shared this way
        return value.detach().clone()
