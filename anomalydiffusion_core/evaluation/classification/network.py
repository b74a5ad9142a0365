"""ResNet-18 and ResNet-34 (He et al., CVPR 2016) from torchvision's blocks, in any width.

torchvision builds these two in one width only. At width 64 names and shapes of all weights are torchvision's, so its
files load.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

from ...errors import BundleError, InputError
from ...weights import read_state
from ..settings import ARCHITECTURES

BLOCKS = dict(zip(ARCHITECTURES, ((3, 4, 6, 3), (2, 2, 2, 2)), strict=True))
PUBLISHED_WIDTH = 64


def build_classifier(
    architecture: str, classes: int, width: int = PUBLISHED_WIDTH, seed: int = 0, weights: Path | None = None
) -> nn.Sequential:
    """Images [B, 3, H, W] to logits [B, classes].

    Args:
        architecture: one of `ARCHITECTURES`.
        width: channels of the first stage; 64 is the published network.
        seed: of the random initial weights.
        weights: a state dict in torchvision's names, such as its resnet34-b627a593.pth. Its last layer is skipped
            where it has another number of classes. None: all weights are random.

    Raises:
        InputError: a file that is missing or does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(BLOCKS[architecture], classes, width)
    if weights is not None:
        _load(network, weights, architecture, width)
    return network


def _network(counts: tuple[int, ...], classes: int, width: int) -> nn.Sequential:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv1"] = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
    parts["bn1"] = nn.BatchNorm2d(width)
    parts["relu"] = nn.ReLU(inplace=True)
    parts["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
    inside = width
    for level, count in enumerate(counts):
        outside = width * 2**level
        parts[f"layer{level + 1}"] = _stage(inside, outside, count, stride=1 if level == 0 else 2)
        inside = outside
    parts["avgpool"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["fc"] = nn.Linear(inside, classes)
    network = nn.Sequential(parts)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _stage(inside: int, outside: int, count: int, stride: int) -> nn.Sequential:
    from torchvision.models.resnet import BasicBlock

    shortcut = None
    if stride != 1 or inside != outside:
        shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
    first = BasicBlock(inside, outside, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(outside, outside) for _ in range(count - 1)))


def _load(network: nn.Module, path: Path, architecture: str, width: int) -> None:
    if not path.is_file():
        raise InputError(
            f"weights: {path} does not exist. Put torchvision's file of {architecture} there, or leave it empty for "
            "random weights."
        )
    try:
        stored = read_state(path)
    except BundleError as error:
        raise InputError(f"weights: {error}") from error
    own = network.state_dict()
    for name in ("fc.weight", "fc.bias"):
        if name not in stored or stored[name].shape != own[name].shape:
            stored[name] = own[name]
    try:
        network.load_state_dict(stored)
    except RuntimeError as error:
        raise InputError(
            f"weights: {path} does not fit {architecture} of width {width} ({' '.join(str(error).split())[:300]}). "
            "Choose the file of this architecture and width 64."
        ) from error
