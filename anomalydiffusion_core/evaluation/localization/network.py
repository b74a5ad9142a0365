"""The segmentation network of the evaluation: a U-Net in the layout of DRAEM's discriminative sub-network.

Zavrtanik et al., "DRAEM - A discriminatively trained reconstruction embedding for surface anomaly detection", ICCV
2021. Module names and order are those of the published network, so that weights of the AnomalyDiffusion authors
(`<object>.pckl`, width 64, 3 input and 2 output channels, written by their train-localization.py) load. A smaller
width makes it trainable on a CPU; stored weights tell their width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import BundleError, InputError
from ...weights import read_weights

MULTIPLE = 32
PRIOR = 0.01
"""Probability of a defect before anything is learned."""
FIRST = "encoder_segment.block1.0.weight"
MESSAGE_LENGTH = 300


class DiscriminativeSubNetwork(nn.Module):
    """[B,3,H,W] in [0,1] -> logits [B,2,H,W]; class 1 is defect.

    Six levels of `base_width` x 1, 2, 4, 8, 8, 8 channels. Sizes that are not a multiple of 32 are padded by
    replicating the border, and the output is cropped back.
    """

    def __init__(self, base_width: int = 64) -> None:
        super().__init__()
        self.base_width = base_width
        self.encoder_segment = _Encoder(base_width)
        self.decoder_segment = _Decoder(base_width)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, 2, H, W] for images [B, 3, H, W]."""
        height, width = images.shape[-2:]
        padding = (0, -width % MULTIPLE, 0, -height % MULTIPLE)
        padded = F.pad(images, padding, mode="replicate") if any(padding) else images
        logits: Tensor = self.decoder_segment(self.encoder_segment(padded))
        return logits[..., :height, :width]


def build_network(base_width: int, generator: torch.Generator) -> DiscriminativeSubNetwork:
    """A network with the authors' initialization, except for the last bias.

    Convolutions start at N(0, 0.02), norm scales at N(1, 0.02), biases at 0. The last bias makes the network start at
    a defect probability of `PRIOR`, as in the focal loss paper (Lin et al., ICCV 2017, section 4.1).
    Starting at one half, the many normal pixels first turn every feature of the last layer into evidence of a normal
    pixel; a defect is then where all of them are clipped to 0, and all its pixels get the same score.

    All numbers come from `generator`; the global random state is neither used nor changed.
    """
    with torch.device("meta"):
        network = DiscriminativeSubNetwork(base_width)
    network.to_empty(device="cpu")
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.normal_(0.0, 0.02, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.normal_(1.0, 0.02, generator=generator)
                module.bias.zero_()
                module.reset_running_stats()
        biases = dict(network.named_parameters())["decoder_segment.fin_out.0.bias"]
        biases[1:] = math.log(PRIOR / (1 - PRIOR))
    return network


def load_network(path: Path) -> DiscriminativeSubNetwork:
    """Build the network whose weights a file holds, in eval mode on the CPU, float32.

    Args:
        path: `.safetensors`, or what `torch.save` wrote of a state dict (any suffix, such as .pckl or .pt), either
            alone or below the key `state_dict`. Only tensors are read, never code. A leading `module.` of the names
            (multi-GPU training) is removed.

    Raises:
        InputError: no such file, no weights, other names or shapes than this network's, or non-finite values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"weights: {path} does not exist. Give a file such as bottle.pckl.")
    state = _plain_state(path, _read(path))
    unusable = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if unusable:
        raise InputError(f"weights: {path.name} has non-finite values in {unusable[0]}. Give other weights.")
    try:
        with torch.device("meta"):
            network = DiscriminativeSubNetwork(state[FIRST].shape[0])
        network.load_state_dict(state, assign=True)
    except (KeyError, IndexError, RuntimeError) as error:
        raise InputError(
            f"weights: {path.name} does not fit the discriminative sub-network with 3 input and 2 output channels "
            f"({' '.join(str(error).split())[:MESSAGE_LENGTH]}). Give weights of this network."
        ) from error
    return network.float().eval()


class _Encoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        channels = [3, width, width * 2, width * 4, width * 8, width * 8, width * 8]
        for level in range(1, 7):
            setattr(self, f"block{level}", _two_convolutions(channels[level - 1], channels[level]))

    def forward(self, images: Tensor) -> list[Tensor]:
        levels: list[Tensor] = []
        for level in range(1, 7):
            source = F.max_pool2d(levels[-1], 2) if levels else images
            levels.append(getattr(self, f"block{level}")(source))
        return levels


class _Decoder(nn.Module):
    # name of the stage, channels it comes from, channels it goes to (both times the width)
    STAGES = (("_b", 8, 8), ("1", 8, 4), ("2", 4, 2), ("3", 2, 1), ("4", 1, 1))
    SKIPS = (8, 8, 4, 2, 1)

    def __init__(self, width: int) -> None:
        super().__init__()
        for (name, source, target), skip in zip(self.STAGES, self.SKIPS, strict=True):
            up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            setattr(self, f"up{name}", nn.Sequential(up, *_convolution(width * source, width * target)))
            setattr(self, f"db{name}", _two_convolutions(width * (target + skip), width * target))
        self.fin_out = nn.Sequential(nn.Conv2d(width, 2, kernel_size=3, padding=1))

    def forward(self, levels: list[Tensor]) -> Tensor:
        features = levels[-1]
        for (name, _, _), skip in zip(self.STAGES, levels[-2::-1], strict=True):
            raised = getattr(self, f"up{name}")(features)
            features = getattr(self, f"db{name}")(torch.cat([raised, skip], dim=1))
        logits: Tensor = self.fin_out(features)
        return logits


def _convolution(source: int, target: int) -> list[nn.Module]:
    return [nn.Conv2d(source, target, kernel_size=3, padding=1), nn.BatchNorm2d(target), nn.ReLU(inplace=True)]


def _two_convolutions(source: int, target: int) -> nn.Sequential:
    return nn.Sequential(*_convolution(source, target), *_convolution(target, target))


def _read(path: Path) -> object:
    try:
        return read_weights(path)
    except BundleError as error:
        raise InputError(f"weights: {path.name} holds something other than plain tensors: {error}") from error


def _plain_state(path: Path, stored: object) -> dict[str, Tensor]:
    if isinstance(stored, Mapping) and isinstance(stored.get("state_dict"), Mapping):
        stored = stored["state_dict"]
    if not isinstance(stored, Mapping) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise InputError(f"weights: {path.name} is not a state dict. Give the file that holds the network's weights.")
    return {str(name).removeprefix("module."): value for name, value in stored.items()}
