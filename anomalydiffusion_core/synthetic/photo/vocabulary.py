"""Words of the captions of photographs: one in each of six slots, as in :mod:`..captions`, but more of them.

A prior's file stores the words that it was trained on, so that the files of either vocabulary can be read.
"""

from __future__ import annotations

from ..captions import PLACES, SIZES, word_table

MATERIALS = (
    "leather",
    "brushed-metal",
    "cast-metal",
    "painted-sheet",
    "wood",
    "fabric",
    "concrete",
    "stone",
    "plastic",
    "ceramic",
)
PARTS = ("disc", "ring", "cap", "bolt", "bottle")
SURFACES = (*MATERIALS, *PARTS, "mask")
SURFACE_COLOURS = {
    "red": (0.64, 0.18, 0.16),
    "orange": (0.78, 0.48, 0.22),
    "yellow": (0.82, 0.68, 0.26),
    "green": (0.26, 0.47, 0.30),
    "blue": (0.20, 0.35, 0.60),
    "brown": (0.42, 0.28, 0.19),
    "beige": (0.74, 0.63, 0.49),
    "grey": (0.54, 0.55, 0.56),
    "white": (0.86, 0.86, 0.84),
    "black": (0.16, 0.16, 0.17),
}
"""Display values, 0..1."""
DEFECTS = ("good", "scratch", "crack", "dent", "hole", "chip", "stain", "residue", "rust", "missing-thread")
DEFECT_COLOURS = {
    "dark": (0.10, 0.09, 0.09),
    "light": (0.90, 0.89, 0.85),
    "red": (0.60, 0.12, 0.10),
    "yellow": (0.82, 0.68, 0.22),
    "green": (0.22, 0.45, 0.22),
    "blue": (0.14, 0.22, 0.55),
    "brown": (0.36, 0.21, 0.11),
}
PAINTED = {"scratch": ("dark", "light"), "stain": tuple(DEFECT_COLOURS), "residue": tuple(DEFECT_COLOURS)}
"""Defects that have a colour of their own, and which."""

_METAL_COLOURS = ("grey", "white", "black", "yellow", "orange", "blue", "red")
COLOURS_OF = {
    "brushed-metal": _METAL_COLOURS,
    "cast-metal": ("grey", "black", "brown", "white"),
    "wood": ("brown", "beige", "orange", "red", "black", "yellow"),
    "concrete": ("grey", "white", "beige", "brown"),
    "stone": ("grey", "black", "white", "red", "green", "beige", "brown"),
    "bottle": ("black", "green", "brown", "blue", "grey", "white", "red"),
    "bolt": ("grey", "white", "black", "yellow", "orange", "brown"),
}
"""Colours that a surface comes in, where it does not come in all."""
_EVERYWHERE = ("scratch", "dent", "hole", "stain", "residue")
DEFECTS_OF = {
    "leather": (*_EVERYWHERE, "crack"),
    "brushed-metal": (*_EVERYWHERE, "rust", "crack"),
    "cast-metal": (*_EVERYWHERE, "rust", "crack", "chip"),
    "painted-sheet": (*_EVERYWHERE, "rust", "chip", "crack"),
    "wood": (*_EVERYWHERE, "crack", "chip"),
    "fabric": ("hole", "stain", "residue", "missing-thread"),
    "concrete": ("scratch", "hole", "stain", "residue", "crack", "chip"),
    "stone": ("scratch", "hole", "stain", "residue", "crack", "chip"),
    "plastic": (*_EVERYWHERE, "crack", "chip"),
    "ceramic": ("scratch", "hole", "stain", "residue", "crack", "chip"),
    "disc": (*_EVERYWHERE, "rust", "crack", "chip"),
    "ring": ("scratch", "dent", "stain", "residue", "rust", "crack", "chip"),
    "cap": (*_EVERYWHERE, "crack", "chip"),
    "bolt": ("scratch", "dent", "stain", "residue", "rust", "crack", "chip"),
    "bottle": ("scratch", "stain", "residue", "crack", "chip"),
}
HELD_OUT = (
    ("leather", "scratch"),
    ("leather", "stain"),
    ("wood", "stain"),
    ("wood", "crack"),
    ("concrete", "hole"),
    ("cap", "scratch"),
    ("cap", "chip"),
    ("bolt", "rust"),
)
"""Combinations that are never rendered for pretraining, so that a demo shows what few-shot learning adds."""

SLOT_WORDS = {
    "surface": SURFACES,
    "surface_colour": ("none", *SURFACE_COLOURS),
    "defect": DEFECTS,
    "defect_colour": ("none", *DEFECT_COLOURS),
    "size": ("none", *SIZES),
    "place": ("none", *PLACES),
}


def vocabulary() -> tuple[str, ...]:
    """All words in table order: the empty word first, then `slot:word` slot by slot."""
    return word_table(SLOT_WORDS)
