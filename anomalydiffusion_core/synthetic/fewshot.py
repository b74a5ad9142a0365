"""A procedural few-shot data set in the MVTec layout, of combinations that the demo prior never saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InputError
from ..files import new_folder
from . import photo
from .captions import PLACES, SIZES, Caption
from .noise import NoiseBank
from .photo.scene import distinct_colours as distinct
from .scene import Scene, distinct_colours, render_scene

STAMP = "rendered.txt"
# Range of opacity; any colour that can be seen. Six examples cannot show them all, which is what the demo is about:
# a detector finds full ones of one colour after six, and nothing could be shown.
DEFECT_TYPES = {"scratch": (0.3, 0.7), "stain": (0.3, 0.7)}


@dataclass(frozen=True)
class Product:
    """What is rendered.

    Attributes:
        category: name of its folder.
        defects: its defect types.
        told: what a folder's stamp says of it.
        bank: makes the noise of a seed.
        shoot: (rng, bank, defect type or None for a normal image, side in pixels) to a scene.
    """

    category: str
    defects: tuple[str, ...]
    told: str
    bank: Callable[[int], Any]
    shoot: Callable[[np.random.Generator, Any, str | None, int], Scene]


def _drawn_leather(rng: np.random.Generator, bank: NoiseBank, defect: str | None, size: int) -> Scene:
    if defect is None:
        return render_scene(rng, bank, Caption("leather", "brown"), size)
    colour = str(rng.choice(distinct_colours("brown")))
    words = Caption("leather", "brown", defect, colour, str(rng.choice(SIZES)), str(rng.choice(PLACES)))
    return render_scene(rng, bank, words, size, rng.uniform(*DEFECT_TYPES[defect]))


def _photographed(surface: str, colour: str, design: int, paints: dict[str, tuple[str, ...]]) -> Product:
    """One product under one light, as a camera in a line sees it; a defect has one of its colours.

    The smallest defects are left out: of five pixels a layman sees nothing.
    """

    def shoot(rng: np.random.Generator, bank: photo.TextureBank, defect: str | None, size: int) -> Scene:
        words = Caption(surface, colour)
        if defect is not None:
            paint = str(rng.choice(paints[defect]))
            words = Caption(surface, colour, defect, paint, str(rng.choice(SIZES[1:])), str(rng.choice(PLACES)))
        return photo.render_photo(rng, bank, words, size, design)

    told = f"{colour} {surface}, design {design}, {paints}"
    return Product(surface, tuple(paints), told, photo.TextureBank, shoot)


DRAWN_LEATHER = Product(
    "leather", tuple(DEFECT_TYPES), f"leather brown {DEFECT_TYPES} any colour", NoiseBank, _drawn_leather
)
LEATHER = _photographed("leather", "brown", 4, {"scratch": ("light",), "stain": distinct("brown", "stain")})
CAP = _photographed("cap", "blue", 6, {"scratch": ("light",), "chip": ("none",)})
CATEGORY = DRAWN_LEATHER.category


def render_fewshot_set(
    folder: Path,
    seed: int = 0,
    product: Product = DRAWN_LEATHER,
    *,
    size: int = 256,
    train_pairs: int = 6,
    test_pairs: int = 20,
    normals: int = 200,
    test_normals: int = 20,
) -> Path:
    """Write `<folder>/<category>/{train/good, test/good, test/<defect>, ground_truth/<defect>}` and return its path.

    Each defect type has `train_pairs` images with the lowest numbers, then `test_pairs` more. The images depend
    on the arguments alone. A folder that is already complete is left as it is.

    Args:
        folder: data set root; created when missing.
        size: edge of the images in pixels.

    Raises:
        FileExistsError: the category's folder exists but was written with other arguments.
    """
    category = Path(folder) / product.category
    stamp = category / STAMP
    counts = f"train={train_pairs} test={test_pairs} normals={normals},{test_normals}"
    settings = f"{product.told} seed={seed} size={size} {counts}\n"
    if category.exists():
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == settings:
            return category
        raise FileExistsError(
            f"{category}: exists and was not written with '{settings.strip()}'. Remove the folder or choose another."
        )
    try:
        with new_folder(category) as staging:
            _render(staging, product, seed, size, train_pairs, test_pairs, normals, test_normals)
            (staging / stamp.name).write_text(settings, encoding="utf-8")
    except InputError:  # another process rendered here at the same time
        if not stamp.is_file() or stamp.read_text(encoding="utf-8") != settings:
            raise
    return category


def _render(
    staging: Path,
    product: Product,
    seed: int,
    size: int,
    train_pairs: int,
    test_pairs: int,
    normals: int,
    test_normals: int,
) -> None:
    bank = _bank(product.bank, 20_000 + seed)
    rng = np.random.default_rng([seed, 77])
    for split, count in (("train", normals), ("test", test_normals)):
        for index in range(count):
            _save(product.shoot(rng, bank, None, size).image, staging / split / "good" / f"{index:03d}.png")
    for defect in product.defects:
        for index in range(train_pairs + test_pairs):
            scene = product.shoot(rng, bank, defect, size)
            _save(scene.image, staging / "test" / defect / f"{index:03d}.png")
            mask = (scene.mask * 255).astype(np.uint8)
            _save(mask, staging / "ground_truth" / defect / f"{index:03d}_mask.png")


@lru_cache(maxsize=1)
def _bank(make: Callable[[int], Any], seed: int) -> Any:
    """The noise of a seed takes longer than a few images."""
    return make(seed)


def is_rendered(category: Path) -> bool:
    """Whether a category's folder was written by `render_fewshot_set`."""
    return (category / STAMP).is_file()


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
