"""Testing a segmentation network on real defects it has not seen."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ...data.images import resize_image
from ...errors import InputError
from ..metrics import (
    EXACT_SAMPLES,
    PixelMetrics,
    StreamingPixelMetrics,
    auroc,
    average_precision,
    defined,
    f1_max,
    pixel_metrics,
)
from .network import DiscriminativeSubNetwork

IMAGE_SCORE_WINDOW = 21
IN_MEMORY_BYTES = 2**28
"""Score maps or masks of more than this lie in a temporary file, which the system may write out."""


@dataclass(frozen=True)
class LocalizationResult:
    """Metrics of one network on one test set, each 0..1, or NaN where the test set leaves it undefined."""

    pixel_auroc: float
    pixel_ap: float
    pixel_f1: float
    pixel_pro: float
    image_auroc: float
    image_ap: float
    image_f1: float

    def as_dict(self) -> dict[str, float | None]:
        """Names and values, None for undefined (JSON has no NaN)."""
        return {name: defined(value) for name, value in asdict(self).items()}


METRICS = tuple(field.name for field in fields(LocalizationResult))


def score_pictures(model: DiscriminativeSubNetwork, images: Tensor, size: int | None = None, batch: int = 8) -> Tensor:
    """Defect probability of every pixel, [N,H,W] float32 on the CPU, for pictures [N,3,H,W] in [0,1].

    With `size` the pictures are resized to that square for the network and the maps back to H x W, bilinearly.
    """
    if images.ndim != 4 or images.shape[1] != model.in_channels or not len(images):
        raise InputError(f"test pictures: shape {tuple(images.shape)}. Give at least one as [N,3,H,W].")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    maps = []
    with torch.no_grad():
        for start in range(0, len(images), batch):
            part = images[start : start + batch].float()
            seen = resize_image(part, size) if size else part
            seen = seen.to(device).contiguous(memory_format=torch.channels_last)
            scores = F.softmax(model(seen).float(), dim=1)[:, 1:2].cpu()
            if scores.shape[2:] != part.shape[2:]:
                scores = F.interpolate(scores, size=part.shape[2:], mode="bilinear", align_corners=False)
            maps.append(scores[:, 0])
    model.train(was_training)
    return torch.cat(maps)


def image_scores(score_maps: Tensor, window: int = IMAGE_SCORE_WINDOW) -> Tensor:
    """One score a picture [N]: the highest mean over a window of 21 x 21 pixels of its map [N,H,W].

    Pixels beyond the border count as 0, as in the authors' code.
    """
    pooled = F.avg_pool2d(score_maps[:, None].float(), window, stride=1, padding=window // 2)
    return pooled.amax(dim=(1, 2, 3))


def evaluate_localizer(
    model: DiscriminativeSubNetwork, images: Tensor, masks: Tensor, batch: int = 8, size: int | None = None
) -> tuple[LocalizationResult, Tensor]:
    """All metrics of a test set of defective and normal pictures, at the resolution of its masks.

    Args:
        images, masks: [N,3,H,W] in [0,1] and [N,1,H,W] in {0,1}; a normal picture has an empty mask.
        size: the resolution the network was trained at, see `score_pictures`.

    Returns:
        The result and the score maps [N,H,W].
    """
    if len(images) != len(masks) or images.shape[2:] != masks.shape[2:]:
        raise InputError(
            f"test set: images {tuple(images.shape)}, masks {tuple(masks.shape)}. "
            "Give one mask of equal size for each image."
        )
    maps = score_pictures(model, images, size, batch)
    truth = masks[:, 0].cpu().numpy()
    return _result(pixel_metrics(list(maps.numpy()), list(truth)), list(truth), image_scores(maps).numpy()), maps


@dataclass(frozen=True)
class ScoredPictures:
    """Score maps float32 and masks bool of a test set, [H,W] each, in its order, and one score a picture [N].

    pixels: what was counted of them while they came in.
    """

    maps: Sequence[NDArray]
    masks: Sequence[NDArray]
    scores: NDArray
    pixels: StreamingPixelMetrics

    def measure(self) -> LocalizationResult:
        """All metrics of these maps."""
        return _result(self.pixels.compute(), self.masks, self.scores)


def score_batches(
    model: DiscriminativeSubNetwork,
    batches: Iterable[tuple[Tensor, Tensor]],
    count: int,
    on_batch: Callable[[], None] | None = None,
) -> ScoredPictures:
    """Score pictures that are read batch by batch and count their pixels at once.

    Maps and masks are kept for curves and pictures, large ones outside of memory.

    Args:
        batches: pictures [n,3,H,W] and masks [n,1,H,W], all of one size; `count` pictures together.
        on_batch: called after each batch; an exception in it (an interrupt) passes on.
    """
    maps: NDArray | None = None
    masks: NDArray | None = None
    scores: list[NDArray] = []
    pixels = StreamingPixelMetrics()
    done = 0
    for images, truth in batches:
        if images.shape[2:] != truth.shape[2:] or len(images) != len(truth):
            raise InputError(f"test set: images {tuple(images.shape)}, masks {tuple(truth.shape)}. Give equal sizes.")
        part = score_pictures(model, images, batch=len(images))
        if maps is None or masks is None:
            shape = (count, part.shape[1], part.shape[2])
            maps, masks = _room(shape, np.float32), _room(shape, np.bool_)
            if maps.size > EXACT_SAMPLES:
                pixels = StreamingPixelMetrics(0)  # too many in the end: nothing has to be kept first
        inside = truth[:, 0].cpu().numpy() > 0
        maps[done : done + len(part)], masks[done : done + len(part)] = part.numpy(), inside
        for values, mask in zip(part.numpy(), inside, strict=True):
            pixels.update(values, mask)
        scores.append(image_scores(part).numpy())
        done += len(part)
        if on_batch is not None:
            on_batch()
    if maps is None or masks is None or done != count:
        raise InputError(f"test set: {done} pictures where {count} were announced. Give at least one.")
    return ScoredPictures(list(maps), list(masks), np.concatenate(scores), pixels)


def _room(shape: tuple[int, int, int], kind: type[np.generic]) -> NDArray:
    if math.prod(shape) * np.dtype(kind).itemsize <= IN_MEMORY_BYTES:
        return np.empty(shape, kind)
    with tempfile.TemporaryFile() as file:  # the mapping keeps the file alive, and nothing else does
        return np.memmap(file, kind, "w+", shape=shape)


def _result(pixels: PixelMetrics, masks: Sequence[NDArray], scores: NDArray) -> LocalizationResult:
    labels = np.array([bool((mask > 0).any()) for mask in masks])
    return LocalizationResult(
        pixel_auroc=pixels.auroc,
        pixel_ap=pixels.ap,
        pixel_f1=pixels.f1,
        pixel_pro=pixels.pro,
        image_auroc=auroc(scores, labels),
        image_ap=average_precision(scores, labels),
        image_f1=f1_max(scores, labels),
    )
