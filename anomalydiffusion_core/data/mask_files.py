"""What a mask file means, decided by its structure: labels, soft edges, noise of compression, void, or no mask at all.

Tools write masks in many ways: 0 and 255, class or instance ids, colours, palettes, alpha, antialiased, through JPEG.
How many values a file has says little. Where they are says it: values that fill flat areas, or lines and dots that
stand alone, are labels; values that occur only where others meet are edges or noise, and belong to the label that
they are nearest to, as if they were cut at half.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import DatasetError
from .decoding import LOSSY_FORMATS, decode, decode_indices, read_header

BORDER_SHARE = 0.75
"""A value other than 0 that fills at least so much of the border is the background."""
FLAT_SHARE = 0.5
"""A value is a label when at least so many of its pixels lie in areas of 3 x 3 that hold nothing else."""
FLAT_SHARE_IN_NOISE = 0.9
FAINT = 1 / 8
"""In a file with noise, values nearer than this to the background are noise unless they are very flat."""
MIDDLE_SHARE = 0.2
"""A file is no mask when more of its pixels than this are far from all of its labels, or far from all edges."""
REACH = 16
"""Compression spreads an edge over blocks of at most so many pixels."""
MANY_VALUES = 64
MANY_LABELS = 8
LARGEST_ID_BESIDE_VOID = 64
VOID = 255
SPECKS = 0.01
"""Smaller ids that fill less than this share of the area of 255 are specks beside a defect, and 255 is no void."""


@dataclass(frozen=True, eq=False)
class MaskReading:
    """A mask and what was understood.

    Attributes:
        mask: [1, H, W] float32 of {0, 1}.
        values: the labels in it but for background and void, with their numbers of pixels, largest first. A label is a
            number, or a colour like #ff0000.
        background: the label of the background where that is not 0, else empty.
        void: pixels that the file marks as void, and that count as no defect.
    """

    mask: Tensor
    values: tuple[tuple[str, int], ...]
    background: str = ""
    void: int = 0

    @property
    def notices(self) -> tuple[str, ...]:
        """What its user should know."""
        found = []
        if self.background:
            found.append(f"the background is {self.background}, which fills the border, and not 0")
        if self.void:
            found.append(f"{self.void} pixels of value {VOID} beside smaller ids are void and left out")
        return tuple(found)


@dataclass(frozen=True, eq=False)
class _Coded:
    """Pixels as places [H, W] in tables: colours [n, c] in 0..1 and names [n].

    zero: the place of 0 or black, or -1. void: that of 255, where it can be void, only_small_ids: beside small ids.
    """

    codes: np.ndarray
    colours: np.ndarray
    names: Sequence[str]
    zero: int
    lossy: bool
    void: int = -1
    only_small_ids: bool = True

    @cached_property
    def counts(self) -> np.ndarray:
        """How often each place occurs."""
        return _counts(self.codes, len(self.names))


def read_mask(path: Path) -> Tensor:
    """A mask or region whose background is 0, as software writes it, as [1,H,W] float32 of 0 and 1.

    Noise, soft edges and alpha are understood as by `inspect_mask`, which is for masks that people drew. Without any 0
    the mask is full. Raises DatasetError as `inspect_mask`.
    """
    return inspect_mask(path, zero_is_background=True).mask


def inspect_mask(path: Path, values: Collection[str] = (), zero_is_background: bool = False) -> MaskReading:
    """Read a mask and say what was found in it.

    Args:
        path: an image file.
        values: labels that are the defect, as in `MaskReading.values`; none: all but background and void. 255 among
            them is no void.
        zero_is_background: also where another value fills the border.

    The background is 0 (black, transparent), unless another value fills the border. 255 beside ids up to 64, or beside
    other indices of a palette, is void. A mask of one value other than 0 is full.

    Raises:
        DatasetError: the file cannot be decoded, or is a photograph.
    """
    path = Path(path)
    coded = _coded(path)
    background = _background(coded, zero_is_background)
    labels = _labelled(path, coded, background)
    counts = coded.counts if labels is coded.codes else _counts(labels, len(coded.names))
    can_be_void = coded.void >= 0 and coded.void != background
    can_be_void &= str(VOID) not in values
    void = int(counts[coded.void]) if can_be_void and _is_void(coded, counts, background) else 0
    left_out = {background} | ({coded.void} if void else set())
    found = sorted(
        ((coded.names[i], int(counts[i])) for i in np.flatnonzero(counts).tolist() if i not in left_out),
        key=lambda entry: (-entry[1], entry[0]),
    )
    wanted = {name for name, _ in found} if not values else {str(value).lower() for value in values}
    defect = np.array([name in wanted and i not in left_out for i, name in enumerate(coded.names)])
    inside = _looked_up(defect, labels)
    return MaskReading(
        torch.from_numpy(inside)[None],
        tuple(found),
        coded.names[background] if background not in (coded.zero, -1) else "",
        void,
    )


def _coded(path: Path) -> _Coded:
    lossy = read_header(path).format in LOSSY_FORMATS
    palette = decode_indices(path)
    if palette is not None:
        return _of_palette(palette.codes, palette.colours)
    samples = _without_alpha(decode(path, keep_alpha=True))
    if samples.ndim == 3 and _is_grey(samples):
        samples = samples[:, :, 0]
    if samples.ndim == 3:
        return _of_colours(samples, lossy)
    return _of_greys(samples, lossy)


def _of_palette(codes: np.ndarray, colours: np.ndarray) -> _Coded:
    used = colours[np.flatnonzero(_counts(codes, 256))]
    table = colours / 255.0
    if len(np.unique(used, axis=0)) < len(used):  # several indices of one colour: only the index tells them apart
        table = np.repeat(np.arange(256)[:, None] / 255.0, 3, axis=1)
    names = [str(index) for index in range(256)]
    is_ramp = bool((colours == np.arange(256)[:, None]).all())
    return _Coded(codes, table, names, 0, False, VOID, only_small_ids=is_ramp)


def _of_greys(samples: np.ndarray, lossy: bool) -> _Coded:
    if samples.dtype == np.uint8:
        names = [str(value) for value in range(256)]
        return _Coded(samples, np.arange(256)[:, None] / 255.0, names, 0, lossy, VOID)
    values, codes = np.unique(np.nan_to_num(samples), return_inverse=True)
    largest = float(np.abs(values).max()) or 1.0
    zero = int(np.flatnonzero(values == 0)[0]) if (values == 0).any() else -1
    names = [f"{value:g}" for value in values.tolist()]
    return _Coded(codes.reshape(samples.shape), np.abs(values)[:, None] / largest, names, zero, lossy)


def _of_colours(samples: np.ndarray, lossy: bool) -> _Coded:
    full = float(np.iinfo(samples.dtype).max)
    if samples.dtype != np.uint8:
        samples = np.rint(samples / full * 255).astype(np.uint8)
    packed = samples[:, :, 0].astype(np.int32) << 16
    packed |= samples[:, :, 1].astype(np.int32) << 8
    packed |= samples[:, :, 2]
    corner = int(packed[0, 0])  # most often the background: only the rest has to be sorted
    box = _box(packed != corner)
    values, inner = np.unique(packed[box], return_inverse=True)
    place = int(np.searchsorted(values, corner))
    if place == len(values) or values[place] != corner:
        values, place = np.append(values, corner), len(values)
    codes = np.full(packed.shape, place, np.int32)
    codes[box] = inner.reshape(packed[box].shape)
    colours = np.stack([values >> 16, values >> 8 & 255, values & 255], axis=1) / 255.0
    zero = int(np.flatnonzero(values == 0)[0]) if (values == 0).any() else -1
    return _Coded(codes, colours, [f"#{value:06x}" for value in values.tolist()], zero, lossy)


def _looked_up(table: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """table[codes] as float32; take would make int64 of the codes."""
    if codes.dtype == np.uint8:
        return np.asarray(Image.fromarray(codes).point([int(value) for value in table])).astype(np.float32)
    return table.astype(np.float32)[codes]


def _counts(codes: np.ndarray, values: int) -> np.ndarray:
    """How often each of 0 to values - 1 occurs."""
    if codes.dtype == np.uint8:
        return np.asarray(Image.fromarray(codes).histogram()[:values])  # bincount would make int64 of all pixels
    return np.bincount(codes.ravel(), minlength=values)


def _box(inside: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns that hold anything; empty slices for nothing."""
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _is_grey(samples: np.ndarray) -> bool:
    first = samples[:, :, 0]
    return bool((first == samples[:, :, 1]).all() and (first == samples[:, :, 2]).all())


