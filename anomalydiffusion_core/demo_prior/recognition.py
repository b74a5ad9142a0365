"""Are generated defects what they should be: recognised by a classifier, of one colour, as thick, and all of the mask.

The classifier only ever sees renders, so it is a judge that the prior had no part in. The same rules are applied to
renders, which show how far each can be trusted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..evaluation.classification.network import build_classifier
from ..evaluation.settings import ARCHITECTURES
from ..evaluation.training import recalibrate
from ..figures import detail
from ..lazy_imports import imported
from ..masks.shape import mask_shapes
from ..sampling.effect import FILL_THRESHOLD
from .obedience import with_extent
from .renderers import Renderer

SIDE, CONTEXT = 64, 1.6
"""Side of the windows that the classifier sees, and their extent over that of the mask."""
TRAINED_ON = 2000
WIDTH, BATCH, PASSES, RATE = 16, 32, 12, 2e-3
COLOUR_CELL, COLOUR_SHARE = 25.0, 0.1
"""Side of a cell of CIE Lab, and the share of a defect's pixels in it, from which it counts as a colour."""


@dataclass(frozen=True)
class Defects:
    """Images [N, 3, H, W] with a defect, their normal images (as the autoencoder returns them) and masks."""

    images: Tensor
    normals: Tensor
    masks: Tensor

    @property
    def visible(self) -> Tensor:
        """The mask pixels that changed, [N, 1, H, W] of {0, 1}."""
        change = (self.images - self.normals).abs().mean(1, keepdim=True) * 255
        return ((change > FILL_THRESHOLD) & (self.masks > 0)).float()


@dataclass(frozen=True)
class Look:
    """Medians over samples. fill: share of the mask that changed. thickness: of what changed, in pixels.

    colours: how many colours a defect has, the mean.
    """

    fill: float
    thickness: float
    colours: float


def look(defects: Defects) -> Look:
    """Measure defects; samples of which nothing changed have fill 0 and no thickness or colour."""
    visible = defects.visible
    fill = visible.flatten(1).sum(1) / defects.masks.flatten(1).sum(1)
    seen = [place for place, share in enumerate(fill.tolist()) if share > 0]
    if not seen:
        return Look(0.0, 0.0, 0.0)
    side = max(visible.shape[-2:])
    thickness = [side * value for value in mask_shapes(visible[seen]).thickness]
    colours = [colour_count(defects.images[place], visible[place]) for place in seen]
    return Look(float(fill.median()), float(np.median(thickness)), float(np.mean(colours)))


def colour_count(image: Tensor, mask: Tensor) -> int:
    """How many colours the pixels of an image [3, H, W] inside its mask [1, H, W] have, at least 1.

    Colours are counted in cells of CIE Lab around the most frequent one; neighbouring cells are one colour, as the
    shades of a lit defect are.
    """
    from scipy import ndimage

    values = imported("skimage.color", "rgb2lab")(image[:, mask[0] > 0].T.numpy()[None])[0]
    cells = np.floor(values / COLOUR_CELL).astype(int)
    cells -= cells.min(axis=0)
    counts = np.zeros(cells.max(axis=0) + 1)
    np.add.at(counts, tuple(cells.T), 1)
    return max(int(ndimage.label(counts >= COLOUR_SHARE * len(cells), np.ones((3, 3, 3)))[1]), 1)


class Recogniser:
    """A small ResNet that names the defect in a window around a mask."""

    def __init__(self, names: Sequence[str], seed: int = 0) -> None:
        self.names, self._seed = tuple(names), seed
        self.network: nn.Module = build_classifier(ARCHITECTURES[1], len(self.names), WIDTH, seed)

    def train(self, windows: Tensor, labels: Tensor, passes: int = PASSES) -> None:
        """Train on windows [N, 3, SIDE, SIDE] with labels [N], mirrored and turned at random."""
        generator = torch.Generator().manual_seed(self._seed)
        steps = passes * (len(windows) // BATCH)
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=RATE, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=max(steps, 2))
        self.network.train()
        for _ in range(passes):
            order = torch.randperm(len(windows), generator=generator)
            for part in order[: len(order) // BATCH * BATCH].view(-1, BATCH):
                turns = int(torch.randint(4, (), generator=generator))
                batch = torch.rot90(windows[part], turns, (2, 3))
                if torch.rand((), generator=generator) < 0.5:
                    batch = batch.flip(3)
                loss = F.cross_entropy(self.network(batch - 0.5), labels[part])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        recalibrate(self.network, lambda: windows[torch.randint(len(windows), (BATCH,), generator=generator)] - 0.5)
        self.network.eval()

    @torch.no_grad()
    def recognised(self, images: Tensor, masks: Tensor, name: str) -> float:
        """Share of images [N, 3, H, W] in whose mask the defect ``name`` is seen."""
        windows = torch.stack([window(image, mask) for image, mask in zip(images, masks, strict=True)])
        return float((self.network(windows - 0.5).argmax(1) == self.names.index(name)).float().mean())


def window(image: Tensor, mask: Tensor) -> Tensor:
    """What the classifier sees of an image [3, H, W] with a mask [1, H, W]: [3, SIDE, SIDE]."""
    part = detail(image, mask, CONTEXT, 32)[None]
    return F.interpolate(part, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)[0]


def recogniser_of(
    renderer: Renderer, rng: np.random.Generator, bank: Any, size: int, count: int = TRAINED_ON
) -> Recogniser:
    """A classifier of the renderer's defects, trained on ``count`` renders of ``size`` pixels a side."""
    words = [word.partition(":")[2] for word in renderer.words if word.startswith("defect:")]
    names = [name for name in words if name != "good"]
    windows, labels = [], []
    for image, mask, name in _renders(renderer, rng, bank, size, count):
        windows.append(window(image, mask))
        labels.append(names.index(name))
    recogniser = Recogniser(names)
    recogniser.train(torch.stack(windows), torch.tensor(labels))
    return recogniser


def _renders(
    renderer: Renderer, rng: np.random.Generator, bank: Any, size: int, count: int
) -> Iterable[tuple[Tensor, Tensor, str]]:
    """Defects of all kinds alike; those that pretraining held out are among them, since the judge must know them."""
    left = count
    while left:
        caption = renderer.sample(rng, 0.0)
        if rng.random() < 0.25:
            caption = with_extent(renderer.checked[int(rng.integers(len(renderer.checked)))], rng)
        if caption.defect == "good":
            continue
        scene = renderer.render(rng, bank, caption, size)
        yield _image(scene.image), torch.from_numpy(scene.mask)[None].float(), caption.defect
        left -= 1


def _image(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)
