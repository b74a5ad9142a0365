"""Files in the layout of the authors' code, with small widths and random numbers.

A state dict holds what theirs holds, by name; the pickled module is made of classes that have their names and exist
only while the file is written.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

UNITS = (3, 4, 14, 3)
PACKAGE = "ldm.models.psp_encoder"


def encoder_state(
    channels: Sequence[int] = (4, 4, 6, 8, 10), tokens: int = 2, width: int = 12, halvings: int = 3, seed: int = 0
) -> dict[str, Tensor]:
    """A state dict of the spatial encoder. channels: of the stem and of the four stages (the authors' 64, 64, 128,
    256, 512; width 1280; 6 halvings, that is masks of 256 px; 3 are for 32 px)."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def conv(name: str, outputs: int, inputs: int, size: int, bias: bool = False) -> None:
        spread = (inputs * size * size) ** -0.5
        state[f"{name}.weight"] = torch.randn(outputs, inputs, size, size, generator=generator) * spread
        if bias:
            state[f"{name}.bias"] = torch.randn(outputs, generator=generator) * 0.1

    def norm(name: str, count: int) -> None:
        state[f"{name}.weight"] = 1 + 0.1 * torch.randn(count, generator=generator)
        state[f"{name}.bias"] = 0.1 * torch.randn(count, generator=generator)
        state[f"{name}.running_mean"] = 0.1 * torch.randn(count, generator=generator)
        state[f"{name}.running_var"] = 0.5 + torch.rand(count, generator=generator)
        state[f"{name}.num_batches_tracked"] = torch.tensor(300000)

    def slopes(name: str, count: int) -> None:
        state[f"{name}.weight"] = torch.full((count,), 0.25)

    conv("input_layer.0", channels[0], 3, 3)
    norm("input_layer.1", channels[0])
    slopes("input_layer.2", channels[0])
    number, inputs = 0, channels[0]
    for outputs, count in zip(channels[1:], UNITS, strict=True):
        for _ in range(count):
            unit = f"body.{number}"
            if inputs != outputs:
                conv(f"{unit}.shortcut_layer.0", outputs, inputs, 1)
                norm(f"{unit}.shortcut_layer.1", outputs)
            norm(f"{unit}.res_layer.0", inputs)
            conv(f"{unit}.res_layer.1", outputs, inputs, 3)
            slopes(f"{unit}.res_layer.2", outputs)
            conv(f"{unit}.res_layer.3", outputs, outputs, 3)
            norm(f"{unit}.res_layer.4", outputs)
            number, inputs = number + 1, outputs
    for token in range(tokens):
        for place in range(halvings):
            conv(f"styles.{token}.convs.{2 * place}", width, width if place else channels[4], 3, bias=True)
        state[f"styles.{token}.linear.weight"] = torch.randn(width, width, generator=generator)
        state[f"styles.{token}.linear.bias"] = torch.randn(width, generator=generator)
    conv("latlayer1", channels[4], channels[3], 1, bias=True)
    conv("latlayer2", channels[4], channels[2], 1, bias=True)
    return state


def write_embeddings(
    path: Path, names: Sequence[str] = ("bottle+crack", "bottle+dent"), k: int = 3, width: int = 12, old: bool = False
) -> dict[str, Tensor]:
    """Write an ``embeddings.pt`` and return its rows by name. old: as torch before 1.12 pickled it, in its format."""
    generator = torch.Generator().manual_seed(len(names))
    rows = {name: torch.randn(k, width, generator=generator) for name in names}
    parameters = nn.ParameterDict({name: nn.Parameter(value) for name, value in rows.items()})
    if old:
        del parameters.__dict__["_keys"]
    content = {"string_to_token": {"*": torch.tensor(1008)}, "string_to_param": parameters}
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    return rows


def write_pickled_encoder(path: Path, state: dict[str, Tensor], old: bool = True) -> None:
    """Write the whole module instead of its state dict, with classes named as in the authors' code."""
    with _named_classes() as classes:
        root = classes["GradualStyleEncoder"]()
        for name, value in state.items():
            *parents, own = name.split(".")
            place: Any = root
            for depth, parent in enumerate(parents):
                if parent not in place._modules:
                    place.add_module(parent, classes[_class_of(parents[: depth + 1])]())
                place = place._modules[parent]
            if own in ("running_mean", "running_var", "num_batches_tracked"):
                place.register_buffer(own, value)
            else:
                place.register_parameter(own, nn.Parameter(value))
        torch.save(root, path, _use_new_zipfile_serialization=not old)


def _class_of(parents: Sequence[str]) -> str:
    if len(parents) == 2 and parents[0] in ("body", "styles"):
        return "bottleneck_IR" if parents[0] == "body" else "GradualStyleBlock"
    return "EqualLinear" if parents[-1] == "linear" else "Sequential"


@contextmanager
def _named_classes() -> Iterator[dict[str, type[nn.Module]]]:
    places = {
        "GradualStyleEncoder": "encoders.psp_encoders",
        "GradualStyleBlock": "encoders.psp_encoders",
        "bottleneck_IR": "encoders.helpers",
        "EqualLinear": "stylegan2.model",
    }
    classes: dict[str, type[nn.Module]] = {"Sequential": nn.Sequential}
    before = dict(sys.modules)
    try:
        for name, place in places.items():
            full = f"{PACKAGE}.{place}"
            for end in range(1, full.count(".") + 2):
                part = ".".join(full.split(".")[:end])
                sys.modules.setdefault(part, ModuleType(part))
            classes[name] = type(name, (nn.Module,), {"__module__": full})
            setattr(sys.modules[full], name, classes[name])
        yield classes
    finally:
        for name in set(sys.modules) - set(before):
            if name.startswith("ldm"):
                del sys.modules[name]
