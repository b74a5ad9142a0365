"""Defect data sets in the MVTec AD layout, checked as a whole before anything is learned from them.

``<root>/<category>/train/good``, ``test/good``, ``test/<defect>`` and ``ground_truth/<defect>/<name>_mask.png``.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DatasetError, InputError
from ..files import check_name
from ..options import chosen_name
from .checks import Findings, check_images, check_masks, common_depth, size_problem, size_text
from .class_maps import divide_class_maps
from .decoding import read_header
from .formats.described import TRAIN, Described, Labelled, MaskFile, MaskSource, mask_choice
from .formats.recognise import describe
from .images import read_image, resize_image, stored_bits
from .mask_resizing import resize_mask
from .pairing import folder_named, list_folders, same_name, some_of
from .same_images import duplicate_notices, shared_marks
from .splits import OWN, SplitSettings, listed_names, natural_key, runs_text

PROBLEMS_SHOWN = 20


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
    def read_files(self) -> list[tuple[Path, str]]:
        """The image and the files of its mask, each with what is read of it; "" where that is all of it."""
        return [(self.image_path, ""), *((path, mask_choice(self.mask)) for path in self.mask_files)]

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

    split_options: what the split rule was given, for records. form: how the folder was read. mask_options: what masks
    were read with, see `SplitSettings.mask_options`. place: the folder of the category, where its name is written in
    another way than `object`. parts: the data sets that this one was merged from.
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
    mask_options: str = ""
    place: Path | None = None
    parts: tuple[AnomalyDataset, ...] = field(default=(), repr=False)

    @property
    def folder(self) -> Path:
        """The folder of the category."""
        return self.place or self.root / self.object

    def defect_type(self, key: str) -> DefectType:
        """The type called `object/defect`, or `defect` alone; the only type for an empty text.

        Raises InputError that lists the types when none has that name.
        """
        key = chosen_name("defect_type", key, [kind.key for kind in self.types])
        for kind in self.types:
            if key in (kind.key, kind.defect):
                return kind
        known = ", ".join(kind.key for kind in self.types) or "none, the folder holds normal images only"
        raise InputError(f"defect_type: '{key}' is not in {self.folder}. Choose one of: {known}.")

    def fingerprint(self) -> str:
        """A short hash that changes when a file is added, removed or rewritten, or when the split changes."""
        digest = hashlib.sha256(f"{self.object}|{self.split_rule}|{self.bits}{self.mask_options}".encode())
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
    try:
        return _load(Path(root), category, split)
    except OSError as error:
        place = error.filename or root
        raise DatasetError(f"{place}: cannot be read ({error.strerror or error}). Check its permissions.") from error


def _load(root: Path, category: str, split: SplitSettings | None) -> AnomalyDataset:
    folder = category_folder(root, category)
    rule = split or SplitSettings()
    found = describe(folder)
    divide_class_maps(found, rule.classes)
    chosen = _chosen_defects(found, listed_names(rule.defects))
    findings = Findings(found.texts(found.problems, chosen), found.texts(found.notices, chosen))
    problems = findings.problems
    name = unicodedata.normalize("NFC", folder.name)
    for text, what in ((name, "category"), *((defect, "defect type") for defect in chosen)):
        try:
            check_name(text, what)
        except InputError as error:
            problems.append(f"{error} Rename the folder or class.")
    for own in _alike(chosen):
        problems.append(f"{folder}: the defect types {', '.join(own)} differ in case or accents only. Make them one.")
    matched = {defect: found.pairs[defect] for defect in chosen if defect in found.pairs}
    if not found.normals and not problems:
        if matched:
            findings.notices.append("no normal images: defects can be learned, but there are none to place them on")
        else:
            problems.append(
                f"{folder}: read as {found.form}, but it holds no defect and no normal image. Check its labels."
            )
    if not matched and not problems:
        findings.notices.append(
            "no defect images: usable as normals; to learn defects add test/<defect> and ground_truth"
        )
    if not found.test_normals:
        findings.notices.append("test/good is missing or empty: image-level metrics are undefined")
    defects = [pair.image for pairs in matched.values() for pair in pairs]
    headers = check_images([*defects, *found.test_normals, *found.normals], findings)
    bits = None if problems else common_depth(headers, findings)
    matched = check_masks(matched, headers, rule, findings)
    problems += rule.unknown({defect: [pair.name for pair in pairs] for defect, pairs in matched.items()})
    marks = {path: header.mark for path, header in headers.items()}
    types = _divide(name, matched, rule, bits, marks, findings)
    if problems:
        raise DatasetError(_summary(folder, problems), problems)
    normals, test_normals = found.normals, found.test_normals
    if rule.validation_rate:
        normals, test_normals = rule.held_out(found.normals)
        findings.notices.append(
            "validation split: tested on training pairs and normal images that are held out, to choose settings by; "
            "these are no figures of the test set, which is left out"
        )
        if types and not any(kind.test for kind in types):
            raise InputError(
                f"validation_rate: {rule.validation_rate}, but no type has two training pairs. Train on more pairs."
            )
    dataset = AnomalyDataset(
        root,
        name,
        tuple(normals),
        tuple(test_normals),
        types,
        rule.split,
        (),
        bits,
        rule.options,
        found.form,
        rule.mask_options,
        folder,
    )
    images = [(role, path) for role, path in dataset._files() if not role.endswith(" mask")]
    return replace(dataset, notices=(*findings.all_notices(), *duplicate_notices(images, folder, marks)))


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
    images, masks = [], []
    for pair in pairs:
        mask = pair.read_mask()[None]
        header = read_header(pair.image_path)
        if header.size != mask.shape[2:]:
            raise DatasetError(size_problem(pair.image_path, header, pair.mask_path, mask.shape[2:]))
        images.append(_read_sized(pair.image_path, size, pair.bits))
        masks.append(resize_mask(mask, size) if size else mask)
        _check_one_size(images, pair.image_path, pairs[0].image_path)
    return torch.cat(images), torch.cat(masks)


def load_images(paths: Sequence[Path], size: int | tuple[int, int] | None, bits: int | None = None) -> Tensor:
    """Read images as [N,3,s,s] in [0,1]; sizes and errors as in `load_pairs`. Each is resized before the next is read.

    `bits`: depth of deep images, `AnomalyDataset.bits`; without it the deepest of these images decides for all.
    """
    if not paths:
        raise InputError("images: none given. Check that the folder holds images.")
    if bits is None:
        bits = max(stored_bits(path) for path in paths)
    images: list[Tensor] = []
    for path in paths:
        images.append(_read_sized(path, size, bits))
        _check_one_size(images, path, paths[0])
    return torch.cat(images)


def _read_sized(path: Path, size: int | tuple[int, int] | None, bits: int | None) -> Tensor:
    """[1,3,H,W]; one at its own size is gone before the next is read."""
    image = read_image(path, bits)[None]
    return resize_image(image, size) if size else image


def _check_one_size(images: Sequence[Tensor], path: Path, first: Path) -> None:
    if images[-1].shape != images[0].shape:
        raise DatasetError(
            f"{path}: {size_text(images[-1].shape[2:])} px, but {first.name} has "
            f"{size_text(images[0].shape[2:])} px. Give a size to which all are resized."
        )


def category_folder(root: Path, category: str) -> Path:
    """The folder of a category, which is there and may hold one; looks at no file. Raises as `load_dataset`."""
    if not root.is_dir():
        raise DatasetError(f"folder: {root} does not exist. Give the folder that holds the category folders.")
    try:
        check_name(category, "category")
    except InputError as error:
        there = category in {entry.name for entry in list_folders(root)}
        raise InputError(f"{error} {'Rename the folder' if there else f'Choose {_categories(root)}'}.") from error
    folder = folder_named(root, category)
    if not folder.is_dir():
        hint = f"Choose {_categories(root)}."
        if (root / "train").is_dir():
            hint = f"This looks like a category itself: use {root.parent} and category '{root.name}'."
        raise DatasetError(f"category: {folder} does not exist. {hint}")
    return folder


def _categories(root: Path) -> str:
    names = [entry.name for entry in list_folders(root) if (entry / "train").is_dir() and _is_name(entry.name)]
    return "one of: " + ", ".join(names) if names else "a folder with train/good, test and ground_truth (none there)"


def _is_name(text: str) -> bool:
    try:
        check_name(text, "category")
    except InputError:
        return False
    return True


def _alike(names: Sequence[str]) -> list[list[str]]:
    """Names that people, and some file systems, take for the same one."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(same_name(name), []).append(name)
    return [own for own in groups.values() if len(own) > 1]


