"""Rendered photographs: exact masks, light by hand, sizes as in real sets, words that tell the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from anomalydiffusion_core.synthetic.captions import (
    PLACES,
    SIZES,
    SLOTS,
    Caption,
    caption_ids,
    normal_caption_ids,
)
from anomalydiffusion_core.synthetic.captions import vocabulary as first_vocabulary
from anomalydiffusion_core.synthetic.photo import TextureBank, camera, render_photo, sample_caption, vocabulary
from anomalydiffusion_core.synthetic.photo.light import ROOM_STEPS, Light, Surface, shade, slopes
from anomalydiffusion_core.synthetic.photo.scene import distinct_colours
from anomalydiffusion_core.synthetic.scene import Scene

pytestmark = pytest.mark.core

COMBINATIONS = [(surface, defect) for surface, defects in vocabulary.DEFECTS_OF.items() for defect in defects]


@pytest.fixture(scope="module")
def bank() -> TextureBank:
    return TextureBank(seed=3, size=288)


def words(surface: str, defect: str, size: str = "medium", place: str = "middle-left") -> Caption:
    colour = vocabulary.COLOURS_OF.get(surface, ("green",))[0]
    paint = distinct_colours(colour, defect)[0] if defect in vocabulary.PAINTED else "none"
    return Caption(surface, colour, defect, paint, size, place)


def check_untouched(scene: Scene, least: float) -> None:
    difference = np.abs(scene.image.astype(int) - scene.normal.astype(int))
    assert scene.mask.any()
    assert difference[~scene.mask].max() == 0
    assert difference[scene.mask].mean() > least


@pytest.mark.parametrize(("surface", "defect"), COMBINATIONS, ids=[" ".join(pair) for pair in COMBINATIONS])
def test_a_defect_changes_its_mask_and_nothing_else(bank: TextureBank, surface: str, defect: str) -> None:
    scene = render_photo(np.random.default_rng(11), bank, words(surface, defect), 160)
    assert scene.image.shape == (160, 160, 3) and scene.image.dtype == np.uint8 and scene.mask.dtype == bool
    check_untouched(scene, 4)
    assert scene.normal.std() > 1


def test_jpeg_leaves_everything_outside_the_mask_alone(bank: TextureBank, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = render_photo(np.random.default_rng(2), bank, words("plastic", "stain"), 192)
    monkeypatch.setattr(camera, "JPEG_SHARE", 1.0)
    scene = render_photo(np.random.default_rng(2), bank, words("plastic", "stain"), 192)
    assert not np.array_equal(plain.normal, scene.normal)
    check_untouched(scene, 4)


def test_equal_seeds_give_equal_photographs() -> None:
    def photographs(seed: int, bank_seed: int) -> np.ndarray:
        rng, bank = np.random.default_rng(seed), TextureBank(bank_seed, size=160)
        return np.stack([render_photo(rng, bank, sample_caption(rng), 144).image for _ in range(6)])

    first = photographs(5, 1)
    assert np.array_equal(first, photographs(5, 1))
    assert not np.array_equal(first, photographs(6, 1))
    assert not np.array_equal(first, photographs(5, 2))


def lit(height: np.ndarray, **changes: float) -> np.ndarray:
    """A slope under a lamp at 30 degrees from the right, a quarter of the light from all sides; no gloss."""
    field = np.ones_like(height)
    light = Light((0.0, 0.75**0.5, 0.5), 0.25, np.ones(3, np.float32), 0.0, field, np.ones(ROOM_STEPS), (0.0, 1.0))
    surface = Surface.flat(np.full((3, *height.shape), 0.5, np.float32), height, changes.get("gloss", 0.0), 10.0)
    return shade(surface, light, height.shape[0])


def test_light_on_a_slope_is_as_worked_out_by_hand() -> None:
    flat, right = np.zeros((8, 8), np.float32), np.tile(np.arange(8, dtype=np.float32) * 0.75, (8, 1))
    down, across = slopes(right)
    assert np.allclose(down, 0) and np.allclose(across, 0.75)
    assert np.allclose(lit(flat), 0.5)
    # Height rises to the right at 3/4: normal (0, -0.6, 0.8). The lamp (0, 0.866, 0.5) is behind it.
    assert np.allclose(lit(right), 0.5 * 0.25 * 0.8, atol=1e-6)
    # Facing it: cosine 0.6 * 0.866 + 0.8 * 0.5 = 0.91962, over that of a flat surface, 0.5.
    assert np.allclose(lit(-right), 0.5 * (0.75 * 0.91962 / 0.5 + 0.25 * 0.8), atol=1e-4)
    # Half vector of lamp and camera: 30 degrees from the vertical, cosine 0.86603; exp(10 (0.86603 - 1)) = 0.26188.
    assert np.allclose(lit(flat, gloss=0.5), 0.5 + 0.5 * 0.26188, atol=1e-4)


def thickness(mask: np.ndarray) -> float:
    """Twice the distance to the border that a tenth of the mask exceeds, in pixels."""
    inside = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    return float(2 * np.quantile(inside[mask], 0.9))


# Medians measured at 256 px: cracks of magnetic tiles 3.2 px thick, 0.3 % of the image (0.15 to 1.8);
# blowholes 5.7 px, 0.12 % (0.07 to 0.3); contamination of bottles 39 px, 7 % (1.8 to 15).
@pytest.mark.parametrize(
    ("surface", "defect", "size", "thin", "thick", "least", "most"),
    [
        ("brushed-metal", "crack", "medium", 2, 4.5, 0.1, 1.8),
        ("brushed-metal", "scratch", "medium", 2, 4.5, 0.05, 1.0),
        ("cast-metal", "hole", "small", 3, 9, 0.03, 0.3),
        ("plastic", "residue", "large", 15, 90, 1.5, 15),
        ("ceramic", "stain", "large", 15, 90, 1.5, 15),
    ],
)
def test_masks_have_the_sizes_of_real_ones(
    bank: TextureBank, surface: str, defect: str, size: str, thin: float, thick: float, least: float, most: float
) -> None:
    rng = np.random.default_rng(4)
    masks = [render_photo(rng, bank, words(surface, defect, size, "middle-centre")).mask for _ in range(24)]
    assert thin <= np.median([thickness(mask) for mask in masks]) <= thick
    assert least <= np.median([100 * mask.mean() for mask in masks]) <= most


@pytest.mark.parametrize("defect", ["scratch", "hole", "stain"])
def test_sizes_are_ordered(bank: TextureBank, defect: str) -> None:
    areas = {}
    for size in SIZES:
        rng = np.random.default_rng(8)
        caption = words("plastic", defect, size, "middle-centre")
        areas[size] = np.mean([render_photo(rng, bank, caption).mask.sum() for _ in range(10)])
    assert areas["small"] * 1.4 < areas["medium"] < areas["large"] / 1.4


@pytest.mark.parametrize("surface", ["leather", "ring", "bottle"])
def test_the_place_word_names_the_ninth_where_the_defect_is(bank: TextureBank, surface: str) -> None:
    rng = np.random.default_rng(6)
    for place in PLACES:
        scene = render_photo(rng, bank, words(surface, "stain", "small", place))
        rows, columns = np.nonzero(scene.mask)
        row, column = divmod(PLACES.index(scene.caption.place), 3)
        # An outline is moved to lie in the image, by its own radius at most.
        assert abs(rows.mean() - (row + 0.5) * 256 / 3) < 256 / 6 + 8
        assert abs(columns.mean() - (column + 0.5) * 256 / 3) < 256 / 6 + 8
        assert surface != "leather" or scene.caption.place == place


def test_a_mask_alone_is_white_on_black(bank: TextureBank) -> None:
    for defect in vocabulary.DEFECTS[1:]:
        scene = render_photo(
            np.random.default_rng(3), bank, Caption("mask", "none", defect, "none", "large", PLACES[4])
        )
        assert np.array_equal(scene.image[:, :, 0] == 255, scene.mask) and scene.mask.any()
        assert set(np.unique(scene.image)) == {0, 255}


def test_captions_for_pretraining_leave_the_held_out_combinations_out() -> None:
    rng = np.random.default_rng(0)
    captions = [sample_caption(rng) for _ in range(12_000)]
    drawn = {(caption.surface, caption.defect) for caption in captions if caption.surface != "mask"}
    assert drawn.isdisjoint(vocabulary.HELD_OUT)
    expected = {pair for pair in COMBINATIONS if pair not in vocabulary.HELD_OUT}
    assert {pair for pair in drawn if pair[1] != "good"} == expected
    assert all(pair in COMBINATIONS for pair in vocabulary.HELD_OUT)


def test_captions_index_their_own_words() -> None:
    table = vocabulary.vocabulary()
    assert len(set(table)) == len(table)
    assert 12 % len(SLOTS) == 0
    ids = caption_ids(words("bottle", "residue", "large", "top-left"), table)
    assert [table[row] for row in ids] == [
        "surface:bottle",
        "surface_colour:black",
        "defect:residue",
        "defect_colour:light",
        "size:large",
        "place:top-left",
    ]
    assert caption_ids(None, table) == [0] * 6
    assert [table[row] for row in normal_caption_ids(table)] == ["<empty>", "<empty>", "defect:good"] + ["<empty>"] * 3
    assert table != first_vocabulary(), "a version of its own; the first stays as the shipped prior has it"


def test_an_image_too_small_for_its_defects_is_refused(bank: TextureBank) -> None:
    with pytest.raises(ValueError, match="at least 128"):
        render_photo(np.random.default_rng(0), bank, Caption("plastic", "red"), 64)


def test_shots_of_one_design_show_one_product(bank: TextureBank) -> None:
    def shot(seed: int, design: int | None, surface: str = "cap") -> np.ndarray:
        caption = Caption(surface, "blue")
        return render_photo(np.random.default_rng(seed), bank, caption, 128, design).image.astype(float)

    first, second, other = shot(1, 5), shot(2, 5), shot(1, 6)
    assert np.array_equal(first, shot(1, 5)) and not np.array_equal(first, second)
    same, different = np.abs(first - second).mean(), np.abs(first - other).mean()
    assert same < 0.5 * different
    # A surface's spot is another each time: no pixel tells of the next image, but the colours are alike.
    spots = [shot(seed, 5, "leather") for seed in range(4)]
    inner = [spot[16:-16, 16:-16].mean(2) for spot in spots]
    assert abs(np.corrcoef(inner[0].ravel() - inner[0].mean(), inner[1].ravel())[0, 1]) < 0.8
    assert np.ptp([spot.mean() for spot in spots]) < 60
