"""The pretrained networks behind Inception Score and LPIPS, from local files only, and named stand-ins.

A stand-in has random weights. Its numbers show that everything runs, and rank sets of images at best; they cannot be
compared with published ones, and everything that shows them says so.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...weights import read_state
from ..settings import STAND_IN

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
LPIPS_FILE = "vgg16-397923af.pth"
INCEPTION_STAND_IN = "stand-in (random convolutions, seed 0)"
LPIPS_STAND_IN = "stand-in (random AlexNet, seed 0)"
SOURCES = {
    INCEPTION_FILE: "release v0.2.0 of torch-fidelity",
    LPIPS_FILE: "torchvision's VGG-16",
}
# without it a random network gives almost the same classes for all images
STAND_IN_CONTRAST = 30.0

Step = Callable[[int], None]


@dataclass(frozen=True)
class Inception:
    """Bytes [N, 3, H, W] to class logits [N, C]. `name` stands beside every number."""

    name: str
    network: nn.Module

    def logits(self, images: Tensor) -> Tensor:
        """Logits without bias, as the original Inception Score takes them; images are uint8 of any size."""
        device = next(self.network.parameters()).device
        with torch.no_grad():
            found: Any = self.network(images.to(device))
        return (found[0] if isinstance(found, tuple) else found).float().cpu()


@dataclass(frozen=True)
class Perceptual:
    """LPIPS (Zhang et al., CVPR 2018, version 0.1) between sets of images, each seen by the trunk once per block."""

    name: str
    network: Any
    block: int = 8

    def features(self, images: Tensor) -> list[Tensor]:
        """Images [N, 3, s, s] in [0, 1], or bytes, to one [N, values] a layer; LPIPS is their squared distance."""
        device = next(self.network.parameters()).device
        with torch.no_grad():
            layers = self.network.net(self.network.scaling_layer(2 * as_floats(images).to(device) - 1))
            found = []
            for place, layer in enumerate(layers):
                unit = layer / (layer.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
                if self.network.lpips:
                    unit = unit * self.network.lins[place].model[-1].weight.clamp_min(0).sqrt()
                found.append(unit.flatten(1) / (layer.shape[2] * layer.shape[3]) ** 0.5)
        return found

    def distances(self, one: Tensor, two: Tensor, on_step: Step | None = None) -> Tensor:
        """LPIPS of every image of ``one`` [N, 3, s, s] with every one of ``two`` [M, 3, s, s], as [N, M].

        ``on_step`` is called with the number of images that went through the trunk.
        """
        columns = []
        for right in two.split(self.block):
            known = self.features(right)
            rows = []
            for left in one.split(self.block):
                rows.append(_squared(self.features(left), known).cpu())
                if on_step is not None:
                    on_step(len(left))
            columns.append(torch.cat(rows))
        return torch.cat(columns, dim=1)


def as_floats(images: Tensor) -> Tensor:
    """Bytes as float32 in [0, 1], floats unchanged; thousands of images fit into memory as bytes only."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def _squared(left: list[Tensor], right: list[Tensor]) -> Tensor:
    total = torch.zeros(len(left[0]), len(right[0]), device=left[0].device)
    for a, b in zip(left, right, strict=True):
        total += a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2 * a @ b.T
    return total.clamp_min(0)


def load_inception(trunk: str, weights: str | Path = "", device: torch.device | str = "cpu") -> Inception:
    """Inception v3 of the original score from a local file, through torch-fidelity; or the stand-in.

    Args:
        weights: the file, or a folder that holds it; empty searches torch's hub cache.

    Raises:
        InputError: the file does not exist (the message says what to put where), or is a different one.
    """
    if trunk == STAND_IN:
        return Inception(INCEPTION_STAND_IN, _random_convolutions().to(device))
    path = find_weights(weights, INCEPTION_FILE, "inception_weights")
    try:
        stored = read_state(path)
        # torch-fidelity reads its file with pickle: it gets one that holds nothing but these tensors
        safe = io.BytesIO()
        torch.save(stored, safe)
        safe.seek(0)
        from torch_fidelity import FeatureExtractorInceptionV3

        network = FeatureExtractorInceptionV3("local", ["logits_unbiased"], feature_extractor_weights_path=safe)
    except (RuntimeError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"inception_weights: {path} is not {INCEPTION_FILE} ({_short(error)}).") from error
    return Inception(path.name, network.to(device))


def load_perceptual(trunk: str, weights: str | Path = "", device: torch.device | str = "cpu") -> Perceptual:
    """LPIPS on VGG-16 (as the authors use it) with torchvision's weights from a local file; or the stand-in.

    Arguments and errors as in `load_inception`.
    """
    if trunk == STAND_IN:
        return Perceptual(LPIPS_STAND_IN, _lpips("alex", linear=False).to(device))
    path = find_weights(weights, LPIPS_FILE, "lpips_weights")
    network = _lpips("vgg", linear=True)
    try:
        stored = read_state(path)
        prefix = "features."
        layers = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
        # lpips keeps torchvision's layer numbers, spread over five slices
        own = {name: name.split(".", 1)[1] for name in network.net.state_dict()}
        network.net.load_state_dict({name: layers[number] for name, number in own.items()})
    except (RuntimeError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise InputError(f"lpips_weights: {path} is not {LPIPS_FILE} ({_short(error)}).") from error
    return Perceptual(path.name, network.to(device))


def find_weights(given: str | Path, file_name: str, label: str) -> Path:
    """The file at ``given``, or in that folder; when empty, the one in torch's hub cache."""
    text = str(given).strip()
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    path = Path(text).expanduser() if text else cache
    found = path / file_name if path.is_dir() or not text else path
    if not found.is_file():
        raise InputError(
            f"{label}: {found} does not exist. Put {file_name} ({SOURCES[file_name]}) there, give its path, or choose "
            f"the trunk {STAND_IN}, whose numbers cannot be compared with published ones."
        )
    return found


def _lpips(net: str, linear: bool) -> Any:
    import lpips

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), torch.inference_mode(False):
        warnings.simplefilter("ignore")  # lpips uses an argument name that torchvision has deprecated
        torch.manual_seed(0)
        return lpips.LPIPS(net=net, pnet_rand=True, lpips=linear, verbose=False).eval().requires_grad_(False)


def _random_convolutions() -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        torch.manual_seed(0)
        return _RandomConvolutions().eval().requires_grad_(False)


class _RandomConvolutions(nn.Module):
    """Bytes [N, 3, H, W] to 64 logits."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inside, outside in ((3, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(inside, outside, 3, stride=2, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(2048, 64))

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.layers(images.float() / 127.5 - 1)
        return STAND_IN_CONTRAST * found


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
