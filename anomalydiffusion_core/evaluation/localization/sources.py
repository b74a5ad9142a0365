"""Where the pictures of an evaluation come from: known by their content at once, read only when a training needs them.

A table of many methods then never holds more than the pictures of one of them, and a run that is known by the content
of its files needs none at all.
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
from .batches import Pairs

UNKNOWN_METHOD = "other method"
"""A folder without a manifest does not say what made its pairs."""
HELD_BYTES = 2**29
"""Test pictures of up to so many bytes stay in memory between two evaluations."""


@dataclass(frozen=True)
class Sample:
    """A pair to show: its type, picture [3,H,W], mask [1,H,W] and the good picture [3,H,W] below it, if known."""

    key: str
    image: Tensor
    mask: Tensor
    normal: Tensor | None = None


@dataclass(frozen=True)
class PairSource:
    """Pairs of defects.

    Attributes:
        digest: changes with the content of any picture or mask, and with their types and order.
        counts: `object/defect` -> number of pairs.
        read: side in pixels -> the pairs, see `train_localizer`.
        samples: number -> so many pairs at most to show, the types in turn, in their own size.
        files: hashes of the picture files.
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
    """Pictures without defect: `read` gives [N,3,s,s] for a side in pixels."""

    digest: str
    count: int
    read: Callable[[int], Tensor]


class HeldOutPictures:
    """Defective and normal pictures to test on, read in batches; the defects come first.

    Attributes:
        keys: `object/defect` of each defective picture.
        count: number of all pictures.
        digest: changes with the content of any of them.
        files: hashes of the files of the defective pictures.
    """

    def __init__(
        self,
        keys: Sequence[str],
        count: int,
        digest: str,
        read: Callable[[int, int, int], tuple[Tensor, Tensor]],
        files: frozenset[str] = frozenset(),
    ) -> None:
        """`read`: (first, beyond the last, side) -> pictures [n,3,s,s] and masks [n,1,s,s] of {0,1}."""
        self.keys = tuple(keys)
        self.count = count
        self.digest = digest
        self.files = files
        self._read = read
        self._held: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}

    def batches(self, size: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All pictures and masks in order, `batch` at a time. What fits into half a gigabyte is read only once."""
        hold = self.count * size**2 * 16 <= HELD_BYTES
        for start in range(0, self.count, batch):
            place = (start, min(start + batch, self.count), size)
            part = self._held.get(place) or self._read(*place)
            if hold:
                self._held[place] = part
            yield part

    def picture(self, place: int, size: int) -> tuple[Tensor, Tensor]:
        """One picture [3,s,s] and its mask [1,s,s]."""
        images, masks = self._read(place, place + 1, size)
        return images[0], masks[0]

    def shown(self, number: int) -> list[int]:
        """Places of up to so many defects, types in turn."""
        return _in_turn([[i for i, key in enumerate(self.keys) if key == kind] for kind in dict.fromkeys(self.keys)])[
            :number
        ]


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
        chosen: list[ExportedPair] = _in_turn([[pair for pair in pairs if pair.key == kind] for kind in kinds])[
            :number
        ]
        return [
            Sample(p.key, read_image(p.image), read_mask(p.mask), None if p.normal is None else read_image(p.normal))
            for p in chosen
        ]

    return PairSource(
        _digest_files(entries),
        {kind: sum(pair.key == kind for pair in pairs) for kind in kinds},
        lambda size: load_exported_tensors(pairs, size),
        samples,
        frozenset(file_digest(pair.image) for pair in pairs),
        recorded_method([pair.record for pair in pairs]) or UNKNOWN_METHOD,
    )


def pair_tensors(pairs: Pairs) -> PairSource:
    """Pairs that are in memory, as `train_localizer` takes them."""

    def read(size: int) -> Pairs:
        return {key: (resize_image(images, size), resize_mask(masks, size)) for key, (images, masks) in pairs.items()}

    def samples(number: int) -> list[Sample]:
        places = [[(key, place) for place in range(len(images))] for key, (images, _) in pairs.items()]
        return [Sample(key, pairs[key][0][place], pairs[key][1][place]) for key, place in _in_turn(places)[:number]]

    digest = hashlib.sha256()
    for key, (images, masks) in pairs.items():
        digest.update(f"{key}|{tensor_digest(images)}|{tensor_digest(masks)}\n".encode())
    counts = {key: len(images) for key, (images, _) in pairs.items()}
    return PairSource(digest.hexdigest(), counts, read, samples)


def normal_pictures(dataset: AnomalyDataset) -> NormalSource:
    """The good training pictures of a data set."""
    entries = [("normal", path) for path in dataset.normals]
    return NormalSource(
        _digest_files(entries, str(dataset.bits)),
        len(entries),
        lambda size: load_images(dataset.normals, size, dataset.bits),
    )


def normal_tensors(normals: Tensor) -> NormalSource:
    """Good pictures [N,3,H,W] that are in memory."""
    return NormalSource(tensor_digest(normals), len(normals), lambda size: resize_image(normals, size))


def held_out_pictures(dataset: AnomalyDataset) -> HeldOutPictures:
    """The defects of a data set that are kept for testing, then its good test pictures.

    Raises InputError when no defect was kept for testing.
    """
    pairs = [pair for kind in dataset.types for pair in kind.test]
    keys = [kind.key for kind in dataset.types for _ in kind.test]
    if not pairs:
        raise InputError(f"dataset: no defect picture of {dataset.object} is kept for testing. Choose another split.")
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
    return HeldOutPictures(keys, len(entries), _digest_files(files, str(dataset.bits)), read, defects)


def held_out_tensors(images: Tensor, masks: Tensor, keys: Sequence[str] | None = None) -> HeldOutPictures:
    """Test pictures [N,3,H,W] and masks [N,1,H,W] that are in memory, the defects first.

    `keys`: the types of the defects; without them every picture with a mask is called `defect`.
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
    return HeldOutPictures(named, len(images), tensor_digest(images) + tensor_digest(masks), read)


def tensor_digest(values: Tensor) -> str:
    """A hash of a tensor's shape and float32 numbers."""
    plain = values.detach().to("cpu", torch.float32).contiguous()
    return hashlib.sha256(f"{tuple(plain.shape)}".encode() + plain.numpy().tobytes()).hexdigest()


def file_digest(path: Path) -> str:
    """A hash of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest_files(entries: Sequence[tuple[str, Path]], more: str = "") -> str:
    digest = hashlib.sha256(more.encode())
    for role, path in entries:
        digest.update(f"{role}|{file_digest(path)}\n".encode())
    return digest.hexdigest()


def _in_turn(groups: Sequence[Sequence]) -> list:
    return [entry for entry in chain.from_iterable(zip_longest(*groups)) if entry is not None]
