"""Training a classifier of defect types as the authors do, but without looking at the test set.

Cross-entropy, Adam at 1e-4 whose rate drops to a fifth at 80 and at 90 percent, batches of 8, images in [0, 1] at
256 px without further normalization. The network of the last step is kept; theirs is the best epoch on the test set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InputError, TrainingError
from ...figures import to_bytes
from ..localization.tiles import tiles_of
from ..settings import ClassifierSettings
from ..training import adam, recalibrate
from .network import build_classifier


def train_classifier(
    images: Mapping[str, Tensor],
    settings: ClassifierSettings,
    on_step: Callable[[], None] = lambda: None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Train one network and return it in eval mode, on `device`; class i is the i-th name of `images`.

    Args:
        images: defect -> [N,3,s,s] in [0,1], s being the size of the settings, of two or more types with at least one
            image each. Each image is seen once before any is seen again.
        on_step: called after each step; an exception in it ends the training and passes on.

    The same arguments give the same weights on a CPU.

    Raises:
        InputError: fewer than two types.
        TrainingError: the loss is not finite; names the step.
    """
    if len(images) < 2:
        raise InputError(
            f"types: {', '.join(images) or 'none'}. Classification requires at least two defect types (the paper "
            "leaves out the object that has one)."
        )
    with torch.inference_mode(False), torch.enable_grad():
        # bytes take a quarter of the memory, and thousands of images are usual here
        pixels = torch.cat([torch.from_numpy(to_bytes(part)) for part in images.values()])
        labels = torch.cat([torch.full((len(part),), place) for place, part in enumerate(images.values())])
        generator = torch.Generator().manual_seed(settings.seed)
        network = build_classifier(settings.architecture, len(images), settings.width, settings.seed, settings.weights)
        # not channels_last: in narrow networks its backward pass on a CPU writes beyond its memory (torch 2.14)
        network = network.to(device).train()
        optimizer, schedule = adam(network, settings.learning_rate, settings.steps)
        order = _Order(len(pixels), generator)
        for step in range(1, settings.steps + 1):
            chosen = order.take(settings.batch_size)
            logits = network(_batch(pixels[chosen], settings, generator, device))
            loss = F.cross_entropy(logits.float(), labels[chosen].to(device))
            if not torch.isfinite(loss.detach()):
                raise TrainingError(f"classification: loss {float(loss)} at step {step}. Lower the learning rate.")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            on_step()
        recalibrate(network, lambda: _batch(pixels[order.take(settings.batch_size)], settings, generator, device))
    return network.eval()


def predict(network: nn.Module, images: Tensor, batch: int = 16) -> Tensor:
    """The class of each image [N,3,s,s] in [0,1], as integers [N] on the CPU."""
    device = next(network.parameters()).device
    with torch.no_grad():
        parts = [network(part.to(device)).argmax(dim=1).cpu() for part in images.float().split(batch)]
    return torch.cat(parts)


def predict_tiled(network: nn.Module, image: Tensor, settings: ClassifierSettings, batch: int = 16) -> int:
    """The class of an image [3,H,W] in [0,1] by its overlapping tiles: that of which any tile is surest.

    The last class of the network is "no defect" and is never the answer: most tiles of a large image show none.
    """
    device = next(network.parameters()).device
    best: Tensor | None = None
    with torch.no_grad():
        for _, tiles in tiles_of(image.float(), settings, batch):
            shares = F.softmax(network(tiles.to(device)).float(), dim=1)[:, :-1].amax(dim=0).cpu()
            best = shares if best is None else torch.maximum(best, shares)
    assert best is not None  # an image has at least one tile
    return int(best.argmax())


class _Order:
    """Indices of images, shuffled again for each pass over all of them."""

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
