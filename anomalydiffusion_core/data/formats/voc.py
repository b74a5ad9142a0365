"""Pascal VOC: class masks in ``SegmentationClass``, in palette or colour, named by CVAT's ``labelmap.txt``."""

from __future__ import annotations

from pathlib import Path

from ...errors import DatasetError
from ..decoding import decode_indices
from ..mask_files import inspect_mask
from .assembling import Annotated, assemble, skipped
from .described import TEST, TRAIN, Described, MaskFile, MaskSource, is_normal
from .listing import Listing

FORM = "Pascal VOC"
MASKS, IMAGES, LABELMAP, CLASSES = "SegmentationClass", "JPEGImages", "labelmap.txt", "classes.txt"
BACKGROUND, VOID = "#000000", "#e0e0c0"
PART_FILES = {"train": TRAIN, "val": TEST, "test": TEST}


def colours_of(path: Path) -> dict[str, str]:
    """Labels in a mask, as `inspect_mask` names them -> colour #rrggbb; without background and void."""
    palette = decode_indices(path)
    found = {}
    for label, _ in inspect_mask(path).values:
        colour = label
        if palette is not None and label.isdecimal():
            colour = "#" + bytes(palette.colours[int(label)].tolist()).hex()
        if colour not in (BACKGROUND, VOID):
            found[label] = colour
    return found


def looks_voc(listing: Listing) -> bool:
    """Whether there is a folder of VOC."""
    return any((listing.folder / name).is_dir() for name in (MASKS, IMAGES))


def describe_voc(listing: Listing) -> Described:
    """Each class is a type; images without a mask, or with a mask of background alone, are normal."""
    folder = listing.folder
    found = Described(FORM, folder)
    masks = {path.stem: path for path in listing.images if path.parent == folder / MASKS}
    if not masks:
        found.problem(f"{folder / MASKS}: holds no masks. VOC's boxes are not enough: export segmentation masks.")
        return found
    names = _colour_names(listing)
    parts = _parts(listing)
    own = [path for path in listing.images if IMAGES in path.parts]
    images = own or [path for path in listing.images if not path.parent.name.startswith("Segmentation")]
    annotated = []
    for image in images:
        mask = masks.pop(image.stem, None)
        try:
            classes = _classes(mask, names) if mask else {}
        except DatasetError as error:
            found.problem(str(error))
            continue
        annotated.append(Annotated(image, classes, parts.get(image.stem, "")))
    for path in masks.values():
        found.problem(f"{path}: mask without image. Add the image of this name to {IMAGES} or remove the mask.")
    bare = sum(not one.masks for one in annotated)
    if bare:
        found.notice(f"{bare} images without a mask, or with an empty one, are read as normal images")
    files = set(images)
    others = [path for path in listing.images if path not in files and not path.parent.name.startswith("Segm")]
    skipped(found, f"not in {IMAGES}", others, listing.relative)
    return assemble(found, annotated, listing)


def _classes(mask: Path, names: dict[str, str]) -> dict[str, MaskSource]:
    """Class name -> its mask, of one file. Raises DatasetError for a colour that the file of names lacks."""
    found: dict[str, MaskSource] = {}
    for label, colour in colours_of(mask).items():
        if names and colour not in names:
            raise DatasetError(f"{mask}: the colour {colour} is not in {LABELMAP}. Add it there.")
        name = names[colour] if names else f"class {label}"
        if not is_normal(name):
            found[name] = MaskFile(mask, (label,))
    return found


def _colour_names(listing: Listing) -> dict[str, str]:
    """Colour #rrggbb -> name, of CVAT's lines ``name:r,g,b:parts:actions``."""
    path = listing.folder / LABELMAP
    names: dict[str, str] = {}
    for line in listing.lines(path) if path.is_file() else ():
        name, _, rest = line.partition(":")
        numbers = rest.split(":")[0].split(",")
        if line.startswith("#") or len(numbers) != 3 or not all(number.strip().isdecimal() for number in numbers):
            continue
        colour = "#" + "".join(f"{int(number):02x}" for number in numbers)
        if colour not in (BACKGROUND, VOID):
            names[colour] = name.strip()
    return names


def _parts(listing: Listing) -> dict[str, str]:
    """Name of an image -> part, of ``ImageSets/Segmentation``."""
    found: dict[str, str] = {}
    for name, part in PART_FILES.items():
        path = listing.folder / "ImageSets" / "Segmentation" / f"{name}.txt"
        for line in listing.lines(path) if path.is_file() else ():
            if line:
                found.setdefault(Path(line.split()[0]).name, part)
    return found
