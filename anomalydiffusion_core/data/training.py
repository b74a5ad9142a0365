"""What a training reads of a data set: pairs at a fitting size, and hashes that say which files they were."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..files import file_digest
from .images import image_size
from .mvtec import AnomalyDataset, DefectPair, load_pairs


def training_pairs(pairs: Sequence[DefectPair], resolution: int) -> tuple[Tensor, Tensor]:
    """Pairs for training at ``resolution``: as stored where that is one moderate size, else at twice the resolution.

    Augmentation crops, so there should be more pixels than the result has; stored images may be huge.
    """
    sizes = {image_size(pair.image_path) for pair in pairs}
    as_stored = len(sizes) == 1 and max(next(iter(sizes))) <= 2 * resolution
    return load_pairs(pairs, None if as_stored else 2 * resolution)


def training_files(dataset: AnomalyDataset) -> dict[str, str]:
    """Hashes of all files that are learned from, by their path from the folder that holds the category.

    Where a part of a mask file is read, the name says which.
    """
    found = {}
    for pair in (pair for kind in dataset.types for pair in kind.train):
        for path, choice in pair.read_files:
            name = f"{dataset.object}/{path.relative_to(dataset.folder).as_posix()}{choice}"
            found[name] = file_digest(path)[:16]
    return found
