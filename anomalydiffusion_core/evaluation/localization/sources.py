"""Where the images of an evaluation come from: known by their content at once, read only when a training needs them.

A table of many methods then never holds more than the images of one of them, and a run that is known by the content of
its files reads none at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest
from pathlib import Path

import torch
from torch import Tensor

from ...data.images import read_image, resize_image
from ...data.manifest_checks import check_hashes, unlisted_notices
from ...data.mask_files import read_mask
from ...data.mask_resizing import resize_mask
from ...data.mvtec import AnomalyDataset, DefectPair, load_images, load_pairs
from ...data.pairs import MANIFEST, ExportedPair, load_exported, load_exported_tensors, recorded_method
from ...data.provenance import SOURCES, Mark, Marks, file_marks, held_out_marks, look_of, read_sources, training_marks
from ...errors import InputError
from ...files import file_digest, tensor_digest
from .training import Pairs

UNKNOWN_METHOD = "other method"
"""The method of a folder whose manifest does not name one."""
HELD_BYTES = 2**29
"""Test images of at most this size stay in memory between two evaluations."""


@dataclass(frozen=True)
class Sample:
    """A pair to show: its type, image [3,H,W], mask [1,H,W] and the normal image [3,H,W] below it, if known."""

    key: str
    image: Tensor
    mask: Tensor
    normal: Tensor | None = None


@dataclass(frozen=True)
class PairSource:
    """Pairs of defects.

    Attributes:
        digest: changes with the content of any image or mask, and with their types and order.
        keys: `object/defect` of each pair.
        read: side in pixels -> the pairs, resized to squares of that side.
        sample: place in `keys` -> this pair in its own size, to show.
        marks: gives the marks of what the pairs were learned from, and of the images themselves.
        objects: whether the objects in `keys` are known; folders of other methods often leave them out.
        method: what made the pairs, see `recorded_method`; empty for pairs in memory.
        notices: what a reader of results should know of the folder.
        part: places in `keys` -> a source of these pairs alone.
    """

    digest: str
    keys: Sequence[str]
    read: Callable[[int], Pairs]
    sample: Callable[[int], Sample]
    marks: Callable[[], Marks] = dict
    objects: bool = False
    method: str = ""
    notices: tuple[str, ...] = ()
    part: Callable[[Sequence[int]], PairSource] | None = None

    @property
    def count(self) -> int:
        """Number of pairs of all types together."""
        return len(self.keys)

    def first(self, count: int) -> PairSource:
        """The first ``count`` pairs of each type. Raises InputError where a type has fewer."""
        seen: dict[str, int] = {}
        places = []
        for place, key in enumerate(self.keys):
            seen[key] = seen.get(key, 0) + 1
            if seen[key] <= count:
                places.append(place)
        for key, there in seen.items():
            if there < count:
                raise InputError(f"pair_counts: {count}, but there are {there} pairs of {key}. Generate more.")
        if len(places) == len(self.keys):
            return self
        if self.part is None:
            raise InputError("pair_counts: these pairs cannot be divided. Give a folder of pairs.")
        return self.part(places)

    def samples(self, number: int) -> list[Sample]:
        """At most so many pairs to show, the types in turn."""
        return [self.sample(place) for place in _in_turn(self.keys)[:number]]


@dataclass(frozen=True)
class NormalSource:
    """Images without defect: `read` gives [N,3,s,s] for a side in pixels, `marks` what they are recognised by."""

    digest: str
    count: int
    read: Callable[[int], Tensor]
    marks: Callable[[], Marks] = dict
    one: Callable[[int], Tensor] | None = None

    def image(self, place: int) -> Tensor:
        """One image [3,H,W] in its own size. Raises InputError where that is not known."""
        if self.one is None:
            raise InputError("view: tiles need normal images in their own size. Use a data set on disk.")
        return self.one(place)


@dataclass(frozen=True)
class HeldOutImages:
    """Defective and normal images to test on, read in batches; the defects come first.

    Attributes:
        keys: `object/defect` of each defective image.
        count: number of all images.
        digest: changes with the content of any of them.
        read: (first, end, side) -> images [n,3,s,s] and masks [n,1,s,s] in {0,1}; side 0 keeps their own size.
        marks: gives the marks of all of them.
    """

    keys: Sequence[str]
    count: int
    digest: str
    read: Callable[[int, int, int], tuple[Tensor, Tensor]]
    marks: Callable[[], Marks] = dict
    _held: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def batches(self, size: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images and masks in order, `batch` at a time. What fits into half a gigabyte is read only once."""
        hold = self.count * size**2 * 16 <= HELD_BYTES
        for start in range(0, self.count, batch):
            place = (start, min(start + batch, self.count), size)
            part = self._held.get(place) or self.read(*place)
            if hold:
                self._held[place] = part
            yield part

    def image(self, place: int, size: int) -> tuple[Tensor, Tensor]:
        """One image [3,s,s] and its mask [1,s,s]."""
        images, masks = self.read(place, place + 1, size)
        return images[0], masks[0]

    def shown(self, number: int) -> list[int]:
        """Indices of at most so many defects, types in turn."""
        return _in_turn(self.keys)[:number]


