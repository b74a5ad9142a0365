"""Real defects cut out by their masks, rotated and scaled, and the places where they fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.images import resize_image
from ..data.mask_resizing import resize_mask
from ..data.mvtec import DefectType, load_pairs
from ..errors import InputError
from ..options import Settings, check_order, option

MARGIN = 2
FRAME = 1
"""Pixels of surroundings around a cut-out; the gradients across its outline need one."""
TRIES = 20


class NoPlaceError(InputError):
    """No place in the image has enough foreground for a shape."""


@dataclass(frozen=True)
class Source:
    """A real defect: its image [3, H, W], its mask [1, H, W] in {0, 1} that is not empty, and its name."""

    image: Tensor
    mask: Tensor
    name: str


def overlap_option() -> Any:
    """The option ``foreground_overlap``, above 0 because nothing of an anomaly would be left."""
    help = "Share of an anomaly that must lie on the foreground; the rest is cut off."
    return option(0.9, help, min=0.01, max=1, step=0.01)


@dataclass(frozen=True)
class Moves(Settings):
    """How a cut-out is changed before it is pasted; scales are drawn evenly on a logarithmic scale."""

    flips: bool = option(True, "Mirror half of the cut-outs along each axis.")
    max_degrees: float = option(15.0, "Largest rotation in both directions, in degrees.", min=0, max=180, step=1)
    min_scale: float = option(0.8, "Smallest size relative to the source.", min=0.1, max=4, step=0.05)
    max_scale: float = option(1.2, "Largest size relative to the source.", min=0.1, max=4, step=0.05)
    foreground_overlap: float = overlap_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self, "min_scale", "max_scale")


@dataclass(frozen=True)
class CutOut:
    """Pixels [3, h, w] and shape [1, h, w] in {0, 1}, which a frame of ``FRAME`` pixels surrounds."""

    pixels: Tensor
    shape: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width without the frame."""
        return self.shape.shape[1] - 2 * FRAME, self.shape.shape[2] - 2 * FRAME


@dataclass(frozen=True)
class Placed:
    """A cut-out on an image: pixels [3, H, W] (0 where it is not), shape [1, H, W], its own frame [1, H, W]."""

    pixels: Tensor
    shape: Tensor
    known: Tensor
    details: dict[str, Any]


def training_sources(kind: DefectType, size: tuple[int, int]) -> list[Source]:
    """The training pairs of a type at ``size`` (height, width), never those kept for testing."""
    images, masks = load_pairs(kind.train, size)
    names = [f"{kind.defect}/{pair.name}" for pair in kind.train]
    return [Source(*parts) for parts in zip(images, masks, names, strict=True)]


def check_sources(sources: Sequence[Source]) -> None:
    """Raise InputError when there is nothing to cut out."""
    if not sources:
        raise InputError("defects: none to cut out. Choose a split that leaves training pairs of this type.")
    for source in sources:
        if source.image.shape[1:] != source.mask.shape[1:] or not bool((source.mask > 0).any()):
            raise InputError(f"defects: {source.name} has an empty mask or one of another size. Give one that fits.")


def move(
    sources: Sequence[Source], moves: Moves, size: tuple[int, int], rng: np.random.Generator, foreground: Tensor | None
) -> Placed:
    """A random defect, transformed and put at a random place in an image of ``size`` where it fits.

    Raises InputError when the foreground has no place for it, however it is changed.
    """
    source = sources[int(rng.integers(len(sources)))]
    for tries in range(1, TRIES + 1):
        cut, details = _changed(source, moves, size, rng)
        shape = cut.shape[:, FRAME:-FRAME, FRAME:-FRAME]
        try:
            top, left = find_place(shape, size, rng, foreground, moves.foreground_overlap)
            break
        except NoPlaceError:
            # A large one often fits after another rotation or scaling.
            if tries == TRIES:
                raise
    details = {"source": source.name, **details, "top": top, "left": left}
    return _placed(cut, top, left, size, foreground, details)


