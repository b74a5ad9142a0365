"""Training a classifier of defect types as the authors do, but never looking at the test set.

Cross-entropy, Adam at 1e-4 whose rate drops to a fifth at 80 and at 90 per cent, batches of 8, pictures in [0, 1] at
256 px without further normalisation. The network of the last step is kept; theirs is the best epoch on the test set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InputError, TrainingError
from ...figures import to_bytes
from .network import ARCHITECTURES, build_classifier

DECAY_AT = (0.8, 0.9)
DECAY = 0.2
RECALIBRATION_BATCHES = 16


@dataclass(frozen=True)
class ClassifierSettings:
    """How a classifier is trained.

    Attributes:
        architecture: "ResNet-34" (text and code of the paper) or "ResNet-18" (caption of its Table 4).
        size: edge of the square the pictures have, in pixels.
        width: channels of the first stage; 64 is the published network, 8 to 16 suit a CPU.
        steps, batch_size, learning_rate: Adam steps, pictures a step, initial rate.
        flips, rotations: mirror images and quarter turns; the authors use none.
        weights: file of pretrained weights, see `build_classifier`; None is random.
        seed: of the initial weights and of every draw.
    """

    architecture: str = "ResNet-34"
    size: int = 256
    width: int = 64
    steps: int = 1000
    batch_size: int = 8
    learning_rate: float = 1e-4
    flips: bool = False
    rotations: bool = False
    weights: Path | None = None
    seed: int = 0

    def check(self) -> None:
        """Raise InputError for a value that cannot work."""
        if self.architecture not in ARCHITECTURES:
            raise InputError(f"architecture: '{self.architecture}'. Use one of {', '.join(ARCHITECTURES)}.")
        for name, least in (("size", 32), ("width", 1), ("steps", 1), ("batch_size", 2)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: {getattr(self, name)}. Give at least {least}.")
        if not 0 < self.learning_rate < 1:
            raise InputError(f"learning_rate: {self.learning_rate}. Give a value between 0 and 1, such as 0.0001.")


@dataclass(frozen=True)
class ClassifierStep:
    """Progress after one step: `step` of `steps` (from 1), loss of its batch."""

    step: int
    steps: int
    loss: float


def train_classifier(
    pictures: Mapping[str, Tensor],
    settings: ClassifierSettings,
    on_step: Callable[[ClassifierStep], None] | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Train one network and return it in eval mode, on `device`; class i is the i-th name of `pictures`.

    Args:
        pictures: defect -> [N,3,s,s] in [0,1], s being the size of the settings; every one at least once, two or
            more. Each picture is seen once before any is seen again.
        on_step: called after each step; an exception in it ends the training and passes on.

    The same arguments give the same weights on a CPU.

    Raises:
        InputError: fewer than two types, one without pictures, a shape that does not fit, a bad setting.
        TrainingError: the loss is not finite; names the step.
    """
    settings.check()
    _check(pictures, settings.size)
    with torch.inference_mode(False), torch.enable_grad():
        # bytes take a quarter of the memory, and thousands of pictures are usual here
        images = torch.cat([torch.from_numpy(to_bytes(part)) for part in pictures.values()])
        labels = torch.cat([torch.full((len(part),), place) for place, part in enumerate(pictures.values())])
        generator = torch.Generator().manual_seed(settings.seed)
        network = build_classifier(
            settings.architecture, len(pictures), settings.width, settings.seed, settings.weights
        )
        # not channels_last: in narrow networks its backward pass on a CPU writes beyond its memory (torch 2.14)
        network = network.to(device).train()
        optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
        milestones = [max(1, round(part * settings.steps)) for part in DECAY_AT]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, DECAY)
        order = _Order(len(images), generator)
        for step in range(1, settings.steps + 1):
            chosen = order.take(settings.batch_size)
            logits = network(_batch(images[chosen], settings, generator, device))
            loss = F.cross_entropy(logits.float(), labels[chosen].to(device))
            value = float(loss.detach())
            if not torch.isfinite(loss.detach()):
                raise TrainingError(f"classification: loss {value} at step {step}. Lower the learning rate.")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            if on_step is not None:
                on_step(ClassifierStep(step, settings.steps, value))
        _recalibrate(network, images, order, settings, generator, device)
    return network.eval()


def predict(network: nn.Module, images: Tensor, batch: int = 16) -> Tensor:
    """The class of each picture [N,3,s,s] in [0,1], as [N] whole numbers on the CPU."""
    device = next(network.parameters()).device
    with torch.no_grad():
        parts = [network(part.to(device)).argmax(dim=1).cpu() for part in images.float().split(batch)]
    return torch.cat(parts)


class _Order:
    """Places of pictures, shuffled anew after each pass over all of them."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count = count
        self.generator = generator
        self.waiting = torch.empty(0, dtype=torch.long)

    def take(self, number: int) -> Tensor:
        while len(self.waiting) < number:
            self.waiting = torch.cat([self.waiting, torch.randperm(self.count, generator=self.generator)])
        taken, self.waiting = self.waiting[:number], self.waiting[number:]
        return taken


def _batch(
    pixels: Tensor, settings: ClassifierSettings, generator: torch.Generator, device: torch.device | str
) -> Tensor:
    images = pixels.float() / 255
    changed = []
    for image in images:
        draws = torch.randint(0, 2, (2,), generator=generator).tolist()
        turns = int(torch.randint(0, 4, (), generator=generator))
        if settings.flips:
            image = image.flip([axis for axis, draw in zip((1, 2), draws, strict=True) if draw])
        changed.append(torch.rot90(image, turns, (1, 2)) if settings.rotations else image)
    return torch.stack(changed).to(device)


def _check(pictures: Mapping[str, Tensor], size: int) -> None:
    if len(pictures) < 2:
        raise InputError(
            f"types: {', '.join(pictures) or 'none'}. Classification needs two or more defect types (the paper leaves "
            "out the object that has one)."
        )
    for name, part in pictures.items():
        if part.ndim != 4 or part.shape[1:] != (3, size, size) or not len(part):
            raise InputError(
                f"{name}: pictures of shape {tuple(part.shape)}. Give at least one as [N,3,{size},{size}]."
            )


def _recalibrate(
    network: nn.Module,
    images: Tensor,
    order: _Order,
    settings: ClassifierSettings,
    generator: torch.Generator,
    device: torch.device | str,
) -> None:
    """Take the statistics of the norm layers anew from the final weights; running averages lag in short trainings."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches that follow
    with torch.no_grad():
        for _ in range(RECALIBRATION_BATCHES):
            network(_batch(images[order.take(settings.batch_size)], settings, generator, device))