def _chosen_defects(found: Described, defects: Sequence[str]) -> list[str]:
    unknown = [name for name in defects if name not in found.types]
    if unknown:
        known = ", ".join(found.types) or "none there"
        raise InputError(f"defects: {', '.join(unknown)} not in {found.folder}. Choose from: {known}.")
    return [name for name in found.types if not defects or name in defects]


def _divide(
    category: str,
    matched: Mapping[str, Sequence[Labelled]],
    rule: SplitSettings,
    bits: int | None,
    known: Mapping[Path, str],
    findings: Findings,
) -> tuple[DefectType, ...]:
    """The types with their two parts. An image of several types trains in all of them, or in none."""
    pairs = {
        defect: {
            one.name: DefectPair(category, defect, one.name, one.image, one.mask.files[0], bits, one.mask)
            for one in files
        }
        for defect, files in matched.items()
    }
    stored = {defect: [one.name for one in files if one.part == TRAIN] for defect, files in matched.items()}
    parts = {defect: rule.divide(list(own), defect, stored[defect]) for defect, own in pairs.items()}
    if rule.split != OWN and any(one.part for files in matched.values() for one in files):
        findings.notices.append(f"the data set has a division of its own; the split '{OWN}' uses it")
    marks = shared_marks({defect: [pair.image_path for pair in own.values()] for defect, own in pairs.items()}, known)
    trained = {marks.get(pairs[defect][name].image_path) for defect, (train, _) in parts.items() for name in train}
    types = []
    for defect, (train, test) in parts.items():
        own = pairs[defect]
        moved = [name for name in test if marks.get(own[name].image_path, "") in trained]
        if moved:
            findings.notices.append(f"{defect}: {some_of(moved)} train too, as the same images train another type")
        train, test = [*train, *moved], [name for name in test if name not in moved]
        if not train:
            findings.problems.append(
                f"split: '{rule.split}' leaves no training pair of the {len(own)} of {defect}. "
                "Use 'first n' or add images."
            )
        if not test:
            findings.notices.append(f"{defect}: all {len(own)} pairs are used for training, none is left for testing")
        types.append(DefectType(category, defect, tuple(own[n] for n in train), tuple(own[n] for n in test)))
    return tuple(types)


def _summary(folder: Path, problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    shown = [f"- {problem}" for problem in problems[:PROBLEMS_SHOWN]]
    if len(problems) > PROBLEMS_SHOWN:
        shown.append(f"- and {len(problems) - PROBLEMS_SHOWN} more of this kind")
    return f"{folder}: {len(problems)} problems. Correct them and load again.\n" + "\n".join(shown)
