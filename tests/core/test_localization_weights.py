"""Weights of the authors' segmentation network: their layout computes what it says, and their files load."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.evaluation.localization.network import build_network, load_network

pytestmark = pytest.mark.core


def _state(width: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """A state dict of a network that was used: its norm layers have statistics."""
    network = build_network(width, torch.Generator().manual_seed(seed)).train()
    with torch.no_grad():
        network(torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(seed)))
    return network.state_dict()


def _by_hand(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """DRAEM's discriminative sub-network written down as a formula over the names of its state dict."""

    def unit(x: Tensor, stage: str, first: int) -> Tensor:
        x = F.conv2d(x, state[f"{stage}.{first}.weight"], state[f"{stage}.{first}.bias"], padding=1)
        norm = f"{stage}.{first + 1}"
        mean, var = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        return F.relu(F.batch_norm(x, mean, var, state[f"{norm}.weight"], state[f"{norm}.bias"]))

    def block(x: Tensor, stage: str) -> Tensor:
        return unit(unit(x, stage, 0), stage, 3)

    levels = [block(images, "encoder_segment.block1")]
    for number in range(2, 7):
        levels.append(block(F.max_pool2d(levels[-1], 2), f"encoder_segment.block{number}"))
    x = levels[5]
    for name, skip in (("_b", 4), ("1", 3), ("2", 2), ("3", 1), ("4", 0)):
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        x = block(torch.cat([unit(x, f"decoder_segment.up{name}", 1), levels[skip]], 1), f"decoder_segment.db{name}")
    last = "decoder_segment.fin_out.0"
    return F.conv2d(x, state[f"{last}.weight"], state[f"{last}.bias"], padding=1)


@pytest.mark.parametrize("form", ["zip", "legacy", "nested", "multi-gpu", "safetensors", "half"])
def test_stored_weights_compute_what_the_published_layout_computes(tmp_path: Path, form: str) -> None:
    state = _state()
    stored: Any = {f"module.{name}": value for name, value in state.items()} if form == "multi-gpu" else state
    stored = {name: value.half() for name, value in state.items()} if form == "half" else stored
    path = tmp_path / ("net.safetensors" if form == "safetensors" else "bottle.pckl")
    if form == "safetensors":
        save_file(state, path)
    else:
        whole = {"state_dict": state} if form == "nested" else stored
        torch.save(whole, path, _use_new_zipfile_serialization=form != "legacy")
    network = load_network(path)
    assert not network.training and network.base_width == 2
    images = torch.rand(2, 3, 64, 32, generator=torch.Generator().manual_seed(5))
    expected = _by_hand({name: value.float() for name, value in (stored if form == "half" else state).items()}, images)
    with torch.no_grad():
        assert torch.allclose(network(images), expected, atol=1e-5)


def test_a_file_that_carries_code_is_refused_and_not_run(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    for number, write in enumerate((torch.save, lambda value, path: path.write_bytes(pickle.dumps(value)))):
        path = tmp_path / f"{number}.pckl"
        write({"encoder_segment.block1.0.weight": Hostile()}, path)
        with pytest.raises(InputError, match=r"plain tensors"):
            load_network(path)
    assert not (tmp_path / "ran").exists()


def test_weights_of_something_else_are_named(tmp_path: Path) -> None:
    state = _state()
    name = "decoder_segment.db2.0.weight"
    wide = {**state, "decoder_segment.fin_out.0.weight": torch.zeros(3, 2, 3, 3)}
    for stored, message in (
        ({"layer.weight": torch.zeros(1)}, "block1"),
        ({key: value for key, value in state.items() if key != name}, f"Missing .*{name}"),
        ({**state, "head.weight": torch.zeros(1)}, "Unexpected .*head.weight"),
        ({**state, name: state[name][:1]}, f"size mismatch for {name}"),
        ({**state, name: state[name] * float("nan")}, f"non-finite values in {name}"),
        ({**wide, "decoder_segment.fin_out.0.bias": torch.zeros(3)}, "3 input and 2 output channels .*fin_out"),
        ([torch.zeros(1)], "not a state dict"),
    ):
        torch.save(stored, tmp_path / "weights.pckl")
        with pytest.raises(InputError, match=message):
            load_network(tmp_path / "weights.pckl")
    with pytest.raises(InputError, match=r"none.pckl does not exist"):
        load_network(tmp_path / "none.pckl")