def real_pairs(dataset: AnomalyDataset) -> PairSource:
    """The few training pairs of a data set."""
    kinds = {kind.key: kind.train for kind in dataset.types if kind.train}
    pairs = [(key, pair) for key, part in kinds.items() for pair in part]

    def sample(place: int) -> Sample:
        key, pair = pairs[place]
        return Sample(key, read_image(pair.image_path, pair.bits), pair.read_mask())

    return PairSource(
        _digest_files(_files_of(pairs), str(dataset.bits)),
        [key for key, _ in pairs],
        lambda size: {key: load_pairs(part, size) for key, part in kinds.items()},
        sample,
        lambda: training_marks(dataset),
        True,
    )


def pairs_folder(folder: Path) -> PairSource:
    """Pairs of an export folder or of another method, see `load_exported`."""
    pairs = load_exported(folder)
    check_hashes(folder, pairs)
    notices = tuple(
        unlisted_notices(folder, load_exported(folder, every=True)) if (folder / MANIFEST).is_file() else ()
    )
    return _exported(folder, pairs, notices)


def _exported(folder: Path, pairs: Sequence[ExportedPair], notices: tuple[str, ...]) -> PairSource:
    def sample(place: int) -> Sample:
        pair = pairs[place]
        normal = None if pair.normal is None else read_image(pair.normal, pair.bits)
        return Sample(pair.key, read_image(pair.image, pair.bits), read_mask(pair.mask), normal)

    return PairSource(
        _digest_files([(pair.key, path) for pair in pairs for path in (pair.image, pair.mask)]),
        [pair.key for pair in pairs],
        lambda size: load_exported_tensors(pairs, size),
        sample,
        lambda: _marks_of_folder(folder, pairs),
        any(pair.record for pair in pairs),
        recorded_method([pair.record for pair in pairs]) or UNKNOWN_METHOD,
        notices,
        lambda places: _exported(folder, [pairs[place] for place in places], notices),
    )


def _marks_of_folder(folder: Path, pairs: Sequence[ExportedPair]) -> dict[str, Mark]:
    """What pairs were learned from, and the images themselves: a pair may be a test image that was copied there."""
    named = [str(pair.record[SOURCES]) for pair in pairs if pair.record.get(SOURCES)]
    own = {f"{folder.name}/{pair.image.relative_to(folder).as_posix()}": Mark.of_file(pair.image) for pair in pairs}
    return read_sources(folder, named) | own


def pair_batches(images: Sequence[Tensor], masks: Sequence[Tensor], types: Sequence[str], fallback: str) -> PairSource:
    """Pairs that are in memory as batches: images [N,3,H,W] and masks [N,1,H,W], the n-th of the n-th type.

    types: `object/defect` of each batch, or one for all; `fallback` where it is empty.

    Raises:
        InputError: lists that do not belong together, or sizes that differ in a pair or in a type.
    """
    types = [text.strip() for text in types] or [""]
    if len(images) != len(masks) or len(types) not in (1, len(images)):
        raise InputError(
            f"images: {len(images)} batches, {len(masks)} of masks and {len(types)} of defect_type. Connect what "
            "belongs to the same samples."
        )
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for place, (batch, inside) in enumerate(zip(images, masks, strict=True)):
        if len(batch) != len(inside) or batch.shape[2:] != inside.shape[2:]:
            raise InputError(
                f"masks: {tuple(inside.shape)} for images {tuple(batch.shape)}. Give one mask of equal size for each "
                "image."
            )
        found.setdefault(types[place % len(types)] or fallback, []).append((batch, inside))
    for key, parts in found.items():
        sizes = {tuple(batch.shape[2:]) for batch, _ in parts}
        if len(sizes) > 1:
            raise InputError(f"images: {key} comes in several sizes {sorted(sizes)}. Connect images of one size.")
    joined = {key: [torch.cat(part) for part in zip(*parts, strict=True)] for key, parts in found.items()}
    known = fallback not in joined
    return replace(pair_tensors({key: (batch, inside) for key, (batch, inside) in joined.items()}), objects=known)


