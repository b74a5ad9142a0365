"""The text encoder of latent diffusion's text-to-image model: a plain transformer under the names of its release.

32 layers of width 1280 at full size: attention of 8 heads of 64, then a network of 4 times the width with GELU, each
behind its own normalisation, learned positions, and no mask: padding is seen and sees (Rombach et al., CVPR 2022;
diffusers calls it LDMBert). ComfyUI builds the same network out of its own layers, which manage memory and precision.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InputError
from ..weights import check_shapes, shapes_of

TEXT_ENCODER = "the layout of text2img-large's text encoder"
HEAD_WIDTH = 64
"""Width of an attention head in the original code, which no file records."""
_LAYER = re.compile(r"attn_layers\.layers\.(\d+)\.")


@dataclass(frozen=True)
class BertShape:
    """Widths and counts; depth: attention layers, each followed by a feed-forward one."""

    width: int = 1280
    depth: int = 32
    heads: int = 8
    words: int = 30522
    room: int = 77
    hidden: int = 5120
    head_width: int = HEAD_WIDTH

    @staticmethod
    def of(state: Mapping[str, Tensor]) -> BertShape:
        """The shape that the weights of a file have. Raises InputError for weights of something else."""
        try:
            words, width = state["token_emb.weight"].shape
            room = len(state["pos_emb.emb.weight"])
            inner = len(state["attn_layers.layers.0.1.to_q.weight"])
            hidden = len(state["attn_layers.layers.1.1.net.0.0.weight"])
        except KeyError as error:
            raise InputError(
                f"model: its text encoder lacks the weights {error}. Use another copy of text2img-large."
            ) from error
        if inner % HEAD_WIDTH:
            raise InputError(
                f"model: its text encoder has attention of width {inner}, a multiple of {HEAD_WIDTH} is required. Use "
                "another copy of text2img-large."
            )
        layers = 1 + max(int(match[1]) for name in state if (match := _LAYER.match(name)))
        return BertShape(width, layers // 2, inner // HEAD_WIDTH, words, room, hidden)


class _Attention(nn.Module):
    def __init__(self, shape: BertShape, layers: Any, **where: Any) -> None:
        super().__init__()
        self.heads, inner = shape.heads, shape.heads * shape.head_width
        for name in ("to_q", "to_k", "to_v"):
            setattr(self, name, layers.Linear(shape.width, inner, bias=False, **where))
        self.to_out = layers.Linear(inner, shape.width, **where)

    def forward(self, x: Tensor) -> Tensor:
        projections: tuple[nn.Module, ...] = (self.to_q, self.to_k, self.to_v)  # type: ignore[assignment]
        q, k, v = (project(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for project in projections)
        mixed: Tensor = functional.scaled_dot_product_attention(q, k, v)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, shape: BertShape, layers: Any, **where: Any) -> None:
        super().__init__()
        inner = nn.Sequential(layers.Linear(shape.width, shape.hidden, **where), nn.GELU())
        # The empty place is the dropout of the original.
        self.net = nn.Sequential(inner, nn.Identity(), layers.Linear(shape.hidden, shape.width, **where))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class LdmBert(nn.Module):
    """Embedded tokens [B, L, width] to a context of that shape.

    layers: where Linear, LayerNorm and Embedding come from, ``torch.nn`` or ComfyUI's operations.
    """

    def __init__(self, shape: BertShape = BertShape(), layers: Any = nn, **where: Any) -> None:
        super().__init__()
        self.shape = shape
        self.token_emb = layers.Embedding(shape.words, shape.width, **where)
        self.pos_emb = nn.Module()
        self.pos_emb.emb = layers.Embedding(shape.room, shape.width, **where)
        self.attn_layers = nn.Module()
        kinds: tuple[Callable[..., nn.Module], ...] = (_Attention, _FeedForward)
        self.attn_layers.layers = nn.ModuleList(
            nn.ModuleList([layers.LayerNorm(shape.width, **where), kind(shape, layers, **where)])
            for _ in range(shape.depth)
            for kind in kinds
        )
        self.norm = layers.LayerNorm(shape.width, **where)

    def embed(self, embedded: Tensor, last: int | None = None) -> Tensor:
        """The context of embedded tokens. last: stop behind this many attention layers, None for all of them."""
        table: Any = self.pos_emb.emb
        positions: Tensor = table.weight[: embedded.shape[1]]
        x = embedded + positions.to(embedded)
        for norm, layer in self._pairs(last):
            x = x + layer(norm(x))
        return self.norm(x)

    def _pairs(self, last: int | None) -> list[Any]:
        listed: Any = self.attn_layers.layers
        return list(listed)[: None if last is None else 2 * last]

    def get_input_embeddings(self) -> nn.Module:
        """The table of words, by the name that hosts call it."""
        return self.token_emb

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        """Ids [B, L] to ``last_hidden_state`` [B, L, width], as text encoders of transformers give it."""
        return SimpleNamespace(last_hidden_state=self.embed(self.token_emb(input_ids)))


def load_bert(path: Path, state: Mapping[str, Tensor], shape: BertShape | None = None) -> LdmBert:
    """The network with the weights of a file, in single precision. Raises BundleError for weights that do not fit."""
    with torch.device("meta"):
        network = LdmBert(shape or BertShape.of(state))
    own = {name: value.float() for name, value in state.items() if name in network.state_dict()}
    check_shapes(path, shapes_of(own), shapes_of(network.state_dict()), TEXT_ENCODER)
    network.load_state_dict(own, assign=True)
    return network.eval().requires_grad_(False)


_FOLDER_NAMES = {
    "model.embed_tokens": "token_emb",
    "model.embed_positions": "pos_emb.emb",
    "model.layer_norm": "norm",
}
_FOLDER_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_FOLDER_PARTS = {
    "self_attn_layer_norm": (0, "0"),
    "self_attn.q_proj": (0, "1.to_q"),
    "self_attn.k_proj": (0, "1.to_k"),
    "self_attn.v_proj": (0, "1.to_v"),
    "self_attn.out_proj": (0, "1.to_out"),
    "final_layer_norm": (1, "0"),
    "fc1": (1, "1.net.0.0"),
    "fc2": (1, "1.net.2"),
}


def original_bert_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of diffusers' LDMBertModel under the names of the original release; its unused logits are left out."""
    named: dict[str, Tensor] = {}
    for name, value in weights.items():
        module, _, kind = name.rpartition(".")
        if module in _FOLDER_NAMES:
            named[f"{_FOLDER_NAMES[module]}.{kind}"] = value
        elif (match := _FOLDER_LAYER.match(module)) and match[2] in _FOLDER_PARTS:
            second, place = _FOLDER_PARTS[match[2]]
            named[f"attn_layers.layers.{2 * int(match[1]) + second}.{place}.{kind}"] = value
    return named
