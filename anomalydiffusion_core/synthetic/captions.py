"""Captions of procedural images: one word in each of six slots, looked up in a plain table of word vectors.

Six slots, because the host batches conditional and unconditional prompts by repeating both to their least common
multiple: six divides the twelve tokens of the default spatial anomaly embedding (k = 8, n = 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from ..errors import InputError

EMPTY_WORD = "<empty>"

SURFACES = ("leather", "fabric", "stone", "metal", "plastic", "mask")
SURFACE_COLOURS = {
    "red": (0.66, 0.20, 0.18),
    "orange": (0.80, 0.50, 0.22),
    "green": (0.27, 0.50, 0.30),
    "blue": (0.22, 0.36, 0.62),
    "brown": (0.46, 0.31, 0.21),
    "grey": (0.52, 0.53, 0.54),
    "white": (0.83, 0.83, 0.80),
    "black": (0.17, 0.17, 0.19),
}
DEFECTS = ("good", "stain", "hole", "dent", "scratch")
DEFECT_COLOURS = {
    "dark": (0.07, 0.06, 0.06),
    "light": (0.90, 0.88, 0.82),
    "red": (0.66, 0.10, 0.10),
    "yellow": (0.86, 0.74, 0.18),
    "blue": (0.12, 0.20, 0.58),
}
SIZES = ("small", "medium", "large")
PLACES = tuple(f"{v}-{h}" for v in ("top", "middle", "bottom") for h in ("left", "centre", "right"))


@dataclass(frozen=True)
class Caption:
    """One word per slot; `none` where a slot does not apply (a good part has no defect colour, size or place)."""

    surface: str
    surface_colour: str = "none"
    defect: str = "good"
    defect_colour: str = "none"
    size: str = "none"
    place: str = "none"


SLOTS = tuple(field.name for field in fields(Caption))

_SLOT_WORDS = {
    "surface": SURFACES,
    "surface_colour": ("none", *SURFACE_COLOURS),
    "defect": DEFECTS,
    "defect_colour": ("none", *DEFECT_COLOURS),
    "size": ("none", *SIZES),
    "place": ("none", *PLACES),
}


def vocabulary() -> tuple[str, ...]:
    """All words in table order: the empty word first, then `slot:word` slot by slot."""
    return word_table(_SLOT_WORDS)


def word_table(slot_words: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The empty word, then `slot:word` slot by slot."""
    return (EMPTY_WORD, *(f"{slot}:{word}" for slot in SLOTS for word in slot_words[slot]))


def caption_ids(caption: Caption | None, words: Sequence[str] | None = None) -> list[int]:
    """Row numbers in a word table, by default that of `vocabulary`, one per slot; `None` is the empty caption."""
    if caption is None:
        return [0] * len(SLOTS)
    rows = {word: index for index, word in enumerate(words or vocabulary())}
    return [rows[f"{slot}:{getattr(caption, slot)}"] for slot in SLOTS]


def normal_caption_ids(words: Sequence[str] | None = None) -> list[int]:
    """The caption of a good part of unknown surface and colour: every slot empty but the defect."""
    return [ids[0] for ids in words_in("defect:good", SLOTS, words or vocabulary())]


def words_in(text: str, slots: Sequence[str], names: Sequence[str]) -> list[list[int]]:
    """Places in a word table of the words of a text, for each slot; a slot without a word gets the empty word 0.

    text: words separated by commas, each as ``slot:word``, or the word alone where only one slot has it. Several words
    of one slot mean any of them. names: the empty word first, then ``slot:word``. Raises InputError for a word that is
    unknown or of several slots.
    """
    places: list[list[int]] = [[] for _ in slots]
    for word in filter(None, (part.strip() for part in text.split(","))):
        found = [name for name in names[1:] if word in (name, name.split(":")[1])]
        if len(found) != 1:
            reason = f"belongs to several slots: {', '.join(found)}" if found else "is not a word of this checkpoint"
            raise InputError(f"caption: '{word}' {reason}. Words are: {', '.join(names[1:])}.")
        own = places[slots.index(found[0].split(":")[0])]
        if names.index(found[0]) not in own:
            own.append(names.index(found[0]))
    return [own or [0] for own in places]
