"""The layout of MVTec AD and its relatives: MVTec LOCO, MVTec 3D-AD, BTAD, MPDD.

``train/good``, ``test/good``, ``test/<defect>``, ``ground_truth/<defect>/<name>_mask.png``. LOCO keeps several masks
of an image in a folder of its name and has ``validation/good``; 3D-AD keeps images in ``rgb`` and masks in ``gt`` of
each folder; BTAD says ``ok`` and ``ko``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from ..pairing import folder_named, list_folders, list_images, match_files, same_name, skipped_in, some_of
from ..splits import natural_key
from .described import GOOD, Described, Labelled, MaskFile, MaskUnion, is_normal

TRUTH = "ground_truth"
RGB, GT = "rgb", "gt"


def looks_mvtec(folder: Path) -> bool:
    """Whether the folders can only mean this layout."""
    return folder_named(folder, TRUTH).is_dir() or _normal_folder(folder_named(folder, "train")).is_dir()


def might_be_mvtec(folder: Path) -> bool:
    """Whether a part of the layout is there."""
    return any(folder_named(folder, part).is_dir() for part in ("train", "test", TRUTH))


def describe_mvtec(folder: Path) -> Described:
    """All files of the layout; what is missing becomes a problem."""
    found = Described("MVTec AD", folder)
    train, test, truth = (folder_named(folder, part) for part in ("train", "test", TRUTH))
    normal = _normal_folder(train)
    found.normals = list_images(_rgb(normal))
    if not found.normals:
        state = "holds no images" if normal.is_dir() else "missing"
        found.problem(f"{normal}: {state}. Put images of normal parts there.")
    extra = list_images(_rgb(_normal_folder(folder_named(folder, "validation"))))
    if extra:
        found.normals += extra
        found.notice(f"the {len(extra)} images of validation/good are used as normal images too")
    found.test_normals = list_images(_rgb(_normal_folder(test)))
    _name_skipped(found, train, [f"{normal.name}/"])
    for place in (normal, _normal_folder(test)):
        _name_skipped(found, _rgb(place))
    for name, places in _types_of(found, test, truth).items():
        found.names.append(name)
        _check_spelling(found, name, places)
    beside = any((test / name / GT).is_dir() for name in found.names)
    if beside:
        found.form = "MVTec 3D-AD"
    elif found.names and not truth.is_dir():
        found.problem(f"{truth}: missing. Put the masks of {', '.join(found.names)} into {TRUTH}/<defect>.")
        return found
    for name in found.names:
        _match(found, name, folder_named(test, name), folder_named(truth, name), beside)
    if found.form == "MVTec AD" and normal.name != GOOD and normal.is_dir():
        found.form = f"MVTec AD, normal images in '{normal.name}'"
    return found


def _types_of(found: Described, test: Path, truth: Path) -> dict[str, list[Path]]:
    """The defect types with their folders. Names that differ in case or in the writing of accents are one type."""
    places: dict[str, list[Path]] = {}
    for entry in (*list_folders(test), *list_folders(truth)):
        if not is_normal(entry.name):
            places.setdefault(same_name(entry.name), []).append(entry)
    return {unicodedata.normalize("NFC", own[0].name): own for own in places.values()}


def _check_spelling(found: Described, name: str, places: Sequence[Path]) -> None:
    parents = [place.parent for place in places]
    if len(set(parents)) < len(parents):
        listed = ", ".join(_relative(found, place) for place in places)
        found.problem(f"{found.folder}: {listed} have the same name but for case or accents. Make them one.", name)
    elif len({unicodedata.normalize("NFC", place.name) for place in places}) > 1:
        listed = " and ".join(_relative(found, place) for place in places)
        found.notice(f"{listed} are taken as one type, '{name}'", name)


def _name_skipped(found: Described, folder: Path, known: Sequence[str] = (), defect: str = "") -> None:
    names = [name for name in skipped_in(folder) if not name.startswith(tuple(known) or ("/",))]
    if names:
        found.notice(f"{_relative(found, folder)}: {len(names)} skipped, no images: {some_of(names)}", defect)


def _relative(found: Described, path: Path) -> str:
    return path.relative_to(found.folder).as_posix()


def _match(found: Described, defect: str, test: Path, truth: Path, beside: bool) -> None:
    truth = test / GT if beside else truth
    images = list_images(_rgb(test))
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
        _name_skipped(found, truth, defect=defect)
    _name_skipped(found, _rgb(test), defect=defect)


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
        lone = found.folder / TRUTH / defect / name
        found.problem(f"{lone}: masks without image. Add the image {name} or remove the folder.", defect)
    if pairs:
        found.pairs[defect] = pairs


def _normal_folder(parent: Path) -> Path:
    """The folder of normal images in parent, whatever it is called; ``good`` when there is none."""
    named = [entry for entry in list_folders(parent) if is_normal(entry.name)]
    return next((entry for entry in named if entry.name == GOOD), named[0] if named else parent / GOOD)


def _rgb(folder: Path) -> Path:
    return folder / RGB if (folder / RGB).is_dir() else folder
