"""Low-rank adaptation (Hu et al. 2022) of a frozen network: trained beside it, stored as an ordinary LoRA file.

Nothing of the network is changed: while it is attached, a hook adds ``up(down(x))`` to what each layer returns. A
program that loads the file adds the same thing to the weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bundles.bundle import write_new
from ..errors import InputError
from ..identity import Identified, lora_fingerprint
from ..plain_json import finite_values
from ..store import METADATA_KEY, stored_metadata
from ..weights import check_finite, read_safetensors

PREFIX = "lora_unet_"
"""Begin of all names in a LoRA file of a U-Net, as the common trainers write them."""


class LowRankPair(nn.Module):
    """``up @ down`` for one linear or convolutional layer; zero at first. down has the layer's own window."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        outputs, *inputs = layer.weight.shape
        bound = torch.Size(inputs).numel() ** -0.5
        self.down = nn.Parameter((torch.rand(rank, *inputs, generator=generator) * 2 - 1) * bound)
        self.up = nn.Parameter(torch.zeros(outputs, rank, *([1, 1] if len(inputs) == 3 else [])))

    def forward(self, layer: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
        """What is added to the layer's result for the input ``x``."""
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        if isinstance(layer, nn.Conv2d):
            hidden = F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)
            return F.conv2d(hidden, up)
        return F.linear(F.linear(x, down), up)


class Lora(nn.Module):
    """Low-rank pairs for every linear layer and every ungrouped convolution of ``network``, by name.

    Raises InputError for a rank below 1 and for a network without such layers.
    """

    def __init__(self, network: nn.Module, rank: int, seed: int = 0) -> None:
        super().__init__()
        if rank < 1:
            raise InputError(f"rank: {rank} is not possible. Give at least 1.")
        generator = torch.Generator().manual_seed(seed)
        layers = adaptable_layers(network)
        if not layers:
            raise InputError("model: it has no linear and no convolutional layer to adapt. Use another model.")
        self.rank, self.names = rank, tuple(layers)
        self.pairs = nn.ModuleList(LowRankPair(layer, rank, generator) for layer in layers.values())

    @contextmanager
    def attached(self, network: nn.Module) -> Iterator[None]:
        """Inside, ``network`` computes as if the pairs were part of its weights."""
        layers = adaptable_layers(network)
        handles = []
        try:
            for name, pair in zip(self.names, self.pairs, strict=True):
                handles.append(layers[name].register_forward_hook(_Addition(pair)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def file_tensors(self) -> dict[str, Tensor]:
        """Float32 copies on the CPU, named as in an ordinary LoRA file; alpha is the rank: a scale of 1."""
        tensors: dict[str, Tensor] = {}
        for name, pair in zip(self.names, self.pairs, strict=True):
            assert isinstance(pair, LowRankPair)
            key = PREFIX + name.replace(".", "_")
            tensors[f"{key}.lora_down.weight"] = _copy(pair.down)
            tensors[f"{key}.lora_up.weight"] = _copy(pair.up)
            tensors[f"{key}.alpha"] = torch.tensor(float(self.rank))
        return tensors


@dataclass
class LoraFile:
    """A LoRA file: tensors by name, and what is known about them in ``metadata``."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write it to a new file in one step. Raises BundleError when it exists or cannot be written."""
        write_new(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of the file; the same for the same LoRA."""
        from safetensors.torch import save

        text = json.dumps(finite_values(self.metadata), sort_keys=True, ensure_ascii=True)
        return bytes(save(dict(self.tensors), metadata={METADATA_KEY: text}))


def load_lora(path: Path) -> LoraFile:
    """Read a file of ``LoraFile.save``, or of another program, whose metadata are then empty.

    Raises BundleError that names the file, and the first tensor that is not finite.
    """
    tensors = read_safetensors(path)
    check_finite(path, tensors)
    return LoraFile(tensors, stored_metadata(path))


@contextmanager
def with_lora(network: nn.Module, tensors: Mapping[str, Tensor], scale: float = 1.0) -> Iterator[None]:
    """Inside, ``network`` computes with a LoRA merged into its weights; they are put back at the end.

    Raises InputError for layers that the network lacks.
    """
    layers = {PREFIX + name.replace(".", "_"): layer for name, layer in adaptable_layers(network).items()}
    wanted = [name.removesuffix(".lora_down.weight") for name in tensors if name.endswith(".lora_down.weight")]
    lost = sorted(set(wanted) - set(layers))
    if lost:
        raise InputError(
            f"lora: {len(lost)} of {len(wanted)} layers are not in the model, such as {lost[0]}. Use the model it was "
            "trained on."
        )
    before = {name: layers[name].weight.detach().clone() for name in wanted}
    with torch.no_grad():
        for name in wanted:
            down, up = (tensors[f"{name}.lora_{part}.weight"].float() for part in ("down", "up"))
            added = (up.flatten(1) @ down.flatten(1)).view(layers[name].weight.shape)
            alpha = tensors.get(f"{name}.alpha")
            factor = scale * (float(alpha) / len(down) if alpha is not None else 1.0)
            layers[name].weight += (factor * added).to(layers[name].weight)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weight in before.items():
                layers[name].weight.copy_(weight)


@contextmanager
def adapted(denoiser: Adaptable, network: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """``with_lora`` on the ``network`` of a denoiser, which then says so when it is asked for its identity."""
    denoiser.fingerprint()  # of the weights as they are without it
    before = denoiser.applied
    with with_lora(network, tensors):
        denoiser.applied = lora_fingerprint(tensors)
        try:
            yield
        finally:
            denoiser.applied = before


class Adaptable(Identified, Protocol):
    """A denoiser that can be told what was added to its network."""

    applied: str


class _Addition:
    """A forward hook that adds a pair's part to what its layer returns."""

    def __init__(self, pair: nn.Module) -> None:
        self._pair = pair

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], result: Tensor) -> Tensor:
        added: Tensor = self._pair(layer, inputs[0])
        return result + added.to(result.dtype)


def adaptable_layers(network: nn.Module) -> Mapping[str, nn.Linear | nn.Conv2d]:
    """Linear layers and ungrouped convolutions of a network, by their dotted names."""
    return {
        name: part
        for name, part in network.named_modules()
        if isinstance(part, nn.Linear) or (isinstance(part, nn.Conv2d) and part.groups == 1)
    }


def _copy(value: Tensor) -> Tensor:
    return value.detach().float().cpu().contiguous().clone()
