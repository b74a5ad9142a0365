"""Plain folders: one of normal images, one for each type of defect, and masks beside the images or in a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..mask_files import inspect_mask
from ..splits import natural_key
from .assembling import Annotated, add_normals, assemble, skipped
from .described import Described, Labelled, MaskFile, is_normal, part_of, plain_name
from .listing import Listing

FORM, CLASS_FORM = "folders of images with masks", "images with masks of class ids"
MASK_WORDS = frozenset("mask masks gt groundtruth truth label labels annotation annotations seg segmentation".split())
PLAIN_WORDS = frozenset("image images img imgs rgb data input inputs defect_images anomaly_images".split())
NAME_FILES = ("classes.txt", "class_names.txt", "names.txt")
BACKGROUND_NAMES = frozenset({"background", "_background_", "bg"})
UNNAMED = "defect"
_ENDING = re.compile(r"(.+?)[_\-. ](?:mask|gt|label|labels|seg|segmentation|truth)$", re.IGNORECASE)


@dataclass
class Roles:
    """What each image is by the names of its folders and its own: normal, mask, or defect with its type."""

    normals: list[Path] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)
    defects: list[tuple[str, Path]] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether this can be a data set at all: normal images, or images with masks."""
        return bool(self.normals) or bool(self.masks and self.defects)


def roles_of(listing: Listing) -> Roles:
    """Sort all images by their names."""
    roles = Roles()
    twins: dict[tuple[Path, str], set[str]] = {}
    for path in listing.images:
        twins.setdefault((path.parent, path.stem), set()).add(path.suffix.lower())
    for path in listing.images:
        folders = Path(listing.relative(path)).parts[:-1]
        ending = _ENDING.match(path.stem)
        beside = ending and (path.parent, ending[1]) in twins
        lossless_twin = path.suffix.lower() == ".png" and len(twins[path.parent, path.stem]) > 1
        if any(_is_mask_folder(name) for name in folders) or beside or lossless_twin:
            roles.masks.append(path)
        elif any(is_normal(name) for name in folders):
            roles.normals.append(path)
        elif folders:
            roles.defects.append((_type_of(folders), path))
    return roles


def describe_flat(listing: Listing, roles: Roles) -> Described:
    """Types are named by their folders, or by class ids in the masks where a file names the classes."""
    found = Described(FORM, listing.folder)
    names = _class_names(listing)
    pairs, problems, unused = _matched(roles)
    if names:
        found.form = CLASS_FORM
        found = assemble(found, [_by_class(image, mask, names) for _, image, mask in pairs], listing)
    else:
        empty = [one for one in pairs if one[0] == UNNAMED and not MaskFile(one[2]).read().any()]
        for defect, image, mask in pairs:
            if (defect, image, mask) not in empty:
                found.pairs.setdefault(defect, []).append(Labelled(image.stem, image, MaskFile(mask)))
        add_normals(found, [(image, _part(image, listing)) for _, image, _ in empty])
        if empty:
            found.notice(f"{len(empty)} images whose mask is empty are read as normal images")
        if UNNAMED in found.pairs and (values := _several_values(found.pairs[UNNAMED])):
            found.notice(
                f"masks hold the values {', '.join(values)}: to learn them as types, add classes.txt with "
                "the names of 1, 2, ..., one a line"
            )
    for text in problems:
        found.problem(text)
    add_normals(found, [(path, _part(path, listing)) for path in roles.normals])
    skipped(found, "masks without image", unused, listing.relative)
    loose = [path for path in listing.images if path.parent == listing.folder]
    skipped(found, "in no folder of normal or defect images", loose, listing.relative)
    return found


def _matched(roles: Roles) -> tuple[list[tuple[str, Path, Path]], list[str], list[Path]]:
    """(type, image, mask) of each defect image, problems, and masks of no image."""
    by_stem: dict[str, list[Path]] = {}
    for mask in roles.masks:
        ending = _ENDING.match(mask.stem)
        for stem in {mask.stem, ending[1] if ending else mask.stem, mask.stem.removeprefix("mask_")}:
            by_stem.setdefault(stem, []).append(mask)
    pairs, problems, used = [], [], set[Path]()
    for defect, image in roles.defects:
        candidates = by_stem.get(image.stem, [])
        own = [mask for mask in candidates if mask.parent == image.parent]
        named = [mask for mask in candidates if plain_name(defect) in plain_name(mask.parent.as_posix())]
        fitting = own or (named if len(candidates) > 1 else candidates)
        if len(fitting) == 1:
            pairs.append((defect, image, fitting[0]))
            used.add(fitting[0])
        elif fitting or candidates:
            listed = ", ".join(mask.as_posix() for mask in (fitting or candidates)[:3])
            problems.append(f"{image}: several masks fit ({listed}). Keep one, or name the mask folder by the type.")
        else:
            problems.append(f"{image}: image without mask. Add {image.stem}_mask.png beside it or remove it.")
    return pairs, problems, [mask for mask in roles.masks if mask not in used]


def _by_class(image: Path, mask: Path, names: dict[str, str]) -> Annotated:
    labels = [label for label, _ in inspect_mask(mask).values]
    masks = {names.get(label, f"class {label}"): MaskFile(mask, (label,)) for label in labels}
    return Annotated(image, masks, part_of(image.parent.name))


def _class_names(listing: Listing) -> dict[str, str]:
    """Value -> name: line 1 names the value 1, or 0 where it says background."""
    for path in listing.of(".txt"):
        if path.name in NAME_FILES:
            lines = [line for line in listing.lines(path) if line]
            start = 0 if lines and plain_name(lines[0]) in BACKGROUND_NAMES else 1
            return {str(number): name for number, name in enumerate(lines, start) if number}
    return {}


def _several_values(pairs: Sequence[Labelled]) -> list[str]:
    """The labels that the first 20 masks hold, where there are several but few."""
    labels = {label for pair in pairs[:20] for label, _ in inspect_mask(pair.mask.files[0]).values}
    return sorted(labels, key=natural_key) if 1 < len(labels) <= 20 else []


def _is_mask_folder(name: str) -> bool:
    return bool(set(re.split(r"[_\W]+", plain_name(name))) & MASK_WORDS)


def _type_of(folders: Sequence[str]) -> str:
    """The innermost folder name that says something."""
    telling = [name for name in folders if plain_name(name) not in PLAIN_WORDS and not part_of(name)]
    return telling[-1] if telling else UNNAMED


def _part(path: Path, listing: Listing) -> str:
    return next((part for name in Path(listing.relative(path)).parts[:-1] if (part := part_of(name))), "")
