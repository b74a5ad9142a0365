"""The layout of MVTec AD and its relatives: MVTec LOCO, MVTec 3D-AD, BTAD, MPDD.

``train/good``, ``test/good``, ``test/<defect>``, ``ground_truth/<defect>/<name>_mask.png``. LOCO keeps several masks
of an image in a folder of its name and has ``validation/good``; 3D-AD keeps images in ``rgb`` and masks in ``gt`` of
each folder; BTAD says ``ok`` and ``ko``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..pairing import list_folders, list_images, match_files
from ..splits import natural_key
from .described import GOOD, Described, Labelled, MaskFile, MaskUnion, is_normal

TRUTH = "ground_truth"
RGB, GT = "rgb", "gt"


def looks_mvtec(folder: Path) -> bool:
    """Whether the folders can only mean this layout."""
    return (folder / TRUTH).is_dir() or _normal_folder(folder / "train").is_dir()


def might_be_mvtec(folder: Path) -> bool:
    """Whether a part of the layout is there."""
    return any((folder / part).is_dir() for part in ("train", "test", TRUTH))


def describe_mvtec(folder: Path) -> Described:
    """All files of the layout; what is missing becomes a problem."""
    found = Described("MVTec AD", folder)
    train = _normal_folder(folder / "train")
    found.normals = list_images(_rgb(train))
    if not found.normals:
        state = "holds no images" if train.is_dir() else "missing"
        found.problem(f"{train}: {state}. Put images of normal parts there.")
    extra = list_images(_rgb(_normal_folder(folder / "validation")))
    if extra:
        found.normals += extra
        found.notice(f"the {len(extra)} images of validation/good are used as normal images too")
    found.test_normals = list_images(_rgb(_normal_folder(folder / "test")))
    everything = [*list_folders(folder / "test"), *list_folders(folder / TRUTH)]
    found.names = list(dict.fromkeys(entry.name for entry in everything if not is_normal(entry.name)))
    beside = any((folder / "test" / name / GT).is_dir() for name in found.names)
    if beside:
        found.form = "MVTec 3D-AD"
    elif found.names and not (folder / TRUTH).is_dir():
        found.problem(f"{folder / TRUTH}: missing. Put the masks of {', '.join(found.names)} into {TRUTH}/<defect>.")
        return found
    for name in found.names:
        _match(found, name, beside)
    if found.form == "MVTec AD" and train.name != GOOD and train.is_dir():
        found.form = f"MVTec AD, normal images in '{train.name}'"
    return found


def _match(found: Described, defect: str, beside: bool) -> None:
    images = list_images(_rgb(found.folder / "test" / defect))
    truth = found.folder / "test" / defect / GT if beside else found.folder / TRUTH / defect
    masks, unions = list_images(truth), [] if beside else list_folders(truth)
    if not images and not masks and not unions:
        found.notice(f"test/{defect} holds no images and is ignored", defect)
    elif unions and not masks:
        found.form = "MVTec LOCO"
        _match_unions(found, defect, images, unions)
    else:
        matched = match_files(images, masks)
        for text in matched.problems:
            found.problem(text, defect)
        if matched.pairs:
            found.pairs[defect] = [Labelled(name, image, MaskFile(mask)) for name, image, mask in matched.pairs]


def _match_unions(found: Described, defect: str, images: Sequence[Path], folders: Sequence[Path]) -> None:
    masks_of = {entry.name: list_images(entry) for entry in folders}
    pairs = []
    for image in sorted(images, key=lambda path: natural_key(path.name)):
        masks = masks_of.pop(image.stem, [])
        if masks:
            pairs.append(Labelled(image.stem, image, MaskUnion(tuple(masks))))
        else:
            where = f"{TRUTH}/{defect}/{image.stem}"
            found.problem(f"{image}: image without mask. Put its masks into {where} or remove it.", defect)
    for name in masks_of:
        where = found.folder / TRUTH / defect / name
        found.problem(f"{where}: masks without image. Add the image {name} or remove the folder.", defect)
    if pairs:
        found.pairs[defect] = pairs


def _normal_folder(parent: Path) -> Path:
    """The folder of normal images in parent, whatever it is called; ``good`` when there is none."""
    named = [entry for entry in list_folders(parent) if is_normal(entry.name)]
    return next((entry for entry in named if entry.name == GOOD), named[0] if named else parent / GOOD)


def _rgb(folder: Path) -> Path:
    return folder / RGB if (folder / RGB).is_dir() else folder
