"""Which form a folder has, decided by its content in a fixed order: the first one that fits is read.

MVTec AD and its relatives, VisA, COCO, LabelMe, CVAT, VOC, YOLO, plain folders of images and masks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...errors import DatasetError
from ..pairing import list_folders
from .coco import FORM as COCO
from .coco import describe_coco, is_coco
from .cvat import FORM as CVAT
from .cvat import cvat_files, describe_cvat
from .described import Described
from .flat import describe_flat, roles_of
from .labelme import FORM as LABELME
from .labelme import describe_labelme, is_labelme
from .listing import Listing
from .mvtec_family import describe_mvtec, looks_mvtec, might_be_mvtec
from .visa import describe_visa, looks_visa
from .voc import FORM as VOC
from .voc import describe_voc, looks_voc
from .yolo import FORM as YOLO
from .yolo import describe_yolo, looks_yolo

LABEL_FORMS: tuple[tuple[str, Callable[[Listing], bool], Callable[[Listing], Described]], ...] = (
    (COCO, lambda listing: any(is_coco(content) for content in _json(listing)), describe_coco),
    (LABELME, lambda listing: any(is_labelme(content) for content in _json(listing)), describe_labelme),
    (CVAT, lambda listing: bool(cvat_files(listing)), describe_cvat),
    (VOC, looks_voc, describe_voc),
    (YOLO, looks_yolo, describe_yolo),
)
ARRANGE = (
    "Arrange the images in the MVTec layout: put normal images into train/good, defect images into test/<defect> and "
    "their masks into ground_truth/<defect>. Or give a folder of LabelMe, COCO, CVAT, VOC or YOLO labels with their "
    "images."
)


def describe(folder: Path) -> Described:
    """The images and labels of one category in any known form.

    Raises:
        DatasetError: no known form, with what was seen instead; a label file that cannot be read.
    """
    if looks_mvtec(folder):
        return describe_mvtec(folder)
    if looks_visa(folder):
        return describe_visa(folder)
    listing = Listing(folder)
    fitting = [(form, reader) for form, fits, reader in LABEL_FORMS if fits(listing)]
    if fitting:
        found = fitting[0][1](listing)
        if len(fitting) > 1:
            found.notice(f"also holds labels of {', '.join(form for form, _ in fitting[1:])}; they are not used")
        return found
    roles = roles_of(listing)
    if roles.fits and not _categories(folder) and not (might_be_mvtec(folder) and not roles.defects):
        return describe_flat(listing, roles)
    if might_be_mvtec(folder):
        return describe_mvtec(folder)
    raise DatasetError(f"category: {folder} has no known layout. Seen: {listing.summary()}. {_advice(listing)}")


def _json(listing: Listing) -> list[object]:
    return [listing.json(path) for path in listing.of(".json")]


def _categories(folder: Path) -> list[str]:
    """Folders that are categories themselves."""
    return [entry.name for entry in list_folders(folder) if looks_mvtec(entry) or looks_visa(entry)]


def _advice(listing: Listing) -> str:
    """What to change in a layout that is not known."""
    categories = _categories(listing.folder)
    if categories:
        return f"This folder holds categories: use it as folder, and one of {', '.join(categories[:20])} as category."
    if not listing.images:
        return f"It holds no images that can be read. {ARRANGE}"
    if listing.of(".xml"):
        return f"XML files of boxes are not enough, a mask is needed: export polygons or masks. {ARRANGE}"
    return ARRANGE
