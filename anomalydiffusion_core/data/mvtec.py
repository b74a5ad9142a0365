"""Defect data sets in the MVTec AD layout, checked as a whole before anything is learned from them.

``<root>/<category>/train/good``, ``test/good``, ``test/<defect>`` and ``ground_truth/<defect>/<name>_mask.png``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DatasetError, InputError
from ..files import file_digest
from ..options import chosen_name
from .formats.described import Described, Labelled, MaskFile, MaskSource
from .formats.recognise import describe
from .images import image_size, read_image, resize_image, stored_bits
from .mask_resizing import resize_mask
from .pairing import list_folders
from .splits import SplitSettings, listed_names, natural_key, runs_text

PROBLEMS_SHOWN = 20
SUSPICIOUS_COVER = 0.9


@dataclass(frozen=True)
class DefectPair:
    """One defect image and its mask.

    mask_path: the file that holds the mask, which may hold others too; only `read_mask` knows how it is drawn.
    bits: depth of the samples of the whole data set, see `read_image`.
    """

    object: str
    defect: str
    name: str
    image_path: Path
    mask_path: Path
    bits: int | None = None
    mask: MaskSource | None = None

    @property
    def mask_files(self) -> tuple[Path, ...]:
        """All files that the mask is made of."""
        return self.mask.files if self.mask else (self.mask_path,)

    def read_mask(self) -> Tensor:
        """The mask [1, H, W] float32 of {0, 1}. Raises DatasetError for a file that cannot be read."""
        return (self.mask or MaskFile(self.mask_path)).read()


@dataclass(frozen=True)
class DefectType:
    """All pairs of one defect of one object, divided into learning and testing."""

    object: str
    defect: str
    train: tuple[DefectPair, ...]
    test: tuple[DefectPair, ...]

    @property
    def key(self) -> str:
        """`object/defect`, the name of the type in bundles and widgets."""
        return f"{self.object}/{self.defect}"

    @property
    def split_names(self) -> dict[str, list[str]]:
        """The names of both parts, for records."""
        return {"train": [pair.name for pair in self.train], "test": [pair.name for pair in self.test]}

    def describe(self) -> str:
        """Which pairs train and which test, as one line."""
        names = self.split_names
        ordered = sorted((*names["train"], *names["test"]), key=natural_key)
        train, test = (runs_text(names[part], ordered) for part in ("train", "test"))
        return (
            f"{self.key}: {len(self.train)} training pairs, {len(self.test)} for testing; train {train}; test {test}"
        )


@dataclass(frozen=True)
class AnomalyDataset:
    """One checked category. `notices` are oddities the user should know of but that do not stop the work.

    split_options: what the split rule was given, for records. form: how the folder was read.
    """

    root: Path
    object: str
    normals: tuple[Path, ...]
    test_normals: tuple[Path, ...]
    types: tuple[DefectType, ...]
    split_rule: str
    notices: tuple[str, ...]
    bits: int | None = None
    split_options: Mapping[str, int] = field(default_factory=dict)
    form: str = "MVTec AD"

    def defect_type(self, key: str) -> DefectType:
        """The type called `object/defect`, or `defect` alone; the only type for an empty text.

        Raises InputError that lists the types when none has that name.
        """
        key = chosen_name("defect_type", key, [kind.key for kind in self.types])
        for kind in self.types:
            if key in (kind.key, kind.defect):
                return kind
        known = ", ".join(kind.key for kind in self.types) or "none, the folder holds normal images only"
        raise InputError(f"defect_type: '{key}' is not in {self.root / self.object}. Choose one of: {known}.")

    def fingerprint(self) -> str:
        """A short hash that changes when a file is added, removed or rewritten, or when the split changes."""
        digest = hashlib.sha256(f"{self.object}|{self.split_rule}|{self.bits}".encode())
        for role, path in self._files():
            stat = path.stat()
            digest.update(f"{role}|{path.name}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]

    def describe(self) -> str:
        """What was found, as lines of plain text for a report."""
        lines = [
            f"{self.object}: {len(self.normals)} normal images, {len(self.test_normals)} more for testing, "
            f"split '{self.split_rule}'"
            + "".join(f", {name} {value}" for name, value in self.split_options.items())
            + f"; read as {self.form}"
        ]
        lines += [f"  {kind.describe()}" for kind in self.types]
        lines += [f"  notice: {notice}" for notice in self.notices]
        return "\n".join(lines)

    def _files(self) -> list[tuple[str, Path]]:
        files = [("normal", path) for path in self.normals] + [("test normal", path) for path in self.test_normals]
        for kind in self.types:
            for part, pairs in (("train", kind.train), ("test", kind.test)):
                for pair in pairs:
                    files.append((f"{kind.key} {part}", pair.image_path))
                    files += [(f"{kind.key} {part} mask", path) for path in pair.mask_files]
        return files


def load_dataset(root: Path, category: str, split: SplitSettings | None = None) -> AnomalyDataset:
    """Find and check all files of one category. Images are only listed here; `load_pairs` reads them.

    Args:
        root: folder that holds the category folder.
        category: name of the object, one folder below `root`.
        split: applied to every defect type on its own.

    A category with normal images alone is accepted and has no types.

    Raises:
        InputError: a category that is a path, an unknown name in `defects`.
        DatasetError: a folder is missing or empty, or files do not fit; one message names all of them.
    """
    root = Path(root)
    folder = _category_folder(root, category)
    rule = split or SplitSettings()
    found = describe(folder)
    chosen = _chosen_defects(found, listed_names(rule.defects))
    normals, test_normals = found.normals, found.test_normals
    problems, notices = found.texts(found.problems, chosen), found.texts(found.notices, chosen)
    matched = {name: found.pairs[name] for name in chosen if name in found.pairs}
    if not normals and not problems:
        problems.append(f"{folder}: holds no normal images. Put images of normal parts into a folder called good.")
    if not matched and not problems:
        notices.append("no defect images: usable as normals; to learn defects add test/<defect> and ground_truth")
    if not test_normals:
        notices.append("test/good is missing or empty: image-level metrics are undefined")
    problems += _unreadable([*normals, *test_normals])
    bits: int | None = None
    if not problems:
        everything = [*normals, *test_normals, *(pair.image for pairs in matched.values() for pair in pairs)]
        depth = max(stored_bits(path) for path in everything)
        if depth != 8:
            bits = depth
            notices.append(f"deep images: brightness scaled for {depth} bits" if depth else "floating point in 0..1")
    for pairs in matched.values():
        _check_pairs(pairs, problems, notices)
    problems += rule.unknown({defect: [pair.name for pair in pairs] for defect, pairs in matched.items()})
    types = _divide(category, matched, rule, bits, problems, notices)
    if problems:
        raise DatasetError(_summary(folder, problems), problems)
    dataset = AnomalyDataset(root, category, tuple(normals), tuple(test_normals), types, rule.split, (), bits)
    notices += _duplicate_notices(dataset)
    return replace(dataset, notices=tuple(notices), split_options=rule.options, form=found.form)


def load_pairs(pairs: Sequence[DefectPair], size: int | tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """Read pairs as images [N,3,s,s] in [0,1] and masks [N,1,s,s] in {0,1}; no mask is empty.

    With `size` everything is resized to a square, or to (height, width), see `resize_image` and `resize_mask`;
    otherwise all must share one size.

    Raises:
        InputError: no pairs.
        DatasetError: a file cannot be read, or sizes differ and `size` is None.
    """
    if not pairs:
        raise InputError("pairs: none given. Choose a split that leaves images on this side.")
    images = [read_image(pair.image_path, pair.bits) for pair in pairs]
    masks = [pair.read_mask() for pair in pairs]
    for pair, image, mask in zip(pairs, images, masks, strict=True):
        if image.shape[1:] != mask.shape[1:]:
            raise DatasetError(_size_problem(pair.image_path, image.shape[1:], pair.mask_path, mask.shape[1:]))
    paths = [pair.image_path for pair in pairs]
    sized_masks = [resize_mask(mask[None], size)[0] if size else mask for mask in masks]
    return _stack(images, paths, size), torch.stack(sized_masks)


def load_images(paths: Sequence[Path], size: int | None, bits: int | None = None) -> Tensor:
    """Read images as [N,3,s,s] in [0,1]; sizes and errors as in `load_pairs`.

    `bits`: depth of deep images, `AnomalyDataset.bits`; without it the deepest of these images decides for all.
    """
    if not paths:
        raise InputError("images: none given. Check that the folder holds images.")
    if bits is None:
        bits = max(stored_bits(path) for path in paths)
    return _stack([read_image(path, bits) for path in paths], list(paths), size)


def _stack(images: list[Tensor], paths: list[Path], size: int | tuple[int, int] | None) -> Tensor:
    if size:
        return torch.cat([resize_image(image[None], size) for image in images])
    for image, path in zip(images, paths, strict=True):
        if image.shape != images[0].shape:
            raise DatasetError(
                f"{path}: {_size_text(image.shape[1:])} px, but {paths[0].name} has "
                f"{_size_text(images[0].shape[1:])} px. Give a size to which all are resized."
            )
    return torch.stack(images)


def _category_folder(root: Path, category: str) -> Path:
    if not root.is_dir():
        raise DatasetError(f"folder: {root} does not exist. Give the folder that holds the category folders.")
    if not category or Path(category).name != category or "\\" in category:
        raise InputError(f"category: '{category}' is not the name of a folder in {root}. Choose {_categories(root)}.")
    folder = root / category
    if not folder.is_dir():
        hint = f"Choose {_categories(root)}."
        if (root / "train").is_dir():
            hint = f"This looks like a category itself: use {root.parent} and category '{root.name}'."
        raise DatasetError(f"category: {folder} does not exist. {hint}")
    return folder


def _categories(root: Path) -> str:
    names = [entry.name for entry in list_folders(root) if (entry / "train").is_dir()]
    return "one of: " + ", ".join(names) if names else "a folder with train/good, test and ground_truth (none there)"


def _chosen_defects(found: Described, defects: Sequence[str]) -> list[str]:
    unknown = [name for name in defects if name not in found.types]
    if unknown:
        known = ", ".join(found.types) or "none there"
        raise InputError(f"defects: {', '.join(unknown)} not in {found.folder}. Choose from: {known}.")
    return [name for name in found.types if not defects or name in defects]


def _unreadable(paths: list[Path]) -> list[str]:
    problems = []
    for path in paths:
        try:
            image_size(path)
        except DatasetError as error:
            problems.append(str(error))
    return problems


def _check_pairs(pairs: Sequence[Labelled], problems: list[str], notices: list[str]) -> None:
    for _, image_path, source, _ in pairs:
        mask_path = source.files[0]
        try:
            size, mask = image_size(image_path), source.read()
        except DatasetError as error:
            problems.append(str(error))
            continue
        if tuple(mask.shape[1:]) != size:
            problems.append(_size_problem(image_path, size, mask_path, mask.shape[1:]))
        elif not bool(mask.any()):
            problems.append(f"{mask_path}: the mask is empty. Draw the defect or move the image to test/good.")
        elif float(mask.mean()) > SUSPICIOUS_COVER:
            notices.append(f"{mask_path.name} covers {float(mask.mean()):.0%} of its image: is it inverted?")


def _divide(
    category: str,
    matched: Mapping[str, Sequence[Labelled]],
    rule: SplitSettings,
    bits: int | None,
    problems: list[str],
    notices: list[str],
) -> tuple[DefectType, ...]:
    types = []
    for defect, files in matched.items():
        pairs = {
            one.name: DefectPair(category, defect, one.name, one.image, one.mask.files[0], bits, one.mask)
            for one in files
        }
        train, test = rule.divide(list(pairs), defect)
        if not train:
            problems.append(
                f"split: '{rule.split}' leaves no training pair of the {len(pairs)} of {defect}. "
                "Use 'first n' or add images."
            )
        if not test:
            notices.append(f"{defect}: all {len(pairs)} pairs are used for training, none is left for testing")
        types.append(DefectType(category, defect, tuple(pairs[n] for n in train), tuple(pairs[n] for n in test)))
    return tuple(types)


def _duplicate_notices(dataset: AnomalyDataset) -> list[str]:
    """Identical files in different roles: a defect among the normal images, or a training image in the test set."""
    by_size: dict[int, list[tuple[str, Path]]] = {}
    for role, path in dataset._files():
        if not role.endswith(" mask"):
            by_size.setdefault(path.stat().st_size, []).append((role, path))
    by_content: dict[str, list[tuple[str, Path]]] = {}
    for candidates in by_size.values():
        if len(candidates) > 1:
            for role, path in candidates:
                by_content.setdefault(file_digest(path), []).append((role, path))
    base = dataset.root / dataset.object
    return [
        "the same image twice: " + " = ".join(path.relative_to(base).as_posix() for _, path in group)
        for group in by_content.values()
        if len({role for role, _ in group}) > 1
    ]


def _size_problem(image_path: Path, size: Sequence[int], mask_path: Path, mask_size: Sequence[int]) -> str:
    return (
        f"{mask_path}: the mask is {_size_text(mask_size)} px, its image {image_path.name} is "
        f"{_size_text(size)} px. Export the mask at the size of the image."
    )


def _size_text(size: Sequence[int]) -> str:
    return f"{size[1]}x{size[0]}"


def _summary(folder: Path, problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    shown = [f"- {problem}" for problem in problems[:PROBLEMS_SHOWN]]
    if len(problems) > PROBLEMS_SHOWN:
        shown.append(f"- and {len(problems) - PROBLEMS_SHOWN} more of this kind")
    return f"{folder}: {len(problems)} problems. Correct them and load again.\n" + "\n".join(shown)
