"""Stored weights of the segmentation network, the authors' `<object>.pckl` among them.

Their training script writes the plain state dict of a network of width 64 with 3 input and 2 output channels
(train-localization.py); the width is read off the weights here, so that slimmer networks load as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...errors import InputError
from .network import DiscriminativeSubNetwork

FIRST = "encoder_segment.block1.0.weight"
LAST = "decoder_segment.fin_out.0.weight"
NAMES_SHOWN = 4


def load_network(path: Path) -> DiscriminativeSubNetwork:
    """Build the network whose weights a file holds, in eval mode on the CPU, float32.

    Args:
        path: `.safetensors`, or what `torch.save` wrote of a state dict (any suffix, such as .pckl or .pt), either
            alone or below the key `state_dict`. Only tensors are read, never code. A leading `module.` of the names
            (multi-GPU training) is dropped.

    Raises:
        InputError: no such file, no weights, other names or shapes than this network's, or non-finite values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"weights: {path} does not exist. Give a file such as bottle.pckl.")
    state = _plain_state(path, _read(path))
    missing = [name for name in (FIRST, LAST) if name not in state]
    if missing or state[FIRST].ndim != 4 or state[LAST].ndim != 4:
        raise InputError(
            f"weights: {path.name} lacks {missing or [FIRST]}. Give weights of the discriminative sub-network."
        )
    width, in_channels = state[FIRST].shape[:2]
    with torch.device("meta"):
        network = DiscriminativeSubNetwork(in_channels, state[LAST].shape[0], width)
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    _check(path, state, expected, in_channels, state[LAST].shape[0])
    network.to_empty(device="cpu")
    network.load_state_dict(state)
    return network.eval()


def _read(path: Path) -> object:
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file makes the readers raise almost anything
        first = str(error).strip().split("\n")[0]
        raise InputError(
            f"weights: {path.name} holds something other than plain tensors, or is damaged ({first}). Give a state "
            "dict that torch.save or safetensors wrote."
        ) from error


def _plain_state(path: Path, stored: object) -> dict[str, Tensor]:
    if isinstance(stored, Mapping) and isinstance(stored.get("state_dict"), Mapping):
        stored = stored["state_dict"]
    if not isinstance(stored, Mapping) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise InputError(f"weights: {path.name} is no state dict. Give the file that holds the network's weights.")
    return {str(name).removeprefix("module."): value for name, value in stored.items()}


def _check(
    path: Path, state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], inputs: int, outputs: int
) -> None:
    for problem, names in (
        ("lacks", [name for name in expected if name not in state]),
        ("also holds", [name for name in state if name not in expected]),
        ("has other shapes for", [n for n, shape in expected.items() if n in state and state[n].shape != shape]),
        ("has non-finite values in", [n for n, tensor in state.items() if not bool(torch.isfinite(tensor).all())]),
    ):
        if names:
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            listed = ", ".join(names[:NAMES_SHOWN]) + more
            raise InputError(f"weights: {path.name} {problem} {listed}. Give weights of the discriminative network.")
    if (inputs, outputs) != (3, 2):
        raise InputError(
            f"weights: {path.name} is made for {inputs} channels in and {outputs} out. The detector has 3 and 2."
        )
