"""Where the images of an evaluation come from: known by their content at once, read only when a training needs them.

A table of many methods then never holds more than the images of one of them, and a run that is known by the content of
its files reads none at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

import torch
from torch import Tensor

from ...data.images import read_image, read_mask, resize_image, resize_mask
from ...data.mvtec import AnomalyDataset, DefectPair, load_images, load_pairs
from ...data.pairs import ExportedPair, load_exported, load_exported_tensors, recorded_method
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
        counts: `object/defect` -> number of pairs.
        read: side in pixels -> the pairs, resized to squares of that side.
        samples: number -> at most so many pairs to show, the types in turn, in their own size.
        files: hashes of the image files.
        method: what made the pairs, see `recorded_method`; empty for pairs in memory.
    """

    digest: str
    counts: Mapping[str, int]
    read: Callable[[int], Pairs]
    samples: Callable[[int], list[Sample]]
    files: frozenset[str] = frozenset()
    method: str = ""

    @property
    def count(self) -> int:
        """Number of pairs of all types together."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class NormalSource:
    """Images without defect: `read` gives [N,3,s,s] for a side in pixels."""

    digest: str
    count: int
    read: Callable[[int], Tensor]


class HeldOutImages:
    """Defective and normal images to test on, read in batches; the defects come first.

    Attributes:
        keys: `object/defect` of each defective image.
        count: number of all images.
        digest: changes with the content of any of them.
        files: hashes of the files of the defective images.
    """

    def __init__(
        self,
        keys: Sequence[str],
        count: int,
        digest: str,
        read: Callable[[int, int, int], tuple[Tensor, Tensor]],
        files: frozenset[str] = frozenset(),
    ) -> None:
        """`read`: (first, end, side) -> images [n,3,s,s] and masks [n,1,s,s] in {0,1}."""
        self.keys = tuple(keys)
        self.count = count
        self.digest = digest
        self.files = files
        self._read = read
        self._held: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}

    def batches(self, size: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images and masks in order, `batch` at a time. What fits into half a gigabyte is read only once."""
        hold = self.count * size**2 * 16 <= HELD_BYTES
        for start in range(0, self.count, batch):
            place = (start, min(start + batch, self.count), size)
            part = self._held.get(place) or self._read(*place)
            if hold:
                self._held[place] = part
            yield part

    def image(self, place: int, size: int) -> tuple[Tensor, Tensor]:
        """One image [3,s,s] and its mask [1,s,s]."""
        images, masks = self._read(place, place + 1, size)
        return images[0], masks[0]

    def shown(self, number: int) -> list[int]:
        """Indices of at most so many defects, types in turn."""
        kinds = [[i for i, key in enumerate(self.keys) if key == kind] for kind in dict.fromkeys(self.keys)]
        return _in_turn(kinds)[:number]


def real_pairs(dataset: AnomalyDataset) -> PairSource:
    """The few training pairs of a data set."""
    kinds = {kind.key: kind.train for kind in dataset.types if kind.train}
    entries = [(key, path) for key, pairs in kinds.items() for p in pairs for path in (p.image_path, p.mask_path)]

    def samples(number: int) -> list[Sample]:
        chosen = _in_turn([[(key, pair) for pair in pairs] for key, pairs in kinds.items()])[:number]
        return [Sample(key, read_image(p.image_path, p.bits), read_mask(p.mask_path)) for key, p in chosen]

    return PairSource(
        _digest_files(entries, str(dataset.bits)),
        {key: len(pairs) for key, pairs in kinds.items()},
        lambda size: {key: load_pairs(pairs, size) for key, pairs in kinds.items()},
        samples,
    )


def pairs_folder(folder: Path) -> PairSource:
    """Pairs of an export folder or of another method, see `load_exported`."""
    pairs = load_exported(folder)
    kinds = dict.fromkeys(pair.key for pair in pairs)
    entries = [(pair.key, path) for pair in pairs for path in (pair.image, pair.mask)]

    def samples(number: int) -> list[Sample]:
        chosen: list[ExportedPair] = _in_turn([[pair for pair in pairs if pair.key == kind] for kind in kinds])
        return [
            Sample(p.key, read_image(p.image), read_mask(p.mask), None if p.normal is None else read_image(p.normal))
            for p in chosen[:number]
        ]

    return PairSource(
        _digest_files(entries),
        {kind: sum(pair.key == kind for pair in pairs) for kind in kinds},
        lambda size: load_exported_tensors(pairs, size),
        samples,
        frozenset(file_digest(pair.image) for pair in pairs),
        recorded_method([pair.record for pair in pairs]) or UNKNOWN_METHOD,
    )


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
    return pair_tensors({key: (batch, inside) for key, (batch, inside) in joined.items()})


def pair_tensors(pairs: Pairs) -> PairSource:
    """Pairs that are in memory."""

    def read(size: int) -> Pairs:
        return {key: (resize_image(images, size), resize_mask(masks, size)) for key, (images, masks) in pairs.items()}

    def samples(number: int) -> list[Sample]:
        places = [[(key, place) for place in range(len(images))] for key, (images, _) in pairs.items()]
        return [Sample(key, pairs[key][0][place], pairs[key][1][place]) for key, place in _in_turn(places)[:number]]

    digest = hashlib.sha256()
    for key, (images, masks) in pairs.items():
        digest.update(f"{key}|{tensor_digest(images, masks)}\n".encode())
    counts = {key: len(images) for key, (images, _) in pairs.items()}
    return PairSource(digest.hexdigest(), counts, read, samples)


def normal_images(dataset: AnomalyDataset) -> NormalSource:
    """The normal training images of a data set."""
    entries = [("normal", path) for path in dataset.normals]
    return NormalSource(
        _digest_files(entries, str(dataset.bits)),
        len(entries),
        lambda size: load_images(dataset.normals, size, dataset.bits),
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

    files = [(key, path) for key, p in zip(keys, pairs, strict=True) for path in (p.image_path, p.mask_path)]
    files += [("normal", path) for path in dataset.test_normals]
    defects = frozenset(file_digest(pair.image_path) for pair in pairs)
    return HeldOutImages(keys, len(entries), _digest_files(files, str(dataset.bits)), read, defects)


def held_out_tensors(images: Tensor, masks: Tensor, keys: Sequence[str] | None = None) -> HeldOutImages:
    """Test images [N,3,H,W] and masks [N,1,H,W] that are in memory, the defects first.

    `keys`: the types of the defects; by default every image with a mask is called `defect`.
    """
    if len(images) != len(masks) or images.shape[2:] != masks.shape[2:]:
        raise InputError(
            f"test set: images {tuple(images.shape)}, masks {tuple(masks.shape)}. "
            "Give one mask of equal size for each image."
        )

    def read(first: int, end: int, size: int) -> tuple[Tensor, Tensor]:
        return resize_image(images[first:end], size), resize_mask(masks[first:end], size)

    defects = int((masks.amax(dim=(1, 2, 3)) > 0).sum())
    named = ["defect"] * defects if keys is None else list(keys)
    return HeldOutImages(named, len(images), tensor_digest(images, masks), read)


def _digest_files(entries: Sequence[tuple[str, Path]], more: str = "") -> str:
    digest = hashlib.sha256(more.encode())
    for role, path in entries:
        digest.update(f"{role}|{file_digest(path)}\n".encode())
    return digest.hexdigest()


def _in_turn(groups: Sequence[Sequence]) -> list:
    return [entry for entry in chain.from_iterable(zip_longest(*groups)) if entry is not None]
