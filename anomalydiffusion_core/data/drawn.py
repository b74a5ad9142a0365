"""Images with masks drawn over them as a data set: what ComfyUI's mask editor gives, kept as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import InputError
from ..files import check_name, content_key, highest_number, new_folder, tensor_digest
from ..options import Settings, option
from .convert import ConvertSettings, convert
from .formats.assembling import HELD_OUT
from .formats.described import GOOD, TEST, TRAIN, is_normal
from .images import write_image, write_mask
from .mvtec import AnomalyDataset, load_dataset
from .pairing import MASK_ENDING
from .splits import SplitSettings

NORMAL_PLACES = (f"{TRAIN}/{GOOD}", f"{TEST}/{GOOD}")


@dataclass(frozen=True)
class DrawnSettings(Settings):
    """What is seen on images whose masks were drawn."""

    object: str = option("part", "Name of the object, for example bottle.")
    defect: str = option("defect", "Name of the defect type, for example crack.")


def drawn_dataset(
    folder: Path,
    images: Tensor,
    masks: Tensor,
    normals: Tensor | None,
    settings: DrawnSettings,
    split: SplitSettings,
    before: AnomalyDataset | None = None,
) -> AnomalyDataset:
    """Images and masks as a data set in a folder of its own below ``folder``, in the MVTec layout.

    The same content finds the same folder again. The last fifth of the normal images is kept for testing.

    Args:
        folder: where such data sets lie.
        images, masks: [N, 3, H, W] in [0, 1] and [N, 1, H, W] of {0, 1}, none empty.
        normals: [M, 3, H, W]; may be left out when ``before`` has some.
        settings: names of object and type.
        split: see `load_dataset`.
        before: a data set of the same object to which these pairs are added, also to a type that it has.

    Raises:
        InputError: no normal images, counts or sizes that do not fit, unusable names, another object.
        DatasetError: as `load_dataset`.
    """
    _check(images, masks, normals, settings, before)
    base = [before.root.as_posix(), before.fingerprint()] if before else []
    key = content_key(settings.object, settings.defect, tensor_digest(images, masks, normals), base)
    place = folder / f"{settings.object}_{key[:12]}"
    if not place.is_dir():
        with new_folder(place) as draft:
            category = draft / settings.object
            if before:
                convert(before, category, ConvertSettings())
            _write(category, settings.defect, images, masks)
            if normals is not None:
                _write_normals(category, normals)
    return load_dataset(place, settings.object, split)


def _write(category: Path, defect: str, images: Tensor, masks: Tensor) -> None:
    start = 1 + highest_number(category / TEST / defect)
    for number, (image, mask) in enumerate(zip(images, masks, strict=True), start):
        write_image(category / TEST / defect / f"{number:03d}.png", image)
        write_mask(category / "ground_truth" / defect / f"{number:03d}{MASK_ENDING}.png", mask)


def _write_normals(category: Path, normals: Tensor) -> None:
    first_test = len(normals) - len(normals) // HELD_OUT
    start = 1 + max(highest_number(category / place) for place in NORMAL_PLACES)
    for number, image in enumerate(normals):
        place = NORMAL_PLACES[number >= first_test]
        write_image(category / place / f"{start + number:03d}.png", image)


def _check(
    images: Tensor, masks: Tensor, normals: Tensor | None, settings: DrawnSettings, before: AnomalyDataset | None
) -> None:
    check_name(settings.object, "object")
    check_name(settings.defect, "defect")
    if is_normal(settings.defect):
        raise InputError(f"defect: '{settings.defect}' means no defect. Choose another name.")
    if len(images) != len(masks):
        raise InputError(f"masks: {len(masks)} for {len(images)} images. Connect a mask for each image.")
    if images.shape[2:] != masks.shape[2:]:
        sizes = [f"{tensor.shape[3]}x{tensor.shape[2]}" for tensor in (masks, images)]
        raise InputError(f"masks: {sizes[0]} px, the images have {sizes[1]} px. Draw the masks on these images.")
    if normals is None and before is None:
        raise InputError("normals: not connected. Connect images without a defect, or a dataset to add_to.")
    if before is not None and before.object != settings.object:
        raise InputError(f"object: '{settings.object}', but add_to is of '{before.object}'. Use its name.")
