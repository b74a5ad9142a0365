"""What a classifier sees of large images: windows on defects and on normal images, and test images tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ...data.generated import GeneratedImage
from ...data.images import read_image
from ...data.mask_files import read_mask
from ...data.mvtec import AnomalyDataset, DefectPair
from ...errors import InputError
from ..localization.sources import normal_images
from ..localization.tiles import WINDOWS_PER_IMAGE, normal_windows, windows_on_defect
from ..settings import ClassifierSettings
from .evaluation import NO_DEFECT
from .training import predict_tiled


def training_windows(
    dataset: AnomalyDataset,
    real: Mapping[str, Sequence[DefectPair]],
    generated: Sequence[GeneratedImage],
    settings: ClassifierSettings,
) -> dict[str, Tensor]:
    """Windows [N,3,s,s] on the defects by type, and as many of normal images as the largest type has, NO_DEFECT.

    Raises InputError for generated images without masks, since nothing says where their defects are.
    """
    found: dict[str, list[Tensor]] = {}
    for defect, pairs in real.items():
        for place, pair in enumerate(pairs):
            image = read_image(pair.image_path, pair.bits)
            found.setdefault(defect, []).append(windows_on_defect(image, pair.read_mask(), place, settings)[0])
    for place, one in enumerate(generated):
        if one.mask is None:
            raise InputError(
                f"view: tiles need to know where defects are, but {one.image} has no mask. Choose whole images."
            )
        image = read_image(one.image, one.bits)
        found.setdefault(one.defect, []).append(windows_on_defect(image, read_mask(one.mask), place, settings)[0])
    source, most = normal_images(dataset), max((len(parts) for parts in found.values()), default=0)
    if not source.count:
        raise InputError(f"view: tiles need normal images, and {dataset.object} has none. Choose whole images.")
    count = min(most, source.count)
    places = [number * source.count // count for number in range(count)]
    return {**{k: torch.cat(parts) for k, parts in found.items()}, NO_DEFECT: normal_windows(source, settings, places)}


def window_count(images: int) -> int:
    """About how many windows a training on so many images holds."""
    return 2 * images * WINDOWS_PER_IMAGE


def tile_recognizer(
    tests: Mapping[str, Sequence[DefectPair]], settings: ClassifierSettings
) -> Callable[[nn.Module], Tensor]:
    """A network to the classes of all tests in order, [N]; images are read one at a time."""
    pairs = [pair for part in tests.values() for pair in part]

    def recognize(network: nn.Module) -> Tensor:
        classes = [predict_tiled(network, read_image(pair.image_path, pair.bits), settings) for pair in pairs]
        return torch.tensor(classes)

    return recognize
