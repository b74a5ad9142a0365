"""One captioned photograph: surface or part, light, defect, camera. Everything outside the mask stays untouched."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..captions import PLACES, SIZES, Caption
from ..scene import Scene
from . import flaws
from .bank import Array, ShotBank, TextureBank
from .camera import Camera, draw_camera
from .light import Light, Surface, draw_light, shade
from .materials import base_colour, render_material
from .outlines import Outline, draw_extent, draw_outline
from .parts import Part, render_part
from .vocabulary import (
    COLOURS_OF,
    DEFECT_COLOURS,
    DEFECTS,
    DEFECTS_OF,
    HELD_OUT,
    MATERIALS,
    PAINTED,
    PARTS,
    SURFACE_COLOURS,
)

MASK_SHARE = 0.15
GOOD_SHARE = 0.2
PART_SHARE = 0.4
SMALLEST_SIZE = 128
FAINTEST = 9.0
"""Mean change inside the mask, on the scale 0..255, below which a defect is made stronger."""
_MARGIN = 3


def sample_caption(
    rng: np.random.Generator, mask_share: float = MASK_SHARE, good_share: float = GOOD_SHARE
) -> Caption:
    """A caption for pretraining; never one of `HELD_OUT`."""
    size, place = str(rng.choice(SIZES)), str(rng.choice(PLACES))
    if rng.random() < mask_share:
        return Caption("mask", "none", str(rng.choice(DEFECTS[1:])), "none", size, place)
    surface = str(rng.choice(PARTS if rng.random() < PART_SHARE else MATERIALS))
    colour = str(rng.choice(COLOURS_OF.get(surface, tuple(SURFACE_COLOURS))))
    if rng.random() < good_share:
        return Caption(surface, colour)
    defect = str(rng.choice([name for name in DEFECTS_OF[surface] if (surface, name) not in HELD_OUT]))
    paint = str(rng.choice(distinct_colours(colour, defect))) if defect in PAINTED else "none"
    return Caption(surface, colour, defect, paint, size, place)


def distinct_colours(surface_colour: str, defect: str) -> tuple[str, ...]:
    """The colours of a defect that can be told from a surface colour, in the order of ``DEFECT_COLOURS``."""
    own = np.asarray(SURFACE_COLOURS[surface_colour])
    apart = {name: np.abs(own - np.asarray(DEFECT_COLOURS[name])).mean() for name in PAINTED[defect]}
    return tuple(name for name, value in apart.items() if value > 0.14)


def render_photo(
    rng: np.random.Generator, bank: TextureBank, caption: Caption, size: int = 256, design: int | None = None
) -> Scene:
    """Render a caption at [size, size] pixels.

    A part leaves no room for a defect in some places. The scene's caption says where the defect really is.

    Args:
        design: shots of one number show one product under one light: they share material, shape, background and
            lamp, and differ in the spot of the material, the place of the part by a few pixels, and the camera.
            None: everything is drawn anew.

    Raises:
        ValueError: `size` is below `SMALLEST_SIZE`, where the smallest defects are no larger than a pixel.
    """
    if size < SMALLEST_SIZE:
        raise ValueError(f"size: {size} px is too small for the thinnest defects. Give at least {SMALLEST_SIZE}.")
    if caption.surface == "mask":
        return _mask_alone(rng, bank, caption, size)
    camera = draw_camera(rng, bank, size)
    fixed, its_bank, shift = rng, bank, (0.0, 0.0)
    if design is not None:
        fixed, its_bank = np.random.default_rng([design, 7]), ShotBank(bank, rng)
        shift = (float(rng.uniform(-0.012, 0.012)), float(rng.uniform(-0.012, 0.012)))
    light = draw_light(fixed, its_bank, size)
    stage = _staged(fixed, its_bank, caption, light, size, shift)
    seen = shade(stage.surface, light, size)
    camera = camera.exposed_for(seen)
    if stage.part is not None:
        seen = stage.part.backdrop + (seen - stage.part.backdrop) * stage.part.cover
    normal = camera.expose(seen)
    empty = np.zeros((size, size), bool)
    if caption.defect == "good":
        normal = camera.compress(normal)
        return Scene(normal, normal, empty, caption)
    outline, caption = _placed(rng, bank, caption, stage, size)
    image = _with_flaw(rng, bank, caption, stage, light, camera, outline, seen, normal)
    mask = empty
    mask[outline.rows, outline.columns] = outline.mask
    normal = camera.compress(normal)
    image = np.where(mask[:, :, None], camera.compress(image), normal)
    return Scene(image, normal, mask, caption)


@dataclass(frozen=True)
class _Stage:
    """What is photographed: a surface that fills the image, or a part with its background."""

    surface: Surface
    part: Part | None

    def room(self, defect: str, extent: float) -> Array | None:
        """[H, W], positive where the centre of a defect may be; None: anywhere."""
        if self.part is None:
            return None
        if defect == "chip":  # at an edge
            return max(0.1 * extent, 1.0) - np.abs(self.part.inside)
        return self.part.inside - min(0.35 * extent, 0.6 * float(self.part.inside.max()))


def _staged(
    rng: np.random.Generator,
    bank: TextureBank,
    caption: Caption,
    light: Light,
    size: int,
    shift: tuple[float, float],
) -> _Stage:
    colour = base_colour(rng, caption.surface_colour)
    if caption.surface in PARTS:
        steel = caption.defect == "rust"
        part = render_part(rng, bank, caption.surface, colour, light, size, steel, shift)
        return _Stage(part.surface, part)
    return _Stage(render_material(rng, bank, caption.surface, colour, size), None)


def _placed(
    rng: np.random.Generator, bank: TextureBank, caption: Caption, stage: _Stage, size: int
) -> tuple[Outline, Caption]:
    """An outline in the ninth that the caption names, or elsewhere on the part, and the caption that tells."""
    extent = draw_extent(rng, caption.defect, caption.size, size)
    centre = _centre(rng, PLACES.index(caption.place), stage.room(caption.defect, extent), size)
    outline = draw_outline(rng, bank, caption.defect, extent, centre, stage.surface, size)
    if stage.part is not None:
        cut = outline.within(stage.part.inside, -0.6 if caption.defect == "chip" else 0.5)
        outline = cut if cut.mask.any() else outline
    rows, columns = np.nonzero(outline.mask)
    row, column = rows.mean() + outline.rows.start, columns.mean() + outline.columns.start
    if stage.part is not None:
        place = PLACES[min(int(3 * row / size), 2) * 3 + min(int(3 * column / size), 2)]
        caption = replace(caption, place=place)
    return outline, caption


def _centre(rng: np.random.Generator, place: int, room: Array | None, size: int) -> tuple[float, float]:
    third = size / 3
    corner = tuple(int(index * third) for index in divmod(place, 3))
    if room is not None:
        block = room[corner[0] : corner[0] + int(third), corner[1] : corner[1] + int(third)]
        free = np.flatnonzero(block > 0)
        if len(free):
            row, column = divmod(int(rng.choice(free)), block.shape[1])
            return corner[0] + row + 0.5, corner[1] + column + 0.5
        free = np.flatnonzero(room > 0)
        where = int(rng.choice(free)) if len(free) else int(room.argmax())
        return where // size + 0.5, where % size + 0.5
    return corner[0] + rng.uniform(0.1, 0.9) * third, corner[1] + rng.uniform(0.1, 0.9) * third


def _with_flaw(
    rng: np.random.Generator,
    bank: TextureBank,
    caption: Caption,
    stage: _Stage,
    light: Light,
    camera: Camera,
    outline: Outline,
    seen: Array,
    normal: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    """The image with the defect, equal to `normal` outside the mask; a faint defect is made stronger."""
    size = normal.shape[0]
    low = [max(part.start - _MARGIN, 0) for part in (outline.rows, outline.columns)]
    high = [min(part.stop + _MARGIN, size) for part in (outline.rows, outline.columns)]
    rows, columns = (slice(a, b) for a, b in zip(low, high, strict=True))
    pad = [
        (part.start - a, b - part.stop) for part, a, b in zip((outline.rows, outline.columns), low, high, strict=True)
    ]
    wide = Outline(rows, columns, np.pad(outline.cover, pad), np.pad(outline.depth, pad))
    mask = wide.mask
    before = normal[rows, columns]
    texture = 0.7 * float(before.mean(2)[mask].std())
    state = rng.bit_generator.state
    strength = 1.0
    while True:
        rng.bit_generator.state = state
        window = stage.surface.window(rows, columns)
        flaws.apply(
            rng, bank, flaws.Flaw(caption.surface, caption.defect, caption.defect_colour, wide, strength), window
        )
        changed = shade(window, light.window(rows, columns), size, rows, columns)
        if stage.part is not None:
            inside, behind = stage.part.inside[rows, columns], stage.part.backdrop[:, rows, columns]
            if caption.defect == "chip":  # a piece of the outline is gone
                kept = 0.3 * wide.depth.max() + 0.6 * np.maximum(inside, 0)
                inside = inside - 1.6 * np.maximum(wide.depth - kept, 0)
            changed = behind + (changed - behind) * np.clip(inside + 0.5, 0, 1)
        changed = np.where(mask, changed, seen[:, rows, columns])
        after = camera.window(rows, columns).expose(changed)
        difference = np.abs(after.astype(np.float32) - before)[mask].mean()
        if difference >= max(FAINTEST, texture) or strength > 3:
            break
        strength *= 1.6
    image = normal.copy()
    image[rows, columns] = np.where(mask[:, :, None], after, before)
    return image


def _mask_alone(rng: np.random.Generator, bank: TextureBank, caption: Caption, size: int) -> Scene:
    """The mask of a defect, white on black."""
    mask = np.zeros((size, size), bool)
    if caption.defect != "good":
        surface = render_material(rng, bank, "fabric", base_colour(rng, "grey"), size)
        outline = _placed(rng, bank, caption, _Stage(surface, None), size)[0]
        mask[outline.rows, outline.columns] = outline.mask
    image = np.repeat((mask * np.uint8(255))[:, :, None], 3, axis=2)
    return Scene(image, np.zeros_like(image), mask, caption)
