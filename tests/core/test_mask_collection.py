"""Masks are collected until there are enough, and a run that was stopped resumes where it was."""

from __future__ import annotations

import pytest
import torch

from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.masks.cleanup import CleanedMasks
from anomalydiffusion_core.masks.collection import Collection, CollectionSettings, collect_masks, first_seed
from anomalydiffusion_core.progress import Progress, Quiet

pytestmark = pytest.mark.core


class EveryThird:
    """Samples 0, 3, 6 ... are masks whose pixels are their number."""

    cost, at_once = 5, 4

    def __init__(self) -> None:
        self.made: list[int] = []

    def __call__(self, first: int, count: int, progress: Progress) -> CleanedMasks:
        samples = list(range(first, first + count))
        self.made += samples
        progress.step(count * self.cost)
        kept = [i for i in range(count) if samples[i] % 3 == 0]
        masks = torch.tensor([float(samples[i]) for i in kept]).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
        rejected = tuple((i, "too small: by decree") for i in range(count) if i not in kept)
        return CleanedMasks(masks, tuple(kept), rejected)


def numbers(found: Collection) -> list[float]:
    return [float(mask.mean()) for mask in found.masks]


def test_samples_until_there_are_enough() -> None:
    source, bars = EveryThird(), list[Quiet]()

    def bar(total: int) -> Quiet:
        bars.append(Quiet(total))
        return bars[-1]

    found = collect_masks(source, 3, 4, bar)
    assert source.made == list(range(7)) and numbers(found) == [0, 3, 6]
    assert found.describe() == "3 of 7 sampled masks kept (4 too small)"
    assert bars[0].done == bars[0].total == 7 * 5
    assert found.repeated(4)[:, 0, 0, 0].tolist() == [0, 3, 6, 0]


def test_gives_up_after_the_tries() -> None:
    source = EveryThird()
    assert numbers(collect_masks(source, 4, 2)) == [0, 3, 6] and len(source.made) == 8
    with pytest.raises(InputError, match="mask: 0 of 2 .*2 too small"):
        collect_masks(Shifted(), 1, 2)


class Shifted(EveryThird):
    """Begins after the first mask."""

    def __call__(self, first: int, count: int, progress: Progress) -> CleanedMasks:
        return super().__call__(first + 1, count, progress)


def test_a_stopped_collection_resumes() -> None:
    saved: list[tuple[int, list[float]]] = []
    before = Collection(["", "too small: x"])
    source = EveryThird()

    def save(first: int, part: CleanedMasks) -> None:
        saved.append((first, part.masks[:, 0, 0, 0].tolist()))

    found = collect_masks(source, 2, 4, found=before, on_part=save)
    assert source.made == [2, 3] and numbers(found) == [3]
    assert saved == [(2, []), (3, [3.0])]
    assert found.describe() == "2 of 4 sampled masks kept (2 too small)"


def test_types_get_other_seeds() -> None:
    assert first_seed(5, "part/dot") != first_seed(5, "part/bar")
    assert first_seed(6, "part/dot") == first_seed(5, "part/dot") + 1


def test_a_region_is_one_mask_of_the_aspect() -> None:
    notices: list[str] = []
    settings = CollectionSettings(size=64, allowed_overlap=0.2)
    (region,) = settings.regions(None, torch.ones(1, 1, 32, 32), notices)
    assert region.pixels.shape == (64, 64) and region.share == 0.2 and "32x32" in notices[0]
    with pytest.raises(InputError, match="foreground: has 2 masks"):
        settings.regions(torch.ones(2, 1, 64, 64), None, notices)
