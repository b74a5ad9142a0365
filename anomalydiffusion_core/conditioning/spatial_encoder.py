"""The spatial encoder E: a mask to ``n`` conditioning tokens (paper, section 3.2).

Two variants with one interface. ``resnet50_fpn`` follows the paper: ResNet-50, a feature pyramid, one small fully
connected head per token. ``light`` is a short convolutional net for machines without a GPU. Both normalise within one
sample only (GroupNorm), so the tokens of a mask never depend on its batch mates. ``none`` gives no tokens at all: it
is textual inversion alone, as in the ablation of Table 6.

``resnet50_fpn`` can start from ImageNet weights (:func:`load_backbone`). Those come with the statistics of batch
normalisation, which are then kept frozen in place of GroupNorm: the variant ``resnet50_fpn_imagenet``.

The last layer of each head starts near a given row (the mean of the initial context) and has its weights scaled at run
time by 1 / sqrt(inputs): one learning rate then suits the embeddings and the encoder alike.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BundleError, InputError
from ..weights import read_state

NO_ENCODER = "none"
VARIANTS = ("light", "resnet50_fpn", NO_ENCODER)
PRETRAINED = "resnet50_fpn_imagenet"
"""What ``resnet50_fpn`` becomes with ImageNet weights; never built without them but to be filled from a bundle."""
_GRID = 4


class _ScaledConv(nn.Conv2d):
    """A 3x3 convolution with unit-normal weights scaled by 1 / sqrt(fan in) at run time."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, 3, stride=stride, padding=1)
        self.gain = math.sqrt(2 / (inputs * 9))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.gain, self.bias, self.stride, self.padding)


class _ScaledLinear(nn.Linear):
    """A linear layer with unit-normal weights scaled by ``gain`` / sqrt(inputs) at run time."""

    def __init__(self, inputs: int, outputs: int, gain: float = 1.0) -> None:
        self.gain = gain / math.sqrt(inputs)
        super().__init__(inputs, outputs)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.gain, self.bias)


