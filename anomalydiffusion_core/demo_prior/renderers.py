"""What pretraining can be shown: the first renderer's flat surfaces, or photographs of surfaces and parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..synthetic import NoiseBank, captions, photo, scene
from ..synthetic.captions import Caption
from ..synthetic.photo import scene as photo_scene
from ..synthetic.photo import vocabulary as photo_words
from . import obedience


@dataclass(frozen=True, eq=False)
class Renderer:
    """A renderer with its words, and what the check of a prior asks of it.

    Attributes:
        bank: makes the noise of a seed, which costs seconds.
        render: (rng, bank, caption, side in pixels) to a scene.
        sample: (rng, share of masks alone) to a caption for pretraining.
        words: of its captions, as the word table has them.
        mask_share: usual share of images that show a mask alone.
        colours: surface colours by word, display values 0..1.
        checked: held-out combinations that few-shot learning is tried on.
        clear: defects that stand out from their surface, none of them held out.
        gallery: surfaces with a colour, for a sheet of samples.
    """

    name: str
    bank: Callable[[int], Any]
    render: Callable[[np.random.Generator, Any, Caption, int], scene.Scene]
    sample: Callable[[np.random.Generator, float], Caption]
    words: tuple[str, ...]
    mask_share: float
    colours: dict[str, tuple[float, float, float]]
    checked: tuple[Caption, ...]
    clear: tuple[Caption, ...]
    gallery: tuple[Caption, ...]

    def ids(self, caption: Caption | None) -> list[int]:
        """Row numbers in the word table, one per slot; `None` is the empty caption."""
        return captions.caption_ids(caption, self.words)


SURFACES = Renderer(
    "surfaces",
    NoiseBank,
    scene.render_scene,
    scene.sample_caption,
    captions.vocabulary(),
    scene.MASK_SHARE,
    captions.SURFACE_COLOURS,
    checked=(Caption("leather", "brown", "scratch", "light"), Caption("leather", "brown", "stain", "blue")),
    clear=obedience.CLEAR,
    gallery=tuple(
        Caption(*pair)
        for pair in (
            ("leather", "brown"),
            ("fabric", "blue"),
            ("stone", "grey"),
            ("metal", "red"),
            ("plastic", "green"),
        )
    ),
)
PHOTOS = Renderer(
    "photos",
    photo.TextureBank,
    photo.render_photo,
    photo.sample_caption,
    photo_words.vocabulary(),
    photo_scene.MASK_SHARE,
    photo_words.SURFACE_COLOURS,
    checked=(
        Caption("leather", "brown", "scratch", "light"),
        Caption("leather", "brown", "stain", "dark"),
        Caption("cap", "blue", "scratch", "light"),
        Caption("cap", "blue", "chip"),
    ),
    clear=(
        Caption("plastic", "white", "hole"),
        Caption("fabric", "blue", "stain", "yellow"),
        Caption("painted-sheet", "grey", "crack"),
        Caption("plastic", "green", "stain", "light"),
        Caption("ceramic", "white", "residue", "blue"),
        Caption("painted-sheet", "black", "scratch", "light"),
    ),
    gallery=tuple(
        Caption(*pair)
        for pair in (
            ("leather", "brown"),
            ("brushed-metal", "grey"),
            ("fabric", "blue"),
            ("concrete", "grey"),
            ("wood", "beige"),
            ("cap", "red"),
            ("bolt", "grey"),
            ("bottle", "black"),
        )
    ),
)
RENDERERS = {renderer.name: renderer for renderer in (PHOTOS, SURFACES)}


def renderer_of(words: Sequence[str]) -> Renderer:
    """The renderer whose words a stored prior has. Raises InputError if none has them."""
    for renderer in RENDERERS.values():
        if renderer.words == tuple(words):
            return renderer
    raise InputError("file: its words are those of no renderer. Give a file that pretrain-demo-prior wrote.")


def sampled(renderer: Renderer, seed: int, chunk: int, count: int, size: int, mask_share: float) -> Iterator[Any]:
    """Scenes of a chunk, which depend on the arguments alone; the noise is that of the seed."""
    rng, bank = np.random.default_rng([seed, size, chunk]), bank_of(renderer.name, seed)
    for _ in range(count):
        yield renderer.render(rng, bank, renderer.sample(rng, mask_share), size)


_banks: dict[tuple[str, int], Any] = {}


def bank_of(name: str, seed: int) -> Any:
    """The noise of a renderer's seed; the last one is kept."""
    if (name, seed) not in _banks:
        _banks.clear()
        _banks[name, seed] = RENDERERS[name].bank(10_000 + seed)
    return _banks[name, seed]
