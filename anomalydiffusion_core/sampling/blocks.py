"""Blocks of samples: the unit that a generation hands out, to this process or to many.

A block depends on nothing but its numbers, so that it is the same wherever it is made; whoever hands blocks out writes
their results alone, in their order, so that a folder is the same however many made it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .run import Blended


@dataclass(frozen=True)
class Block:
    """Samples ``start``, ``start + 1``, ... of a type: normal images by their files, masks [n, 1, H, W] of {0, 1}."""

    key: str
    start: int
    paths: tuple[Path, ...]
    masks: Tensor


MakeBlock = Callable[[Block], Blended]
Blocks = Callable[[Iterator[Block]], Iterator[Blended]]
"""Makes blocks and gives their results in the same order, each as soon as it and all before it are there."""


def pack_block(block: Block) -> dict[str, Any]:
    """Plain values that another process can be sent."""
    from safetensors.torch import save

    plain = {"key": block.key, "start": block.start, "paths": [str(path.absolute()) for path in block.paths]}
    return {"plan": json.dumps(plain), "masks": zlib.compress(save({"masks": block.masks.bool().contiguous()}), 1)}


def unpack_block(packed: dict[str, Any]) -> Block:
    """The inverse of ``pack_block``."""
    from safetensors.torch import load

    plain = json.loads(packed["plan"])
    paths = tuple(Path(path) for path in plain["paths"])
    return Block(plain["key"], plain["start"], paths, load(zlib.decompress(packed["masks"]))["masks"].float())


def pack_result(made: Blended) -> bytes:
    """Images, masks and records of a block in one piece; its latents are left out."""
    from safetensors.torch import save

    text = json.dumps({"records": made.records, "notices": made.notices, "min_effect": made.min_effect})
    tensors = {"images": made.images.contiguous(), "masks": made.masks.contiguous()}
    return save(tensors, metadata={"made": text})


def unpack_result(packed: bytes) -> Blended:
    """The inverse of ``pack_result``."""
    from safetensors.torch import load

    size = int.from_bytes(packed[:8], "little")
    plain = json.loads(json.loads(packed[8 : 8 + size])["__metadata__"]["made"])
    tensors = load(packed)
    return Blended(
        tensors["images"], tensors["masks"], torch.empty(0), plain["records"], plain["notices"], plain["min_effect"]
    )
