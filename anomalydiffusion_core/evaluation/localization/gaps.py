"""What a detector misses on defects held back from its training, as a plan of pairs that would teach it.

Every region of a held-back mask that the detector finds in part only asks for pairs like it: of its type, its size and
its place, on the normal images most like the one it is on, in proportion to the share of it that was missed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ...data.mvtec import AnomalyDataset
from ...data.pair_plan import PairPlan, PlannedPair
from ...errors import InputError
from ...masks.variation import cropped, transform_shape
from ...progress import MakeProgress, Quiet
from ..settings import GapSettings, LocalizerSettings
from .runs import split_places, split_validation
from .sources import PairSource, held_out_tensors, normal_images, real_pairs
from .testing import score_tests
from .training import LocalizerTraining

LOOK = 32
"""Side in pixels at which images are compared."""
RING = 5
"""Pixels around a region that its contrast is measured against."""


@dataclass(frozen=True)
class Region:
    """A region of a held-back mask, and how much of it was found.

    Attributes:
        key: object/defect.
        image: number of the held-back defect image.
        area: share of the image.
        place: its middle as shares of height and width.
        contrast: difference of its mean colour to that of a ring around it, 0 to 1.
        found: share of its pixels whose score reaches the threshold.
    """

    key: str
    image: int
    area: float
    place: tuple[float, float]
    contrast: float
    found: float

    @property
    def missed(self) -> float:
        """Share that was not found."""
        return 1 - self.found


@dataclass(frozen=True)
class Gaps:
    """All regions, the score from which a pixel counts as found, and the plan."""

    regions: tuple[Region, ...]
    threshold: float
    plan: PairPlan

    def markdown(self) -> str:
        """A line for each region, the most missed first."""
        counts = [pair.why["image"] for pair in self.plan.pairs]
        lines = [
            f"{len(self.plan.pairs)} pairs for what is missed at a score of {self.threshold:.4g}.",
            "",
            "| type | image | area | middle (down, right) | contrast | found | pairs for this image |",
            "|---|---|---|---|---|---|---|",
        ]
        for one in sorted(self.regions, key=lambda region: region.found):
            lines.append(
                f"| {one.key} | {one.image} | {one.area:.2%} | {one.place[0]:.2f}, {one.place[1]:.2f} | "
                f"{one.contrast:.3f} | {one.found:.0%} | {counts.count(one.image)} |"
            )
        return "\n".join(lines)


def find_gaps(
    dataset: AnomalyDataset,
    pairs: PairSource | None,
    settings: LocalizerSettings,
    wanted: GapSettings,
    progress: MakeProgress = Quiet,
    device: torch.device | str = "cpu",
) -> Gaps:
    """Train a detector on a part of the few real pairs (and on generated ones), and plan for what it misses.

    `validation_share` of the training pairs and normal images is held back; the test set is never looked at.

    Raises InputError where no type has two training pairs, nothing is missed, or `LocalizerTraining` refuses.
    """
    settings = replace(settings, seed=wanted.seed)
    real, normals = real_pairs(dataset).read(settings.size), normal_images(dataset).read(settings.size)
    kept, held = split_validation(real, settings.validation_share, settings.seed)
    stay, aside = split_places(len(normals), settings.validation_share, settings.seed)
    bar = progress(settings.steps)
    generated = {} if pairs is None else pairs.read(settings.size)
    training = LocalizerTraining(kept, normals[stay], settings, generated, torch.device(device))
    network = training.run(lambda step: bar.at(step.step), None)
    images, masks = (torch.cat([pair[part] for pair in held.values()]) for part in (0, 1))
    keys = [key for key, (own, _) in held.items() for _ in own]
    everything = torch.cat([images, normals[aside]])
    truth = torch.cat([masks, torch.zeros(len(aside), 1, settings.size, settings.size)])
    scored = score_tests(network, held_out_tensors(everything, truth), settings.size, lambda: bar.at(settings.steps))
    maps = np.asarray(scored.maps)
    threshold = score_at(maps, np.asarray(scored.masks), wanted.false_positives)
    regions = regions_of(maps[: len(images)], masks[:, 0].numpy() > 0, images, keys, threshold)
    alike = nearest_normals(images, masks, normals)
    shapes = {key: own[1] for key, own in real.items()}
    return Gaps(tuple(regions), threshold, plan_pairs(regions, alike, dataset.normals, shapes, wanted))


def score_at(maps: NDArray, masks: NDArray, rate: float) -> float:
    """The smallest score that at most ``rate`` of the pixels outside the masks exceed; arrays [N,H,W]."""
    normal = np.sort(maps[~masks])
    if not normal.size:
        raise InputError("normals: no pixel without a defect was held back. Give more normal images.")
    return float(normal[max(math.ceil((1 - rate) * normal.size - 1e-9) - 1, 0)])


def regions_of(maps: NDArray, masks: NDArray, images: Tensor, keys: Sequence[str], threshold: float) -> list[Region]:
    """The 8-connected regions of masks [N,H,W]; a pixel is found where its score exceeds the threshold."""
    from scipy.ndimage import binary_dilation, label

    found = []
    around = np.ones((3, 3), dtype=bool)
    for number, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        parts, count = label(mask, structure=around)
        for part in range(1, count + 1):
            inside = parts == part
            rows, columns = np.nonzero(inside)
            ring = binary_dilation(inside, around, RING) & ~mask
            pixels = images[number].numpy()
            contrast = 0.0
            if ring.any():
                contrast = float(np.abs(pixels[:, inside].mean(axis=1) - pixels[:, ring].mean(axis=1)).mean())
            middle = ((rows.mean() + 0.5) / mask.shape[0], (columns.mean() + 0.5) / mask.shape[1])
            share = float((scores[inside] > threshold).mean())
            found.append(Region(keys[number], number, float(inside.mean()), middle, contrast, share))
    return found


def share_out(weights: Sequence[float], count: int) -> list[int]:
    """``count`` divided in proportion to the weights by largest remainder; the first wins a tie.

    Raises InputError where all weights are 0.
    """
    total = sum(weights)
    if total <= 0:
        raise InputError("gaps: the detector misses nothing of what was held back. Lower false_positives.")
    exact = [weight / total * count for weight in weights]
    numbers = [math.floor(value) for value in exact]
    order = sorted(range(len(exact)), key=lambda place: (numbers[place] - exact[place], place))
    for place in order[: count - sum(numbers)]:
        numbers[place] += 1
    return numbers


def nearest_normals(images: Tensor, masks: Tensor, normals: Tensor) -> list[list[int]]:
    """For each image [N,3,H,W] the numbers of the normal images [M,3,H,W], most alike outside its mask first."""
    small, known = (F.interpolate(part.float(), (LOOK, LOOK), mode="area") for part in (images, normals))
    outside = 1 - F.adaptive_max_pool2d(masks.float(), LOOK)
    found = []
    for image, region in zip(small, outside, strict=True):
        weight = region if bool(region.any()) else torch.ones_like(region)
        apart = ((known - image).abs() * weight).sum(dim=(1, 2, 3))
        found.append(apart.argsort(stable=True).tolist())
    return found


def plan_pairs(
    regions: Sequence[Region],
    alike: Sequence[Sequence[int]],
    normals: Sequence[Path],
    shapes: Mapping[str, Tensor],
    wanted: GapSettings,
) -> PairPlan:
    """``wanted.count`` pairs for the regions, in proportion to what was missed of each.

    A mask is a real training mask of the type (shapes [n,1,H,W]), turned at random, as large as the region and with
    its middle there, moved no further than to lie inside the image. The pairs of a region take the ``wanted.nearest``
    most similar normal images in turn.
    """
    pairs: list[PlannedPair] = []
    for region, number in zip(regions, share_out([one.missed for one in regions], wanted.count), strict=True):
        near = alike[region.image][: wanted.nearest]
        for place in range(number):
            rng = np.random.default_rng(wanted.seed + len(pairs))
            real = shapes[region.key][int(rng.integers(len(shapes[region.key])))][0].numpy() > 0
            mask = placed_shape(real, region.area, region.place, rng.uniform(-math.pi, math.pi))
            why = {**asdict(region), "missed": region.missed}
            del why["key"]
            pairs.append(PlannedPair(region.key, normals[near[place % len(near)]], mask, why))
    return PairPlan(pairs)


def placed_shape(mask: NDArray, area: float, place: tuple[float, float], angle: float) -> Tensor:
    """The shape of a mask [H,W] turned by an angle, its area this share of the image, its middle at a place."""
    height, width = mask.shape
    shape = cropped(mask)[0]
    scale = math.sqrt(area * height * width / shape.sum())
    turned = transform_shape(shape, angle, scale)
    while turned.shape[0] > height or turned.shape[1] > width:
        scale *= 0.98 * min(height / turned.shape[0], width / turned.shape[1])
        turned = transform_shape(shape, angle, scale)
    room = np.array(mask.shape) - turned.shape
    start = np.clip(np.rint(np.array(place) * mask.shape - np.array(turned.shape) / 2), 0, room).astype(int)
    result = torch.zeros(1, height, width)
    result[0, start[0] : start[0] + turned.shape[0], start[1] : start[1] + turned.shape[1]] = torch.from_numpy(
        turned.astype(np.float32)
    )
    return result