def find_place(
    shape: Tensor, size: tuple[int, int], rng: np.random.Generator, foreground: Tensor | None, overlap: float
) -> tuple[int, int]:
    """Upper left corner, uniform among those where ``shape`` [1, h, w] lies in the image and on the foreground.

    ``overlap``: share of the shape that the foreground [1, H, W] must cover.
    """
    height, width = shape.shape[1:]
    rows, columns = size[0] - height + 1, size[1] - width + 1
    if rows < 1 or columns < 1:
        raise InputError(f"place: {width}x{height} px do not fit into {size[1]}x{size[0]} px. Lower max_scale.")
    if foreground is None:
        return int(rng.integers(rows)), int(rng.integers(columns))
    from scipy.signal import fftconvolve

    kernel = shape[0].numpy().astype(np.float64)
    covered = np.rint(fftconvolve(foreground[0].numpy().astype(np.float64), kernel[::-1, ::-1], mode="valid"))
    area = float(kernel.sum())
    places = np.flatnonzero(covered >= np.ceil(overlap * area - 1e-9))
    if not len(places):
        raise NoPlaceError(
            f"foreground: a region of {int(area)} px lies on it by at most {covered.max() / area:.2f}, but "
            f"{overlap:g} is required. Lower foreground_overlap or mark a larger foreground."
        )
    chosen = int(places[int(rng.integers(len(places)))])
    return divmod(chosen, columns)


def _changed(
    source: Source, moves: Moves, size: tuple[int, int], rng: np.random.Generator
) -> tuple[CutOut, dict[str, Any]]:
    """A random change whose result fits into the image; a defect as large as the image stays as it is."""
    flip = tuple(bool(draw) and moves.flips for draw in rng.integers(0, 2, 2))
    for _ in range(TRIES):
        degrees = float(rng.uniform(-moves.max_degrees, moves.max_degrees))
        scale = float(np.exp(rng.uniform(np.log(moves.min_scale), np.log(moves.max_scale))))
        cut = _cut(source, flip, degrees, scale)
        if cut.size[0] <= size[0] and cut.size[1] <= size[1]:
            break
    else:
        degrees, scale = 0.0, 1.0
        cut = _cut(source, flip, degrees, scale)
    return cut, {"flipped": list(flip), "degrees": round(degrees, 3), "scale": round(scale, 4)}


def _cut(source: Source, flip: tuple[bool, ...], degrees: float, scale: float) -> CutOut:
    # the source keeps some surroundings until the end, so that no interpolation reaches beyond its pixels
    pixels, shape = _window(source.image, source.mask, MARGIN)
    axes = [axis for axis, turned in zip((2, 1), flip, strict=True) if turned]
    pixels, shape = pixels.flip(axes), shape.flip(axes)
    area = float(shape.sum()) * scale * scale
    if scale != 1:
        target = tuple(max(1, round(side * scale)) for side in shape.shape[1:])
        pixels, shape = resize_image(pixels[None], target)[0], resize_mask(shape[None], target)[0]  # type: ignore[arg-type]
    if degrees:
        from torchvision.transforms import functional as transforms

        bilinear = transforms.InterpolationMode.BILINEAR
        reach = max(pixels.shape[1:]) // 2 + 1
        padded = F.pad(pixels[None], (reach, reach, reach, reach), mode="replicate")[0]
        soft = transforms.rotate(F.pad(shape, (reach, reach, reach, reach)), degrees, bilinear)
        pixels = transforms.rotate(padded, degrees, bilinear)
        shape = (soft > 0.5).to(soft.dtype)
        if float(shape.sum()) < area / 2:  # a line of one pixel
            shape = (soft > 0).to(soft.dtype)
    return CutOut(*_window(pixels, shape, FRAME))


def _window(pixels: Tensor, shape: Tensor, margin: int) -> tuple[Tensor, Tensor]:
    """Both cut to the bounding box of the shape and a margin; beyond the image its border is repeated."""
    rows, columns = (shape[0].amax(dim=axis).nonzero().flatten() for axis in (1, 0))
    box = (
        slice(int(rows[0]), int(rows[-1]) + 1 + 2 * margin),
        slice(int(columns[0]), int(columns[-1]) + 1 + 2 * margin),
    )
    around = (margin, margin, margin, margin)
    return F.pad(pixels[None], around, mode="replicate")[0][:, box[0], box[1]], F.pad(shape, around)[:, box[0], box[1]]


def _placed(
    cut: CutOut, top: int, left: int, size: tuple[int, int], foreground: Tensor | None, details: dict[str, Any]
) -> Placed:
    height, width = cut.shape.shape[1:]
    canvas = torch.zeros(3, size[0] + 2 * FRAME, size[1] + 2 * FRAME, dtype=cut.pixels.dtype)
    shape, known = torch.zeros_like(canvas[:1]), torch.zeros_like(canvas[:1])
    place = (slice(None), slice(top, top + height), slice(left, left + width))
    canvas[place], shape[place], known[place] = cut.pixels, cut.shape, 1.0
    inner = (slice(None), slice(FRAME, -FRAME), slice(FRAME, -FRAME))
    marked = shape[inner] if foreground is None else shape[inner] * foreground
    return Placed(canvas[inner], marked, known[inner], details)