def pair_tensors(pairs: Pairs) -> PairSource:
    """Pairs that are in memory."""

    def read(size: int) -> Pairs:
        return {key: (resize_image(images, size), resize_mask(masks, size)) for key, (images, masks) in pairs.items()}

    entries = [(key, *pair) for key, (images, masks) in pairs.items() for pair in zip(images, masks, strict=True)]
    digest = hashlib.sha256()
    for key, (images, masks) in pairs.items():
        digest.update(f"{key}|{tensor_digest(images, masks)}\n".encode())

    def marks() -> dict[str, Mark]:
        return {f"{key}, image {place}": Mark("", look_of(image)) for place, (key, image, _) in enumerate(entries)}

    def part(places: Sequence[int]) -> PairSource:
        chosen: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for place in places:
            key, image, mask = entries[place]
            chosen.setdefault(key, []).append((image, mask))
        return pair_tensors(
            {k: (torch.stack([i for i, _ in own]), torch.stack([m for _, m in own])) for k, own in chosen.items()}
        )

    keys = [key for key, *_ in entries]
    return PairSource(digest.hexdigest(), keys, read, lambda place: Sample(*entries[place]), marks, part=part)


def normal_images(dataset: AnomalyDataset) -> NormalSource:
    """The normal training images of a data set."""
    entries = [("normal", path) for path in dataset.normals]
    return NormalSource(
        _digest_files(entries, str(dataset.bits)),
        len(entries),
        lambda size: load_images(dataset.normals, size, dataset.bits),
        lambda: file_marks(dataset, dataset.normals),
        lambda place: read_image(dataset.normals[place], dataset.bits),
    )


def held_out_images(dataset: AnomalyDataset) -> HeldOutImages:
    """The defects of a data set that are kept for testing, then its normal test images.

    Raises InputError when no defect was kept for testing.
    """
    pairs = [pair for kind in dataset.types for pair in kind.test]
    keys = [kind.key for kind in dataset.types for _ in kind.test]
    if not pairs:
        raise InputError(f"dataset: no defect image of {dataset.object} is kept for testing. Choose another split.")
    entries: list[DefectPair | Path] = [*pairs, *dataset.test_normals]

    def one(entry: DefectPair | Path, size: int) -> tuple[Tensor, Tensor]:
        if isinstance(entry, DefectPair):
            return load_pairs([entry], size)
        image = load_images([entry], size, dataset.bits)
        return image, torch.zeros_like(image[:, :1])

    def read(first: int, end: int, size: int) -> tuple[Tensor, Tensor]:
        parts = [one(entry, size) for entry in entries[first:end]]
        return torch.cat([image for image, _ in parts]), torch.cat([mask for _, mask in parts])

    files = _files_of(list(zip(keys, pairs, strict=True)))
    files += [("normal", path) for path in dataset.test_normals]
    digest = _digest_files(files, str(dataset.bits))
    return HeldOutImages(keys, len(entries), digest, read, lambda: held_out_marks(dataset))


def held_out_tensors(images: Tensor, masks: Tensor, keys: Sequence[str] = ()) -> HeldOutImages:
    """Test images [N,3,H,W] and masks [N,1,H,W] that are in memory, the defects first; `keys` are their types."""

    def read(first: int, end: int, size: int) -> tuple[Tensor, Tensor]:
        if not size:
            return images[first:end], masks[first:end]
        return resize_image(images[first:end], size), resize_mask(masks[first:end], size)

    return HeldOutImages(keys, len(images), tensor_digest(images, masks), read)


def _files_of(pairs: Sequence[tuple[str, DefectPair]]) -> list[tuple[str, Path]]:
    """The files of pairs with the type of each and what is read of it."""
    return [(key + choice, path) for key, pair in pairs for path, choice in pair.read_files]


def _digest_files(entries: Sequence[tuple[str, Path]], more: str = "") -> str:
    digest = hashlib.sha256(more.encode())
    of_file = {path: file_digest(path) for path in {path for _, path in entries}}  # one label file may serve all
    for role, path in entries:
        digest.update(f"{role}|{of_file[path]}\n".encode())
    return digest.hexdigest()


def _in_turn(keys: Sequence[str]) -> list[int]:
    """Places of all keys, the different ones in turn."""
    kinds = [[place for place, key in enumerate(keys) if key == kind] for kind in dict.fromkeys(keys)]
    return [place for place in chain.from_iterable(zip_longest(*kinds)) if place is not None]