def _without_alpha(samples: np.ndarray) -> np.ndarray:
    """Colours over transparent black; alpha itself where that alone tells the shape."""
    if samples.ndim == 2 or samples.shape[2] < 4:
        return samples
    colour, alpha = samples[:, :, :3], samples[:, :, 3]
    if alpha.min() == alpha.max():
        return colour
    opaque = colour[alpha > 0]
    # drawn in one colour, black or white: soft edges are in the alpha channel alone
    if bool((opaque == opaque[0]).all()):
        return alpha
    full = np.iinfo(samples.dtype).max
    return np.rint(colour * (alpha[:, :, None] / np.float64(full))).astype(samples.dtype)


def _background(coded: _Coded, zero: bool) -> int:
    """The place of the background, -1 for a full mask."""
    codes = coded.codes
    if zero:
        return coded.zero if coded.zero >= 0 and coded.counts[coded.zero] else -1
    border = np.concatenate([codes[0], codes[-1], codes[:, 0], codes[:, -1]])
    counts = _counts(border[None], len(coded.names))
    place = int(counts.argmax())
    if place == coded.zero:
        return place
    if counts[place] == len(border) and bool((codes == codes.flat[0]).all()):
        return -1  # one value that is not 0
    near = np.abs(coded.colours - coded.colours[place]).max(axis=1) <= REACH / 255
    share = counts[near].sum() / len(border)
    has_zero = coded.zero >= 0 and bool((codes == coded.zero).any())
    return coded.zero if has_zero and (share < BORDER_SHARE or near[coded.zero]) else place


