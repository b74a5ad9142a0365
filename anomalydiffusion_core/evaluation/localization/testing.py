"""Testing a segmentation network on real defects that it has not seen."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ...errors import InputError
from ..metrics.counting import counts_of
from ..metrics.detection import auroc, average_precision, defined, f1_max
from ..metrics.pixels import EXACT_SAMPLES, StreamingPixelMetrics
from ..settings import LocalizerSettings
from .network import DiscriminativeSubNetwork
from .sources import HeldOutImages
from .tiles import scored_tiles

IMAGE_SCORE_WINDOW = 21
TEST_BATCH = 8
IN_MEMORY_BYTES = 2**28
"""Score maps or masks larger than this are mapped to a temporary file."""


@dataclass(frozen=True)
class LocalizationResult:
    """Metrics of one network on one test set, each 0..1, or NaN where it is undefined on this test set."""

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
SUMMED = ("image_auroc", "pixel_auroc", "pixel_ap", "pixel_pro")
"""What the authors' rule of selection sums."""


def score_images(model: DiscriminativeSubNetwork, images: Tensor, batch: int = 8) -> Tensor:
    """Defect probability of every pixel, [N,H,W] float32 on the CPU, for images [N,3,H,W] in [0,1].

    A model in training is left in training.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    maps = []
    with torch.no_grad():
        for part in images.float().split(batch):
            seen = part.to(device).contiguous(memory_format=torch.channels_last)
            maps.append(F.softmax(model(seen).float(), dim=1)[:, 1].cpu())
    model.train(was_training)
    return torch.cat(maps)


def image_scores(score_maps: Tensor, window: int = IMAGE_SCORE_WINDOW) -> Tensor:
    """One score per image [N]: the highest mean over a window of 21 x 21 pixels of its map [N,H,W].

    Pixels beyond the border count as 0, as in the authors' code.
    """
    pooled = F.avg_pool2d(score_maps[:, None].float(), window, stride=1, padding=window // 2)
    return pooled.amax(dim=(1, 2, 3))


@dataclass(frozen=True)
class ScoredImages:
    """Score maps float32 and masks bool of a test set, [H,W] each, in its order, and one score per image [N].

    pixels: what was counted while they came in. side: of the squares that maps are shown as, 0 where they are such.
    """

    maps: Sequence[NDArray] | NDArray
    masks: Sequence[NDArray] | NDArray
    scores: NDArray
    pixels: StreamingPixelMetrics
    side: int = 0

    def shown(self, places: Sequence[int]) -> Tensor:
        """Some of the maps [K,s,s], to look at."""
        maps = [torch.from_numpy(np.array(self.maps[place])) for place in places]
        if self.side:
            shape = (self.side, self.side)
            maps = [F.interpolate(one[None, None], shape, mode="area")[0, 0] for one in maps]
        return torch.stack(maps) if maps else torch.empty(0)

    def measure(self) -> LocalizationResult:
        """All metrics of these maps."""
        pixels = self.pixels.compute()
        images = counts_of(self.scores, np.array([bool(mask.any()) for mask in self.masks]))
        return LocalizationResult(
            pixel_auroc=pixels.auroc,
            pixel_ap=pixels.ap,
            pixel_f1=pixels.f1,
            pixel_pro=pixels.pro,
            # With defects alone every threshold is perfect, which says nothing.
            image_auroc=auroc(images),
            image_ap=average_precision(images) if images.normals else math.nan,
            image_f1=f1_max(images) if images.normals else math.nan,
        )


def selection_score(result: LocalizationResult) -> float:
    """The authors' sum of image AUROC, pixel AUROC, pixel AP and PRO, over those that are defined.

    Raises InputError when none of them is.
    """
    known = [value for name in SUMMED if not math.isnan(value := getattr(result, name))]
    if not known:
        raise InputError("selection: no metric is defined on these images. Use 'last step'.")
    return sum(known)


def score_tests(
    model: DiscriminativeSubNetwork,
    tests: HeldOutImages,
    size: int,
    on_batch: Callable[[], None] = lambda: None,
    batch: int = TEST_BATCH,
) -> ScoredImages:
    """Score a test set that is read batch by batch and count its pixels at once.

    Maps and masks are kept for curves and heat maps, large ones on disk.

    Args:
        size: side of the images in pixels.
        on_batch: called after each batch; an exception in it (an interrupt) passes on.
    """
    shape = (tests.count, size, size)
    maps, masks, scores = empty_room(shape, np.float32), empty_room(shape, np.bool_), np.empty(tests.count, np.float32)
    # where there are too many in the end nothing has to be kept first
    pixels = StreamingPixelMetrics(EXACT_SAMPLES if maps.size <= EXACT_SAMPLES else 0)
    for start, (images, truth) in zip(range(0, tests.count, batch), tests.batches(size, batch), strict=True):
        part, inside = score_images(model, images, batch), truth[:, 0].cpu().numpy() > 0
        place = slice(start, start + batch)
        maps[place], masks[place], scores[place] = part.numpy(), inside, image_scores(part).numpy()
        for values, mask in zip(part.numpy(), inside, strict=True):
            pixels.update(values, mask)
        on_batch()
    return ScoredImages(maps, masks, scores, pixels)


def score_tests_tiled(
    model: DiscriminativeSubNetwork,
    tests: HeldOutImages,
    settings: LocalizerSettings,
    on_batch: Callable[[], None] = lambda: None,
    batch: int = TEST_BATCH,
) -> ScoredImages:
    """As `score_tests`, by overlapping tiles and at the images' own size, whatever sizes there are."""
    maps: list[NDArray] = []
    masks: list[NDArray] = []
    scores, pixels = list[float](), StreamingPixelMetrics()
    window = 2 * (round(IMAGE_SCORE_WINDOW * settings.tile_scale) // 2) + 1
    for part, truth in scored_tiles(lambda tiles: score_images(model, tiles, batch), tests, settings, batch):
        values, inside = part.numpy(), truth.numpy() > 0
        pixels.update(values, inside)
        for kept, one in ((maps, values), (masks, inside)):
            room = empty_room((1, *one.shape), one.dtype.type, sum(other.nbytes for other in kept))[0]
            room[...] = one
            kept.append(room)
        scores.append(float(image_scores(part[None], window)[0]))
        on_batch()
    return ScoredImages(maps, masks, np.array(scores, np.float32), pixels, settings.size)


def empty_room(shape: tuple[int, int, int], kind: type[np.generic], used: int = 0) -> NDArray:
    """Memory for an array, on disk where it and what is `used` already are large."""
    if used + math.prod(shape) * np.dtype(kind).itemsize <= IN_MEMORY_BYTES:
        return np.empty(shape, kind)
    with tempfile.TemporaryFile() as file:  # the mapping keeps the file alive, and nothing else does
        return np.memmap(file, kind, "w+", shape=shape)
