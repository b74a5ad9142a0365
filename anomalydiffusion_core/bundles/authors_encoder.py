"""The spatial encoder in the layout of the authors' code: a face-recognition ResNet (IR-50) with a feature pyramid.

Other than the paper says, it is not torchvision's ResNet-50, and each "fully connected" head is a chain of strided
convolutions with one linear layer at the end. All heads read the finest level. Names of weights are those of the
authors' ``spatial_encoder.pt``; all widths are read from the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BundleError, InputError

AUTHORS_VARIANT = "authors_ir50"
RUNNING_STATISTICS, BATCH_STATISTICS = "running statistics", "batch statistics"
NORMALISATIONS = (RUNNING_STATISTICS, BATCH_STATISTICS)
"""Batch statistics are what the authors' generation uses (it never leaves training mode): the tokens of a mask then
depend on the masks beside it. Running statistics are what their previews in training use."""
_MOST_TOKENS, _LARGEST_RESOLUTION = 256, 2048
"""Limits of what a file may ask for; the authors' has 4 tokens and 256 px."""
_UNITS = (3, 4, 14, 3)
"""Residual units of the four stages. The pyramid takes what the second, third and fourth give."""


class _BatchNorm(nn.BatchNorm2d):
    """Normalises by what ``normalisation`` says, in any mode, and never changes the stored statistics."""

    normalisation = RUNNING_STATISTICS

    def forward(self, x: Tensor) -> Tensor:
        if self.normalisation == BATCH_STATISTICS:
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class _Unit(nn.Module):
    """A residual unit without an activation after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut_layer = nn.Sequential(conv, _BatchNorm(outputs))
        self.res_layer = nn.Sequential(
            _BatchNorm(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            _BatchNorm(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.res_layer(x) + self.shortcut_layer(x)
        return out


class _EqualLinear(nn.Linear):
    """Weights are divided by the root of the number of inputs at run time."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight / math.sqrt(self.in_features), self.bias)