class _Head(nn.Module):
    """One fully connected net per token: features to a row near ``start``."""

    def __init__(self, inputs: int, hidden: int, width: int) -> None:
        super().__init__()
        self.hidden = _ScaledLinear(inputs, hidden, gain=math.sqrt(2))
        self.out = _ScaledLinear(hidden, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.out(F.silu(self.hidden(features)))

    def start_near(self, row: Tensor, spread: float) -> None:
        self.out.bias.copy_(row)
        self.out.weight.mul_(spread)


class _LightTrunk(nn.Module):
    """Coverage and touch of the mask on a 64 x 64 grid with coordinates, four strided convolutions, a 4 x 4 grid."""

    side = 64
    channels = (32, 64, 96, 128)

    def __init__(self) -> None:
        super().__init__()
        sizes = (4, *self.channels)
        self.convs = nn.ModuleList(_ScaledConv(a, b, stride=2) for a, b in zip(sizes, sizes[1:], strict=False))
        self.norms = nn.ModuleList(nn.GroupNorm(8, c) for c in self.channels)
        self.trunk = _ScaledLinear(self.channels[-1] * _GRID * _GRID, 64, gain=math.sqrt(2))
        self.outputs = 64

    def forward(self, mask: Tensor) -> Tensor:
        coverage = F.adaptive_avg_pool2d(mask, self.side)
        touched = F.adaptive_max_pool2d(mask, self.side)
        line = torch.linspace(-1, 1, self.side, device=mask.device, dtype=mask.dtype)
        y, x = torch.meshgrid(line, line, indexing="ij")
        # Coordinates only where the mask is: their sums are the position, and an empty area says nothing.
        hidden = torch.cat([coverage, touched, coverage * x, coverage * y], dim=1)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden = F.silu(norm(conv(hidden)))
        return F.silu(self.trunk(hidden.flatten(1)))


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(32, channels)


class _ResNetTrunk(nn.Module):
    """torchvision's ResNet-50 and FeaturePyramidNetwork; each pyramid level on a 4 x 4 grid."""

    levels = ("layer1", "layer2", "layer3", "layer4")
    pyramid_channels = 64

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        from torchvision.models import resnet50
        from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d

        norm = FrozenBatchNorm2d if frozen else _group_norm
        self.body = resnet50(weights=None, norm_layer=norm)
        self.body.fc = nn.Identity()
        self.pyramid = FeaturePyramidNetwork([256, 512, 1024, 2048], self.pyramid_channels)
        self.norm = nn.GroupNorm(8, self.pyramid_channels)
        self.outputs = len(self.levels) * self.pyramid_channels * _GRID * _GRID

    def forward(self, mask: Tensor) -> Tensor:
        hidden = (mask * 2 - 1).expand(-1, 3, -1, -1)
        hidden = self.body.maxpool(self.body.relu(self.body.bn1(self.body.conv1(hidden))))
        features = {}
        for name in self.levels:
            hidden = getattr(self.body, name)(hidden)
            features[name] = hidden
        fused = self.pyramid(features)
        return torch.cat([F.adaptive_avg_pool2d(self.norm(x), _GRID).flatten(1) for x in fused.values()], dim=1)


class SpatialEncoder(nn.Module):
    """Mask float [B, 1, H, W] of {0, 1} to spatial tokens e_s float [B, tokens, width]."""

    looks_at_batch = False
    """The tokens of a mask never depend on the other masks of the batch."""

    def __init__(self, variant: str, tokens: int, width: int) -> None:
        super().__init__()
        if variant not in (*VARIANTS, PRETRAINED):
            raise InputError(f"encoder: unknown variant {variant!r}. Choose one of {', '.join(VARIANTS)}.")
        if variant == NO_ENCODER:
            tokens = 0
        elif tokens < 1 or width < 1:
            raise InputError(f"encoder: {tokens} tokens of width {width} are not possible. Give at least 1 of each.")
        self.variant, self.tokens, self.width = variant, tokens, width
        if variant == NO_ENCODER:
            self.place = nn.Parameter(torch.zeros(0))  # nothing to learn, but callers ask where the encoder is
            return
        self.trunk: nn.Module = _LightTrunk() if variant == "light" else _ResNetTrunk(frozen=variant == PRETRAINED)
        inputs = self.trunk.outputs
        hidden = 64 if variant == "light" else 256
        self.heads = nn.ModuleList(_Head(int(inputs), hidden, width) for _ in range(tokens))

    def forward(self, mask: Tensor) -> Tensor:
        """Masks [B, 1, H, W] of {0, 1} to tokens [B, n, width]; [B, 0, width] without an encoder."""
        if self.variant == NO_ENCODER:
            return self.place.new_zeros(len(mask), 0, self.width)
        features = self.trunk(mask)
        return torch.stack([head(features) for head in self.heads], dim=1)

    @torch.no_grad()
    def start_near(self, rows: Tensor, spread: float) -> None:
        """Make the freshly built encoder's output ``rows`` [tokens, width] plus a part of about ``spread``."""
        if self.variant == NO_ENCODER:
            return
        for head, row in zip(self.heads, rows, strict=True):
            assert isinstance(head, _Head)
            head.start_near(row, spread)


def build_spatial_encoder(variant: str, tokens: int, width: int, seed: int = 0) -> SpatialEncoder:
    """A freshly initialised encoder, the same for the same ``seed``; leaves the global random state as it was.

    Raises InputError for an unknown variant or impossible sizes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SpatialEncoder(variant, tokens, width)


def load_backbone(path: Path) -> dict[str, Tensor]:
    """Read ImageNet weights of torchvision's ResNet-50 from a local file, ``.pth`` or ``.safetensors``.

    Nothing but tensors is loaded. Raises InputError for another file, naming the first weight that does not fit.
    """
    from torchvision.models import resnet50

    path = Path(path)
    try:
        state = read_state(path)
    except BundleError as error:
        raise InputError(f"encoder weights: {error}") from error
    with torch.device("meta"):
        expected = {name: tuple(x.shape) for name, x in resnet50(weights=None).state_dict().items()}
    wanted = {name: shape for name, shape in expected.items() if not name.startswith("fc.") and shape}
    for name, shape in wanted.items():
        found = tuple(state[name].shape) if name in state else None
        if found != shape:
            raise InputError(
                f"encoder weights: {path.name} has {name} of shape {found}, that of ResNet-50 is {shape}. Use "
                "torchvision's resnet50 file, for example resnet50-11ad3fa6.pth."
            )
    return {name: state[name].detach().float().clone() for name in wanted}


def start_from_backbone(encoder: SpatialEncoder, backbone: dict[str, Tensor]) -> None:
    """Put weights of ``load_backbone`` into an encoder of the variant PRETRAINED."""
    if encoder.variant != PRETRAINED or not isinstance(encoder.trunk, _ResNetTrunk):
        raise InputError(f"encoder weights: they are for resnet50_fpn, the encoder is {encoder.variant}. Choose it.")
    with torch.no_grad():
        encoder.trunk.body.load_state_dict(backbone)
