"""A data set written anew in another form: MVTec AD, COCO or YOLO, whatever it was read from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import check_name, new_folder, write_json
from ..options import Settings, option
from ..progress import Progress, Quiet
from .formats.beside import CLASS_FOLDER, write_anomalib, write_class_map, write_class_names
from .formats.coco_out import OutImage, coco_document
from .formats.described import GOOD, TEST, TRAIN
from .formats.yolo_out import data_yaml, label_path, yolo_lines
from .image_writing import JPEG_HELP, copy_image
from .images import image_size, write_mask
from .mvtec import AnomalyDataset, DefectPair, load_dataset
from .pairing import MASK_ENDING
from .splits import SplitSettings

MVTEC, COCO, YOLO = "mvtec", "coco", "yolo"
FORMS = (MVTEC, COCO, YOLO)
IMAGES, ANNOTATIONS = "images", "annotations"


@dataclass(frozen=True)
class ConvertSettings(Settings):
    """In which form a data set is written."""

    to: str = option(MVTEC, "Form to write.", choices=FORMS)
    jpeg_quality: int = option(0, JPEG_HELP, min=0, max=100)
    class_map: bool = option(
        False,
        "With mvtec: also write class_map/<type>/<name>.png. Each pixel holds the number of its type, its line "
        "in classes.txt, and 0 where there is none. Types of one image share its map.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.class_map and self.to != MVTEC:
            raise InputError(f"class_map: not with '{self.to}', which names its classes itself. Leave it off.")


@dataclass(frozen=True)
class _Entry:
    """An image of the new data set: where it comes from, its part, a folder and name, and its types."""

    source: Path
    part: str
    folder: str
    name: str
    pairs: tuple[DefectPair, ...] = ()


def open_source(source: Path, settings: ConvertSettings, splitting: SplitSettings) -> AnomalyDataset:
    """The category in a folder; the split only matters where the form has one. Raises as `load_dataset`."""
    place = source.absolute()
    if settings.to == MVTEC:
        splitting = replace(splitting, split="first n", train_count=10000)
    return load_dataset(place.parent, place.name, splitting)


def convert(dataset: AnomalyDataset, out: Path, settings: ConvertSettings, progress: Progress | None = None) -> str:
    """Write a data set to a new folder and return what was written, in one line.

    MVTec AD: all defect images are test images, as there. COCO and YOLO: the split of the data set decides which are
    in the part "train"; an image of several types is written once. Files are copied byte by byte where they can be.

    Raises InputError for a folder that holds something, and for names of types that cannot be folders.
    """
    for kind in dataset.types:
        check_name(kind.defect, "defect")
    bar = progress or Quiet()
    writers: dict[str, Callable[..., None]] = {MVTEC: _write_mvtec, COCO: _write_coco, YOLO: _write_yolo}
    entries = list(_mvtec_entries(dataset) if settings.to == MVTEC else _entries(dataset))
    bar.expect(len(entries))
    with new_folder(out) as draft:
        writers[settings.to](dataset, entries, draft, settings.jpeg_quality, bar)
        if settings.class_map:
            _write_class_maps(dataset, entries, draft)
    masks = sum(len(entry.pairs) for entry in entries)
    return f"{dataset.object}: {len(entries)} images and {masks} masks from {dataset.form} as {settings.to} in {out}"


def _mvtec_entries(dataset: AnomalyDataset) -> Iterator[_Entry]:
    yield from _normals(dataset.normals, TRAIN)
    yield from _normals(dataset.test_normals, TEST)
    for kind in dataset.types:
        for pair in (*kind.train, *kind.test):
            yield _Entry(pair.image_path, TEST, kind.defect, pair.name, (pair,))


def _entries(dataset: AnomalyDataset) -> Iterator[_Entry]:
    """Each image once. An image that trains for any type is in the part that trains."""
    pairs_of: dict[Path, list[DefectPair]] = {}
    training: set[Path] = set()
    for kind in dataset.types:
        for pair in (*kind.train, *kind.test):
            pairs_of.setdefault(pair.image_path, []).append(pair)
        training |= {pair.image_path for pair in kind.train}
    yield from _normals(dataset.normals, TRAIN)
    yield from _normals(dataset.test_normals, TEST)
    for path, pairs in pairs_of.items():
        part = TRAIN if path in training else TEST
        yield _Entry(path, part, pairs[0].defect, pairs[0].name, tuple(pairs))


def _normals(paths: Sequence[Path], part: str) -> Iterator[_Entry]:
    stems = [path.stem for path in paths]
    twice = {stem for stem in stems if stems.count(stem) > 1} if len(set(stems)) < len(stems) else set()
    for number, (path, stem) in enumerate(zip(paths, stems, strict=True)):
        yield _Entry(path, part, GOOD, f"{number:04d}_{stem}" if stem in twice else stem)


def _write_mvtec(dataset: AnomalyDataset, entries: Sequence[_Entry], out: Path, quality: int, bar: Progress) -> None:
    for entry in entries:
        copy_image(entry.source, out / entry.part / entry.folder / entry.name, quality)
        for pair in entry.pairs:
            write_mask(out / "ground_truth" / pair.defect / f"{entry.name}{MASK_ENDING}.png", pair.read_mask())
        bar.step()
    write_anomalib(out, dataset.object)


def _write_class_maps(dataset: AnomalyDataset, entries: Sequence[_Entry], out: Path) -> None:
    """Where types of one image overlap, the later one counts."""
    types = [kind.defect for kind in dataset.types]
    write_class_names(out, types)
    pairs_of: dict[Path, dict[str, DefectPair]] = {}
    for entry in entries:
        pairs_of.setdefault(entry.source, {}).update((pair.defect, pair) for pair in entry.pairs)
    for entry in entries:
        if not entry.pairs:
            continue
        own = pairs_of[entry.source]
        masks = [(number, own[name].read_mask()[0].numpy() > 0) for number, name in enumerate(types, 1) if name in own]
        write_class_map(out / CLASS_FOLDER / entry.folder / f"{entry.name}.png", masks)


def _write_coco(dataset: AnomalyDataset, entries: Sequence[_Entry], out: Path, quality: int, bar: Progress) -> None:
    types = [kind.defect for kind in dataset.types]
    for part in (TRAIN, TEST):
        own = [entry for entry in entries if entry.part == part]
        written = _written(own, out, quality, bar)
        if own:
            about = f"{dataset.object}, {part}"
            write_json(out / ANNOTATIONS / f"instances_{part}.json", coco_document(written, types, about))


def _write_yolo(dataset: AnomalyDataset, entries: Sequence[_Entry], out: Path, quality: int, bar: Progress) -> None:
    types = [kind.defect for kind in dataset.types]
    for image in _written(entries, out, quality, bar):
        label = out / label_path(f"{IMAGES}/{image.file}")
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(yolo_lines(image.masks, types), encoding="utf-8", newline="\n")
    parts = {entry.part for entry in entries}
    text = data_yaml(types, f"{IMAGES}/{TRAIN}", f"{IMAGES}/{TEST if TEST in parts else TRAIN}")
    (out / "data.yaml").write_text(text, encoding="utf-8", newline="\n")


def _written(entries: Sequence[_Entry], out: Path, quality: int, bar: Progress) -> Iterator[OutImage]:
    """Copy images below ``images`` and say what label files list of each."""
    for entry in entries:
        path = copy_image(entry.source, out / IMAGES / entry.part / entry.folder / entry.name, quality)
        masks: dict[str, np.ndarray] = {}
        for pair in entry.pairs:
            masks[pair.defect] = pair.read_mask()[0].numpy() > 0
        bar.step()
        yield OutImage(path.relative_to(out / IMAGES).as_posix(), image_size(entry.source), masks)
