"""What is looked at in the files of a data set before anything is learned from them.

Every image is looked at by its header, every mask is read. What cannot work is a problem, what may be meant otherwise
is a notice; both name the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from ..errors import DatasetError
from .decoding import Header, decode, read_header
from .formats.described import Labelled, MaskFile, MaskSource, MaskTurned
from .images import measured_depth
from .mask_files import MaskReading, inspect_mask
from .pairing import some_of
from .splits import SplitSettings
from .structure import content_mark

SUSPICIOUS_COVER = 0.9
FAR_FROM_SQUARE = 2.0
CHECKSUM_BYTES = 2**28
"""So many bytes of PNG files are compared with their checksums, defect images first; the rest when they are read."""
ALPHA_PIXELS = 2**26
"""So many pixels of images with an alpha channel are decoded, to see that something in them is visible."""


@dataclass
class Findings:
    """What is wrong, and what should be known. names: for each kind of notice the files that it is about."""

    problems: list[str]
    notices: list[str]
    names: dict[str, list[str]] = field(default_factory=dict)

    def about(self, text: str, name: str) -> None:
        """Note a file for a notice that many files may share."""
        self.names.setdefault(text, []).append(name)

    def all_notices(self) -> list[str]:
        """All of them, those about many files as one line each."""
        grouped = [f"{some_of(names)}: {text}" for text, names in self.names.items()]
        return [*self.notices, *grouped]


def check_images(paths: Sequence[Path], findings: Findings) -> dict[Path, Header]:
    """The headers of all images that are whole. A damaged one is a problem, an odd one a notice."""
    headers: dict[Path, Header] = {}
    budget, alpha_pixels = CHECKSUM_BYTES, ALPHA_PIXELS
    for path in dict.fromkeys(paths):
        try:
            size = path.stat().st_size if path.is_file() else 0
            header = read_header(path, verify=size <= budget)
            budget -= size if header.mark and size <= budget else 0
        except DatasetError as error:
            findings.problems.append(str(error))
            continue
        if header.alpha and header.height * header.width <= alpha_pixels:
            alpha_pixels -= header.height * header.width
            try:
                decode(path)
            except DatasetError as error:
                findings.problems.append(str(error))
                continue
        headers[path] = header
        if header.frames > 1:
            findings.about("holds several images, the first is read", path.name)
        if header.alpha:
            findings.about("has an alpha channel, what is transparent is black", path.name)
    slim = {path: header for path, header in headers.items() if _aspect(header) > FAR_FROM_SQUARE}
    if slim:
        longest = max(slim, key=lambda path: _aspect(slim[path]))
        findings.notices.append(
            f"{len(slim)} images are far from square, {longest.name} has {size_text(slim[longest].size)} px: resizing "
            "to a square squashes them"
        )
    return headers


def common_depth(headers: Mapping[Path, Header], findings: Findings) -> int | None:
    """The bits of the samples of all images together, see `stored_bits`; None for 8."""
    deep = [path for path, header in headers.items() if header.deep]
    depths = {path: measured_depth(path) for path in deep}
    depth = max([bits for bits, _ in depths.values()] + ([8] if len(deep) < len(headers) or not headers else []))
    for path, (_, hot) in depths.items():
        if hot:
            findings.about(f"has hot pixels above {depth} bits, they become white", path.name)
    if depth == 8:
        return None
    findings.notices.append(f"deep images: brightness scaled for {depth} bits" if depth else "floating point in 0..1")
    return depth


def check_masks(
    pairs: Mapping[str, Sequence[Labelled]],
    headers: Mapping[Path, Header],
    rule: SplitSettings,
    findings: Findings,
) -> dict[str, list[Labelled]]:
    """Read all masks. Returns the pairs, with masks turned where they lie on the pixels as they are stored."""
    reader = _MaskReader(rule, findings)
    checked = {
        defect: [reader.checked(defect, one, headers[one.image]) for one in own if one.image in headers]
        for defect, own in pairs.items()
    }
    reader.conclude(checked)
    return checked


class _MaskReader:
    """Reads masks and collects what is noticed about all of them together."""

    def __init__(self, rule: SplitSettings, findings: Findings) -> None:
        self.rule = rule
        self.findings = findings
        self.seen: list[str] = []  # how masks of turned images lie, where their sizes tell
        self.undecided: list[tuple[str, Labelled, Header]] = []
        self.values: dict[str, dict[str, None]] = {}
        self.several: dict[str, list[Labelled]] = {}

    def checked(self, defect: str, one: Labelled, header: Header) -> Labelled:
        """One pair, its mask turned where that is sure."""
        findings, path = self.findings, one.mask.files[0]
        try:
            mask, readings = _inspected(one.mask)
        except DatasetError as error:
            findings.problems.append(str(error))
            return one
        for reading in readings:
            for notice in reading.notices:
                findings.about(notice, path.name)
            if len(reading.values) > 1 and not (isinstance(one.mask, MaskFile) and one.mask.values):
                self.values.setdefault(defect, {}).update(dict.fromkeys(name for name, _ in reading.values))
                self.several.setdefault(defect, []).append(one)
        size, covered = tuple(mask.shape[1:]), int(np.count_nonzero(mask.numpy()))
        if header.orientation != 1 and not _has_own_tag(one.mask):
            one, size = self._turned(defect, one, header, size)
        if size != header.size:
            findings.problems.append(size_problem(one.image, header, path, size))
        elif not covered:
            findings.problems.append(f"{path}: the mask is empty. Draw the defect or move the image to test/good.")
        elif covered == mask.numel():
            findings.problems.append(
                f"{path}: the mask covers the whole image. Draw the defect alone; is it inverted?"
            )
        elif covered > SUSPICIOUS_COVER * mask.numel():
            findings.about(f"covers {covered / mask.numel():.0%} of its image: is it inverted?", path.name)
        return one

    def _turned(
        self, defect: str, one: Labelled, header: Header, size: tuple[int, ...]
    ) -> tuple[Labelled, tuple[int, ...]]:
        fits_stored, fits_shown = size == header.stored_size, size == header.size
        if not fits_stored or self.rule.mask_rotation == "as displayed":
            self.seen += ["as displayed"] if fits_shown else []
            return one, size
        if self.rule.mask_rotation == "auto" and fits_shown:
            self.undecided.append((defect, one, header))
            return one, size
        self.seen.append("as stored")
        return self._as_stored(one, header), header.size

    def _as_stored(self, one: Labelled, header: Header) -> Labelled:
        self.findings.about("the mask lies on the pixels as stored and is turned with its image", one.image.name)
        return one._replace(mask=MaskTurned(one.mask, header.orientation))

    def conclude(self, checked: dict[str, list[Labelled]]) -> None:
        """What only all pairs together tell: how masks lie on turned squares, and which values masks hold."""
        if set(self.seen) == {"as stored"}:
            for defect, one, header in self.undecided:
                place = checked[defect].index(one)
                checked[defect][place] = self._as_stored(one, header)
        elif not self.seen:
            for _, one, _ in self.undecided:
                self.findings.about(
                    "is turned by its EXIF tag, and its size does not tell how its mask lies: it is taken as drawn on "
                    "the image as displayed; mask_rotation says otherwise",
                    one.image.name,
                )
        for defect, values in self.values.items():
            self.findings.notices.append(
                f"{defect}: masks hold several values ({some_of(sorted(values))}), all of them are the defect; "
                f"if they are classes, choose with mask_values, such as {defect}={min(values)}"
            )
        for first, second in _shared_maps(self.several):
            self.findings.problems.append(
                f"{first.mask.files[0]}: is the class map of {second.mask.files[0]} too, of the same image in two "
                "types. Say which value is which type with mask_values, such as crack=1, hole=2."
            )


def _shared_maps(several: Mapping[str, Sequence[Labelled]]) -> list[tuple[Labelled, Labelled]]:
    """Pairs of two types with the same image and the same mask of several values."""
    if len(several) < 2:
        return []
    first: dict[tuple[str, str], tuple[str, Labelled]] = {}
    found = []
    for defect, pairs in several.items():
        for one in pairs:
            mark = (content_mark(one.image), content_mark(one.mask.files[0]))
            known = first.setdefault(mark, (defect, one))
            if known[0] != defect:
                found.append((known[1], one))
    return found


def _inspected(source: MaskSource) -> tuple[Tensor, list[MaskReading]]:
    if isinstance(source, MaskFile):
        reading = inspect_mask(source.path, source.values)
        return reading.mask, [reading]
    return source.read(), []


def _has_own_tag(source: MaskSource) -> bool:
    return isinstance(source, MaskFile) and read_header(source.path).orientation != 1


def size_problem(image_path: Path, header: Header, mask_path: Path, mask_size: Sequence[int]) -> str:
    """An image and a mask of two sizes, as a text."""
    turned = f", turned by its EXIF tag from {size_text(header.stored_size)}" if header.orientation != 1 else ""
    return (
        f"{mask_path}: the mask is {size_text(mask_size)} px, its image {image_path.name} is "
        f"{size_text(header.size)} px{turned}. Export the mask at the size of the image."
    )


def size_text(size: Sequence[int]) -> str:
    """Width x height of (height, width)."""
    return f"{size[1]}x{size[0]}"


def _aspect(header: Header) -> float:
    return max(header.size) / min(header.size)
