"""A procedural few-shot data set in the MVTec layout, of combinations that the demo prior never saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError
from ..files import new_folder
from .captions import PLACES, SIZES, Caption
from .noise import NoiseBank
from .scene import distinct_colours, render_scene

CATEGORY = "leather"
STAMP = "rendered.txt"
SURFACE_COLOUR = "brown"
# Range of opacity; any colour that can be seen. Six examples cannot show them all, which is what the demo is about:
# a detector finds full ones of one colour after six, and nothing could be shown.
DEFECT_TYPES = {"scratch": (0.3, 0.7), "stain": (0.3, 0.7)}


def render_fewshot_set(
    folder: Path,
    seed: int = 0,
    *,
    size: int = 256,
    train_pairs: int = 6,
    test_pairs: int = 20,
    normals: int = 200,
    test_normals: int = 20,
) -> Path:
    """Write `<folder>/leather/{train/good, test/good, test/<defect>, ground_truth/<defect>}` and return its path.

    Each defect type has `train_pairs` pictures with the lowest numbers, then `test_pairs` more. The pictures depend
    on the arguments alone. A folder that is already complete is left as it is.

    Args:
        folder: data set root; created when missing.
        size: edge of the pictures in pixels.

    Raises:
        FileExistsError: `<folder>/leather` exists but was written with other arguments.
    """
    category = Path(folder) / CATEGORY
    stamp = category / STAMP
    counts = f"train={train_pairs} test={test_pairs} normals={normals},{test_normals}"
    settings = f"{CATEGORY} {SURFACE_COLOUR} {DEFECT_TYPES} any colour seed={seed} size={size} {counts}\n"
    if category.exists():
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == settings:
            return category
        raise FileExistsError(
            f"{category}: exists and was not written with '{settings.strip()}'. Remove the folder or choose another."
        )
    try:
        with new_folder(category) as staging:
            _render(staging, seed, size, train_pairs, test_pairs, normals, test_normals)
            (staging / stamp.name).write_text(settings, encoding="utf-8")
    except InputError:  # another process rendered here at the same time
        if not stamp.is_file() or stamp.read_text(encoding="utf-8") != settings:
            raise
    return category


def _render(
    staging: Path, seed: int, size: int, train_pairs: int, test_pairs: int, normals: int, test_normals: int
) -> None:
    bank = NoiseBank(seed=20_000 + seed)
    rng = np.random.default_rng([seed, 77])
    good = Caption(CATEGORY, SURFACE_COLOUR)
    for split, count in (("train", normals), ("test", test_normals)):
        for index in range(count):
            scene = render_scene(rng, bank, good, size)
            _save(scene.image, staging / split / "good" / f"{index:03d}.png")
    colours = distinct_colours(SURFACE_COLOUR)
    for defect, (faintest, strongest) in DEFECT_TYPES.items():
        for index in range(train_pairs + test_pairs):
            colour = str(rng.choice(colours))
            words = Caption(CATEGORY, SURFACE_COLOUR, defect, colour, str(rng.choice(SIZES)), str(rng.choice(PLACES)))
            scene = render_scene(rng, bank, words, size, rng.uniform(faintest, strongest))
            _save(scene.image, staging / "test" / defect / f"{index:03d}.png")
            mask = (scene.mask * 255).astype(np.uint8)
            _save(mask, staging / "ground_truth" / defect / f"{index:03d}_mask.png")


def is_rendered(category: Path) -> bool:
    """Whether a category's folder was written by `render_fewshot_set`."""
    return (category / STAMP).is_file()


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
