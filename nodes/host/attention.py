"""ComfyUI's cross-attention layers: re-weighting as patches beside whatever other nodes set.

Other patches stay in force: a replacement of the same block is called and only what the weights change is added to
its result; patches of the context, and of the output, are called by the host around ours as always.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import comfy.ldm.modules.attention
import comfy.model_patcher
from torch import Tensor, nn

from ...anomalydiffusion_core.sampling.attention_gain import AttentionGain


class GainSource(Protocol):
    """Where a cross-attention patch gets the weights of the running model call from."""

    def gain(self, length: int, options: Mapping[str, Any]) -> AttentionGain | None:
        """Weights for a context of ``length`` rows; None leaves the layer as it is."""
        ...


@dataclass(frozen=True)
class FixedGain:
    """The same weights for every call."""

    weights: AttentionGain

    def gain(self, length: int, options: Mapping[str, Any]) -> AttentionGain:
        """The same weights, whatever the call."""
        return self.weights

    def __deepcopy__(self, _: Any) -> FixedGain:
        return self


class _CrossAttentionPatch:
    """Replaces the attention of one block by the re-weighted one, around a patch that was there before."""

    def __init__(self, source: GainSource, inner: Callable[..., Tensor] | None) -> None:
        self._source, self._inner = source, inner
        self._added: list[tuple[Callable[..., Tensor], dict[str, Any]]] = []

    def __deepcopy__(self, _: Any) -> _CrossAttentionPatch:
        return self

    def __getattr__(self, name: str) -> Any:
        # The host asks patches for what they need (models to load, a clean-up); the one inside answers.
        if name.startswith("_") or self._inner is None:
            raise AttributeError(name)
        return getattr(self._inner, name)

    def to(self, *arguments: Any) -> _CrossAttentionPatch:
        """ComfyUI moves patches with the model; only one inside may hold tensors."""
        move = getattr(self._inner, "to", None)
        if move is not None:
            self._inner = move(*arguments)
        return self

    def add(self, callback: Callable[..., Tensor], **options: Any) -> None:
        """Some image prompt adapters chain themselves to whatever patch a block has by calling this."""
        self._added.append((callback, options))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        heads = extra_options["n_heads"]

        def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
            return comfy.ldm.modules.attention.optimized_attention(
                q, k, v, heads, attn_precision=extra_options["attn_precision"], transformer_options=extra_options
            )

        result = attention(q, k, v, heads) if self._inner is None else self._inner(q, k, v, extra_options)
        gain = self._source.gain(k.shape[1], extra_options)
        if gain is not None:
            height, width = extra_options["activations_shape"][-2:]
            result = gain.reweight(result, q, k, v, heads, height, width, attention)
        for callback, options in self._added:
            result = result + callback(result, q, k, v, extra_options, **options)
        return result


def replace_cross_attention(model_options: dict[str, Any], unet: nn.Module, source: GainSource) -> None:
    """Put the re-weighting into ``model_options`` for every cross-attention block of ``unet``."""
    present = model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    for name in ("input", "middle", "output"):
        part = getattr(unet, f"{name}_block" if name == "middle" else f"{name}_blocks")
        for number, block in enumerate([part] if name == "middle" else part or ()):
            for module in () if block is None else block.modules():
                for index in range(len(getattr(module, "transformer_blocks", ()))):
                    inner = present.get((name, number, index), present.get((name, number)))
                    patch = _CrossAttentionPatch(source, inner)
                    comfy.model_patcher.set_model_options_patch_replace(
                        model_options, patch, "attn2", name, number, index
                    )