def _labelled(path: Path, coded: _Coded, background: int) -> np.ndarray:
    """The codes with edges and noise replaced by the label that they are nearest to."""
    codes = coded.codes
    present = np.flatnonzero(coded.counts)
    if background < 0 or len(present) <= 2:
        return codes
    box = _box(codes != background)
    place_of = np.zeros(len(coded.names), np.int32)
    place_of[present] = np.arange(len(present))
    inner = place_of.take(codes[box])
    nearest = _nearest_labels(path, inner, coded.colours[present], int(place_of[background]), coded)
    labels = np.full_like(codes, background)
    labels[box] = present.take(nearest).take(inner)
    return labels


def _nearest_labels(path: Path, codes: np.ndarray, colours: np.ndarray, background: int, coded: _Coded) -> np.ndarray:
    """For each value [n] the label that it stands for. Raises DatasetError for a photograph.

    codes: places in colours [n, c] of the part of the image that holds more than background.
    """
    padded = np.pad(codes, 1, constant_values=background)
    count = _counts(codes, len(colours))
    flat = _share(codes, _in_flat(padded), count)
    contrast = np.abs(colours - colours[background]).max(axis=1)
    is_flat = (flat >= FLAT_SHARE) & (count >= 9)
    is_label = is_flat | (_share(codes, _alone(padded, background), count) >= FLAT_SHARE)
    is_label[background] = True
    if not coded.lossy and int(is_label.sum()) >= max(MANY_LABELS, len(colours) / 2):
        return np.arange(len(colours))  # ids: those of instances too small to tell are kept as well
    edge = ~is_label[codes]
    strongest = contrast[is_flat].max(initial=0.0) or contrast.max()
    is_label &= ~_is_haze(codes, contrast, is_label, flat, strongest)
    if coded.lossy or (int(edge.sum()) >= 8 and float((~_same_neighbours(padded))[edge].mean()) >= 0.25):
        very_flat = (flat >= FLAT_SHARE_IN_NOISE) | (contrast == 0)
        is_label &= very_flat | (is_flat & (contrast >= FAINT * strongest)) | (contrast >= strongest / 2)
    if not (is_label & (contrast > 0)).any():
        is_label[int(contrast.argmax())] = True
    labels = np.array([background, *(label for label in np.flatnonzero(is_label) if label != background)])
    distance = np.stack([np.sqrt(((colours - colours[label]) ** 2).sum(axis=1)) for label in labels], axis=1)
    nearest = labels[distance.argmin(axis=1)]  # half-way is background
    nearest[labels] = labels
    _check_mask(path, coded.codes.size, codes, count, nearest, distance.min(axis=1), float(contrast[labels].max()))
    return nearest


