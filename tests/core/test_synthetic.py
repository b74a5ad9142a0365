"""The procedural renderer: exact masks, honest captions, held-out combinations, the few-shot folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalydiffusion_core.synthetic import (
    HELD_OUT_COMBINATIONS,
    Caption,
    NoiseBank,
    caption_ids,
    render_fewshot_set,
    render_scene,
    sample_caption,
    vocabulary,
)
from anomalydiffusion_core.synthetic.captions import DEFECTS, PLACES, SIZES, SURFACES, normal_caption_ids
from anomalydiffusion_core.synthetic.fewshot import CAP

pytestmark = pytest.mark.core


@pytest.fixture(scope="module")
def bank() -> NoiseBank:
    return NoiseBank(seed=3, size=256)


@pytest.mark.parametrize("surface", [name for name in SURFACES if name != "mask"])
@pytest.mark.parametrize("defect", [name for name in DEFECTS if name != "good"])
def test_a_defect_changes_its_mask_and_nothing_else(bank: NoiseBank, surface: str, defect: str) -> None:
    rng = np.random.default_rng(11)
    colour = "light" if defect in ("stain", "scratch") else "none"
    scene = render_scene(rng, bank, Caption(surface, "brown", defect, colour, "medium", "middle-centre"), 128)
    difference = np.abs(scene.image.astype(int) - scene.normal.astype(int))
    assert difference[~scene.mask].max() == 0
    assert difference[scene.mask].mean() > 8
    border = np.concatenate([scene.mask[0], scene.mask[-1], scene.mask[:, 0], scene.mask[:, -1]])
    assert scene.mask.any() and not border.any()


def test_the_place_word_names_the_ninth_of_the_centre(bank: NoiseBank) -> None:
    rng = np.random.default_rng(5)
    for index, place in enumerate(PLACES):
        scene = render_scene(rng, bank, Caption("plastic", "grey", "stain", "dark", "small", place), 256)
        rows, columns = np.nonzero(scene.mask)
        # Half a radius of slack: irregular outlines have their centre of mass beside the drawn centre.
        assert abs(rows.mean() - (index // 3 + 0.5) * 256 / 3) < 256 / 6 + 7
        assert abs(columns.mean() - (index % 3 + 0.5) * 256 / 3) < 256 / 6 + 7


def test_an_image_too_small_for_its_defects_is_refused(bank: NoiseBank) -> None:
    with pytest.raises(ValueError, match="at least 128"):
        render_scene(np.random.default_rng(0), bank, Caption("metal"), 64)


def test_sizes_are_ordered(bank: NoiseBank) -> None:
    areas = {}
    for size in SIZES:
        rng = np.random.default_rng(8)
        scenes = [
            render_scene(rng, bank, Caption("metal", "grey", "stain", "dark", size, "middle-centre"), 128)
            for _ in range(6)
        ]
        areas[size] = np.mean([scene.mask.sum() for scene in scenes])
    assert areas["small"] * 1.5 < areas["medium"] < areas["large"] / 1.5


def test_pretraining_never_draws_a_held_out_combination() -> None:
    rng = np.random.default_rng(0)
    captions = [sample_caption(rng) for _ in range(4000)]
    drawn = {(caption.surface, caption.defect) for caption in captions}
    assert drawn.isdisjoint(HELD_OUT_COMBINATIONS)
    defective = [pair for pair in drawn if pair[0] != "mask" and pair[1] != "good"]
    assert len(defective) == 5 * 4 - len(HELD_OUT_COMBINATIONS)


def test_captions_index_their_own_words() -> None:
    words = vocabulary()
    assert len(set(words)) == len(words)
    ids = caption_ids(Caption("leather", "brown", "scratch", "light", "large", "top-left"))
    assert [words[i] for i in ids] == [
        "surface:leather",
        "surface_colour:brown",
        "defect:scratch",
        "defect_colour:light",
        "size:large",
        "place:top-left",
    ]
    assert caption_ids(None) == [0] * 6
    assert [words[i] for i in normal_caption_ids()] == ["<empty>", "<empty>", "defect:good"] + ["<empty>"] * 3


def test_the_few_shot_set_has_the_mvtec_layout(tmp_path: Path) -> None:
    folder = render_fewshot_set(tmp_path, 1, size=128, train_pairs=2, test_pairs=3, normals=4, test_normals=2)
    assert folder == tmp_path / "leather"
    assert len(list((folder / "train" / "good").glob("*.png"))) == 4
    assert len(list((folder / "test" / "good").glob("*.png"))) == 2
    for defect in ("scratch", "stain"):
        images = sorted((folder / "test" / defect).glob("*.png"))
        assert [path.name for path in images] == [f"{i:03d}.png" for i in range(5)]
        for path in images:
            mask = np.asarray(Image.open(folder / "ground_truth" / defect / f"{path.stem}_mask.png"))
            assert mask.shape == (128, 128) and set(np.unique(mask)) == {0, 255}


def test_the_few_shot_set_depends_on_the_seed_alone(tmp_path: Path) -> None:
    sizes = {"size": 128, "train_pairs": 1, "test_pairs": 1, "normals": 1, "test_normals": 1}
    a, b, c = (render_fewshot_set(tmp_path / name, seed, **sizes) for name, seed in (("a", 4), ("b", 4), ("c", 5)))
    files = [path.relative_to(a) for path in sorted(a.rglob("*.png"))]
    assert all((a / file).read_bytes() == (b / file).read_bytes() for file in files)
    assert any((a / file).read_bytes() != (c / file).read_bytes() for file in files)
    assert render_fewshot_set(tmp_path / "a", 4, **sizes) == a
    with pytest.raises(FileExistsError, match="Remove the folder"):
        render_fewshot_set(tmp_path / "a", 9, **sizes)


def test_photographs_of_a_product_show_the_same_one_each_time(tmp_path: Path) -> None:
    sizes = {"size": 128, "train_pairs": 2, "test_pairs": 1, "normals": 4, "test_normals": 1}
    folder = render_fewshot_set(tmp_path, 3, CAP, **sizes)
    assert folder == tmp_path / "cap"
    assert sorted(path.name for path in (folder / "ground_truth").iterdir()) == ["chip", "scratch"]
    shots = [np.asarray(Image.open(path)).astype(float) for path in sorted((folder / "train" / "good").glob("*.png"))]
    # A blue cap in the middle, a bright background in the corners, whose brightness is the camera's.
    for shot in shots:
        middle, corner = shot[48:80, 48:80].mean((0, 1)), shot[:8, :8].mean((0, 1))
        assert middle[2] > middle[0] + 40 and corner.min() > middle.max() - 20
    assert all(0 < np.abs(shot - shots[0]).mean() < 25 for shot in shots[1:])
