"""Anomaly detectors of other libraries as rows of a table: they get the images as files and give score maps as files.

A detector may run in another environment, with its own torch. What it gives is measured by the same code as our own
networks: the same test images at the same size, the same masks, the same metrics.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import InputError
from ..metrics.pixels import EXACT_SAMPLES, StreamingPixelMetrics
from .sources import HeldOutImages, NormalSource
from .testing import TEST_BATCH, ScoredImages, empty_room, image_scores

NORMALS_FILE, TESTS_FILE, MAPS_FOLDER = "normals.npy", "tests.npy", "maps"


@dataclass(frozen=True)
class DetectorJob:
    """Where a detector finds its images and leaves its maps.

    `normals.npy` and `tests.npy` are [N,3,s,s] float32 in [0,1]; it writes `maps/00000.npy` and so on, one [h,w] of
    float32 for each test image in its order, higher where it is more defective.
    """

    folder: Path
    size: int
    seed: int
    device: str

    @property
    def maps(self) -> Path:
        """The folder of the maps."""
        return self.folder / MAPS_FOLDER


class Detector(Protocol):
    """What makes score maps of test images after having seen normal images.

    identity changes with all that its maps depend on; budget is what a reader must know of it; reduced says whether
    that is less than its publication's.
    """

    @property
    def identity(self) -> Mapping[str, Any]:
        """Plain values."""

    @property
    def budget(self) -> Mapping[str, Any]:
        """Plain values."""

    @property
    def reduced(self) -> bool:
        """Whether figures are below what was published for it."""

    def detect(self, job: DetectorJob, on_wait: Callable[[], None]) -> None:
        """Write the maps. on_wait is called now and then; an exception in it (an interrupt) ends the work."""


def detector_maps(
    detector: Detector,
    normals: NormalSource,
    tests: HeldOutImages,
    size: int,
    seed: int,
    scratch: Path,
    device: str = "cpu",
    on_wait: Callable[[], None] = lambda: None,
) -> ScoredImages:
    """The score maps of a detector, measured. Its files lie in a folder below ``scratch`` that is removed again.

    Raises InputError for what the detector refuses, and for maps that are missing or cannot be.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="detector_", dir=scratch) as place:
        job = DetectorJob(Path(place), size, seed, device)
        job.maps.mkdir()
        np.save(job.folder / NORMALS_FILE, normals.read(size).numpy())
        stored = np.lib.format.open_memmap(job.folder / TESTS_FILE, "w+", np.float32, (tests.count, 3, size, size))
        for start, (images, _) in zip(range(0, tests.count, TEST_BATCH), tests.batches(size, TEST_BATCH), strict=True):
            stored[start : start + len(images)] = images.numpy()
        stored.flush()
        detector.detect(job, on_wait)
        return score_map_files(job.maps, tests, size, on_wait)


def score_map_files(
    folder: Path, tests: HeldOutImages, size: int, on_batch: Callable[[], None] = lambda: None
) -> ScoredImages:
    """Measure maps `00000.npy` and so on of a folder, one for each test image, brought to ``size`` bilinearly.

    The image's score comes from its map by the same rule as that of our networks, see `image_scores`.

    Raises InputError for a missing map, another shape than [h,w], and values that are not finite.
    """
    shape = (tests.count, size, size)
    maps, masks, scores = empty_room(shape, np.float32), empty_room(shape, np.bool_), np.empty(tests.count, np.float32)
    pixels = StreamingPixelMetrics(EXACT_SAMPLES if maps.size <= EXACT_SAMPLES else 0)
    for start, (_, truth) in zip(range(0, tests.count, TEST_BATCH), tests.batches(size, TEST_BATCH), strict=True):
        for place, mask in enumerate(truth[:, 0].cpu().numpy() > 0, start):
            values = read_map(folder / f"{place:05d}.npy", size)
            maps[place], masks[place] = values.numpy(), mask
            scores[place] = float(image_scores(values[None])[0])
            pixels.update(values.numpy(), mask)
        on_batch()
    return ScoredImages(maps, masks, scores, pixels)


def read_map(path: Path, size: int) -> Tensor:
    """A score map [size,size] float32. Raises InputError that names the file."""
    try:
        found = np.load(path, allow_pickle=False)
        values = torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32))
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise InputError(f"maps: {path} cannot be read ({error}). Give one map for each test image.") from error
    if values.ndim != 2 or not values.numel():
        raise InputError(f"maps: {path.name} has the shape {tuple(values.shape)}. Give maps [height, width].")
    if not bool(torch.isfinite(values).all()):
        raise InputError(f"maps: {path.name} holds values that are not finite. The detector failed on this image.")
    if values.shape == (size, size):
        return values
    return F.interpolate(values[None, None], (size, size), mode="bilinear", align_corners=False)[0, 0]