def _is_haze(
    codes: np.ndarray, contrast: np.ndarray, is_label: np.ndarray, flat: np.ndarray, strongest: float
) -> np.ndarray:
    """Values far fainter than all others, ragged, and only near a strong label: noise, though no edge is seen."""
    ordered = np.unique(contrast[is_label & (contrast > 0)])
    gaps = np.flatnonzero(ordered[1:] * FAINT >= ordered[:-1])
    haze = np.zeros(len(contrast), bool)
    if strongest < 0.25 or not len(gaps):
        return haze
    haze = (contrast > 0) & (contrast <= ordered[gaps[-1]]) & (flat < FLAT_SHARE_IN_NOISE)
    far = ~_within_reach((contrast > ordered[gaps[-1]])[codes])
    return haze & (_share(codes, far, _counts(codes, len(contrast))) < 0.1)


def _check_mask(
    path: Path, pixels: int, codes: np.ndarray, count: np.ndarray, nearest: np.ndarray, off: np.ndarray, strong: float
) -> None:
    """Raise DatasetError where too many pixels are no label. off: distance of each value from its label."""
    if len(count) < MANY_VALUES:
        return
    several = len(np.unique(nearest)) > 3
    between = int(count[off > (1 / REACH if several else strong / 4)].sum())
    if between <= MIDDLE_SHARE * pixels:
        labels = nearest[codes]
        meeting = np.zeros(labels.shape, bool)
        meeting[:, 1:] |= labels[:, 1:] != labels[:, :-1]
        meeting[1:] |= labels[1:] != labels[:-1]
        between = int((~_within_reach(meeting) & (off > 0)[codes]).sum())
    if between > MIDDLE_SHARE * pixels:
        raise DatasetError(
            f"{path}: is a photograph or an overlay, not a mask: {len(count)} values fill large areas. Export the "
            "regions alone, each of one value on one background."
        )


def _within_reach(inside: np.ndarray) -> np.ndarray:
    """Pixels that have one of these within REACH."""
    grown = F.max_pool2d(torch.from_numpy(inside.astype(np.float32))[None, None], 2 * REACH + 1, 1, REACH)
    return grown[0, 0].numpy() > 0


def _share(codes: np.ndarray, chosen: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The share of each value's pixels that are chosen."""
    return np.bincount(codes[chosen], minlength=len(count)) / np.maximum(count, 1)


def _in_flat(padded: np.ndarray) -> np.ndarray:
    """Pixels in an area of 3 x 3 of one value. padded: codes with a frame of 1 pixel."""
    right, down = padded[:, :-1] == padded[:, 1:], padded[:-1] == padded[1:]
    square = right[:-1] & right[1:] & down[:, :-1]
    centre = square[:-1, :-1] & square[:-1, 1:] & square[1:, :-1] & square[1:, 1:]
    grown = np.pad(centre, 1)
    flat = np.zeros_like(centre)
    for view in _neighbours(grown):
        flat |= view
    return flat | centre


def _alone(padded: np.ndarray, background: int) -> np.ndarray:
    """Pixels with nothing but their own value and background around them."""
    inner = padded[1:-1, 1:-1]
    alone = np.ones(inner.shape, bool)
    for view in _neighbours(padded):
        alone &= (view == inner) | (view == background)
    return alone


def _same_neighbours(padded: np.ndarray) -> np.ndarray:
    """Pixels that touch another one of their value."""
    inner = padded[1:-1, 1:-1]
    same = np.zeros(inner.shape, bool)
    for view in _neighbours(padded):
        same |= view == inner
    return same


def _neighbours(padded: np.ndarray) -> Iterator[np.ndarray]:
    """The 8 neighbours of all pixels, each as an array of their shape."""
    height, width = padded.shape[0] - 2, padded.shape[1] - 2
    for row, column in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)):
        yield padded[row : row + height, column : column + width]


def _is_void(coded: _Coded, counts: np.ndarray, background: int) -> bool:
    others = set(np.flatnonzero(counts).tolist()) - {background, coded.void}
    if not others or (coded.only_small_ids and max(others) > LARGEST_ID_BESIDE_VOID):
        return False
    ids = int(counts[list(others)].sum())
    return not coded.only_small_ids or ids >= SPECKS * int(counts[coded.void])
