"""Autoencoder of the demo prior: trained narrow, stored in the published TAESD layout that ComfyUI loads natively.

A TAESD network is 64 channels wide everywhere. At full resolution that is far more than a demo needs, so training
uses fewer channels near the image and fewer blocks; unused channels and blocks of the stored file are zero, which
is exact: a block of zero weights is the identity on its non-negative input.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

TAESD_WIDTH = 64
TAESD_BLOCKS = (1, 3, 3, 3)


@dataclass(frozen=True)
class AutoencoderConfig:
    """Channels and residual blocks per level, from the image's resolution down to an eighth of it."""

    widths: tuple[int, int, int, int] = (16, 32, 64, 64)
    blocks: tuple[int, int, int, int] = (1, 1, 2, 3)
    latent_channels: int = 4

    def full(self) -> AutoencoderConfig:
        """The published network with as many latent channels."""
        return AutoencoderConfig((TAESD_WIDTH,) * 4, TAESD_BLOCKS, self.latent_channels)


WIDTHS = {
    16: AutoencoderConfig(),
    32: AutoencoderConfig((32, 48, 64, 64), (1, 2, 3, 3)),
    TAESD_WIDTH: AutoencoderConfig().full(),
}
"""What pretraining can give, by the channels at the image's resolution, the smallest first."""


class Block(nn.Module):
    """Three 3x3 convolutions with a skip: ReLU(conv(x) + x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, width, H, W] to features of the same shape."""
        return torch.relu(self.conv(x) + x)


class _Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Autoencoder(nn.Module):
    """Images [B, 3, H, W] in [0, 1] to latents [B, 4, H/8, W/8] of about unit deviation, and back."""

    def __init__(self, config: AutoencoderConfig = AutoencoderConfig()) -> None:
        super().__init__()
        self.config = config
        widths, blocks = config.widths, config.blocks
        encoder: list[nn.Module] = [_conv(3, widths[0]), *(Block(widths[0]) for _ in range(blocks[0]))]
        for level in range(1, 4):
            encoder.append(_conv(widths[level - 1], widths[level], stride=2, bias=False))
            encoder += [Block(widths[level]) for _ in range(blocks[level])]
        encoder.append(_conv(widths[3], config.latent_channels))
        decoder: list[nn.Module] = [_Clamp(), _conv(config.latent_channels, widths[3]), nn.ReLU()]
        for level in range(3, 0, -1):
            decoder += [Block(widths[level]) for _ in range(blocks[level])]
            decoder += [nn.Upsample(scale_factor=2), _conv(widths[level], widths[level - 1], bias=False)]
        decoder += [*(Block(widths[0]) for _ in range(blocks[0])), _conv(widths[0], 3)]
        self.taesd_encoder = nn.Sequential(*encoder)
        self.taesd_decoder = nn.Sequential(*decoder)
        self._initialise()

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to latents [B, 4, H/8, W/8]."""
        return self.taesd_encoder(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, 4, h, w] to images [B, 3, 8h, 8w], about [0, 1] but not clamped."""
        return self.taesd_decoder(latents)

    def _initialise(self) -> None:
        """Keep the signal's size from level to level, and start as a mere box filter of the colours.

        PyTorch's default shrinks the signal in a network without norms, and colours are then learned last.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Block):
                last = module.conv[4]
                assert isinstance(last, nn.Conv2d)
                with torch.no_grad():
                    last.weight.mul_(0.3)
                    last.weight[:3] = 0.0
        encoder = [m for m in self.taesd_encoder if isinstance(m, nn.Conv2d)]
        decoder = [m for m in self.taesd_decoder if isinstance(m, nn.Conv2d)]
        to_latent = torch.diag(torch.tensor(_LATENT_GAIN)) @ torch.tensor(_OPPONENT)
        to_colour = torch.linalg.inv(to_latent)
        middle = torch.tensor([_LATENT_MEAN] * 3)
        with torch.no_grad():
            _colour_rows(encoder[0], torch.eye(3), _DELTA)
            for down in encoder[1:-1]:
                _colour_rows(down, torch.eye(3), _BOX)
            _colour_rows(encoder[-1], to_latent, _DELTA, -to_latent @ middle)
            _colour_rows(decoder[0], to_colour, _DELTA, middle)
            for up in decoder[1:-1]:
                _colour_rows(up, torch.eye(3), _TENT)
            _colour_rows(decoder[-1], torch.eye(3), _DELTA)


# Brightness, red against green, blue against both; gains that give rendered images about unit deviation.
_OPPONENT = ((1 / 3, 1 / 3, 1 / 3), (1.0, -1.0, 0.0), (-0.5, -0.5, 1.0))
_LATENT_GAIN = (4.0, 5.0, 4.5)
_LATENT_MEAN = 0.42
_DELTA = ((0.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0))
_BOX = ((1 / 9,) * 3,) * 3
_TENT = ((1 / 16, 2 / 16, 1 / 16), (2 / 16, 4 / 16, 2 / 16), (1 / 16, 2 / 16, 1 / 16))


def _colour_rows(
    conv: nn.Conv2d, matrix: Tensor, kernel: tuple[tuple[float, ...], ...], bias: Tensor | None = None
) -> None:
    """Make the first three outputs of a convolution a 3x3 matrix of its first three inputs, filtered by `kernel`."""
    conv.weight[:3] = 0.0
    conv.weight[:3, :3] = matrix[:, :, None, None] * torch.tensor(kernel)[None, None]
    if bias is not None:
        assert conv.bias is not None
        conv.bias[:3] = bias


def widen(narrow: Autoencoder) -> dict[str, Tensor]:
    """State of the full-width TAESD network that computes exactly what `narrow` computes (keys without prefix)."""
    wide = Autoencoder(narrow.config.full())
    for parameter in wide.parameters():
        parameter.data.zero_()
    for source, target in _matching(narrow, wide):
        for name, value in source.state_dict().items():
            target.state_dict()[name][_corner(value)].copy_(value)
    return dict(wide.state_dict())


def narrow(wide: Autoencoder) -> Autoencoder:
    """The smallest network of `WIDTHS` that `wide` can have been made of by `widen`: the same numbers at less cost."""
    state = wide.state_dict()
    for config in WIDTHS.values():
        small = Autoencoder(replace(config, latent_channels=wide.config.latent_channels))
        for target, source in _matching(small, wide):
            for name, value in target.state_dict().items():
                value.copy_(source.state_dict()[name][_corner(value)])
        if all(torch.equal(value, state[name]) for name, value in widen(small).items()):
            break
    return small.eval().requires_grad_(False)


def _matching(narrow: Autoencoder, wide: Autoencoder) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Each module of the narrow network, and the one of the wide network in its place."""
    for part in ("taesd_encoder", "taesd_decoder"):
        target = getattr(wide, part)
        position = 0
        for module in getattr(narrow, part):
            while type(target[position]) is not type(module):
                position += 1
            yield module, target[position]
            position += 1


def _corner(value: Tensor) -> tuple[slice, ...]:
    return tuple(slice(0, length) for length in value.shape)


def _conv(inputs: int, outputs: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)