class _Style(nn.Module):
    """One token: strided convolutions down to a single position, then a linear layer."""

    def __init__(self, inputs: int, width: int, halvings: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in [inputs, *[width] * (halvings - 1)]:
            layers += [nn.Conv2d(channels, width, 3, 2, 1), nn.LeakyReLU()]
        self.convs = nn.Sequential(*layers)
        self.linear = _EqualLinear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        token: Tensor = self.linear(self.convs(x).flatten(1))
        return token


@dataclass(frozen=True)
class AuthorsLayout:
    """Sizes of an encoder. channels: of the stem and the four stages; halvings: strided convolutions of a head.

    The authors': channels (64, 64, 128, 256, 512), 4 tokens of width 1280, 6 halvings.
    """

    channels: tuple[int, int, int, int, int]
    tokens: int
    width: int
    halvings: int

    @property
    def resolution(self) -> int:
        """Side in pixels of the masks it takes: the finest level is a quarter of it."""
        return 4 * 2**self.halvings

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> AuthorsLayout:
        """Read the sizes from the shapes of a state dict. Raises BundleError that names a missing weight."""
        firsts = [sum(_UNITS[:stage]) for stage in range(len(_UNITS))]
        names = ["input_layer.0.weight", *(f"body.{first}.res_layer.1.weight" for first in firsts)]
        stem, first, second, third, fourth = (_outputs(state, name) for name in names)
        styles = {name.split(".")[1] for name in state if name.startswith("styles.")}
        convs = [name for name in state if name.startswith("styles.0.convs.") and name.endswith(".weight")]
        width = _outputs(state, "styles.0.linear.weight")
        layout = cls((stem, first, second, third, fourth), len(styles), width, len(convs))
        if layout.tokens > _MOST_TOKENS or layout.resolution > _LARGEST_RESOLUTION:
            raise BundleError(
                f"spatial encoder: {layout.tokens} tokens and masks of {layout.resolution} px; up to {_MOST_TOKENS} "
                f"and {_LARGEST_RESOLUTION} px are read. Use another copy of the file."
            )
        return layout


def _outputs(state: Mapping[str, Tensor], name: str) -> int:
    if name not in state or state[name].ndim < 1:
        raise BundleError(f"spatial encoder: the weight '{name}' is missing. It is not in the authors' layout.")
    return int(state[name].shape[0])


class AuthorsEncoder(nn.Module):
    """Mask float [B, 1, R, R] of [0, 1] to spatial tokens float [B, tokens, width]; R is ``resolution`` (256).

    With batch statistics the result depends on the whole batch.
    """

    variant = AUTHORS_VARIANT

    def __init__(self, layout: AuthorsLayout, normalisation: str = RUNNING_STATISTICS) -> None:
        super().__init__()
        self.tokens, self.width, self.resolution = layout.tokens, layout.width, layout.resolution
        stem, *stages = layout.channels
        self.input_layer = nn.Sequential(nn.Conv2d(3, stem, 3, 1, 1, bias=False), _BatchNorm(stem), nn.PReLU(stem))
        units: list[nn.Module] = []
        for (inputs, outputs), count in zip(pairwise((stem, *stages)), _UNITS, strict=True):
            units += [_Unit(inputs, outputs, 2), *(_Unit(outputs, outputs, 1) for _ in range(count - 1))]
        self.body = nn.Sequential(*units)
        self.styles = nn.ModuleList(_Style(stages[3], self.width, layout.halvings) for _ in range(self.tokens))
        self.latlayer1 = nn.Conv2d(stages[2], stages[3], 1)
        self.latlayer2 = nn.Conv2d(stages[1], stages[3], 1)
        self.normalise_by(normalisation)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], normalisation: str = RUNNING_STATISTICS) -> AuthorsEncoder:
        """An encoder of the weights in a state dict, frozen, in single precision.

        Raises BundleError that names a weight that is missing, superfluous, of another shape, or not finite.
        """
        layout = AuthorsLayout.of(state)
        with torch.device("meta"):
            encoder = cls(layout, normalisation)
        expected = encoder.state_dict()
        for name in sorted(expected.keys() | state.keys()):
            wanted, given = (tuple(of[name].shape) if name in of else None for of in (expected, state))
            if wanted != given:
                raise BundleError(
                    f"spatial encoder: the weight '{name}' has the shape {given}, the authors' layout {wanted}. Use "
                    "another copy of the file."
                )
            if not bool(state[name].isfinite().all()):
                raise BundleError(f"spatial encoder: the weight '{name}' is not finite. Use another copy of the file.")
        own = {name: value.to(expected[name].dtype) for name, value in state.items()}
        encoder.load_state_dict(own, assign=True)
        return encoder.eval().requires_grad_(False)

    @property
    def normalisation(self) -> str:
        """One of NORMALISATIONS."""
        return self._normalisation

    @property
    def looks_at_batch(self) -> bool:
        """Whether the tokens of a mask depend on the other masks of the batch."""
        return self._normalisation == BATCH_STATISTICS

    def normalise_by(self, normalisation: str) -> None:
        """Choose the statistics. Raises InputError for an unknown choice."""
        if normalisation not in NORMALISATIONS:
            known = ", ".join(NORMALISATIONS)
            raise InputError(f"normalisation: unknown value {normalisation!r}. Choose one of {known}.")
        self._normalisation = normalisation
        for part in self.modules():
            if isinstance(part, _BatchNorm):
                part.normalisation = normalisation

    def forward(self, mask: Tensor) -> Tensor:
        """Masks [B, 1, R, R] of {0, 1} to tokens [B, n, width]. Raises InputError for another size."""
        if mask.shape[-2:] != (self.resolution, self.resolution):
            raise InputError(
                f"mask: is {mask.shape[-1]}x{mask.shape[-2]} px, this spatial encoder takes {self.resolution}x"
                f"{self.resolution} px. Resize it."
            )
        hidden = self.input_layer((mask * 2 - 1).expand(-1, 3, -1, -1))
        levels = []
        for number, unit in enumerate(self.body, start=1):
            hidden = unit(hidden)
            if number in (sum(_UNITS[:2]), sum(_UNITS[:3]), sum(_UNITS)):
                levels.append(hidden)
        fine, middle, coarse = levels
        fused = _upsample(_upsample(coarse, self.latlayer1(middle)), self.latlayer2(fine))
        return torch.stack([style(fused) for style in self.styles], dim=1)


def _upsample(coarse: Tensor, fine: Tensor) -> Tensor:
    return F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=True) + fine
