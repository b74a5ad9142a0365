"""Baselines: what they change, what they leave alone, and formulas worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from anomalydiffusion_core.baselines import (
    CropPaste,
    CutPaste,
    Draem,
    FolderTextures,
    Made,
    Method,
    Moves,
    PoissonBlending,
    Prn,
    ProceduralTextures,
    Source,
    make_pairs,
)
from anomalydiffusion_core.baselines.draem import blend
from anomalydiffusion_core.baselines.moving import find_place
from anomalydiffusion_core.baselines.perlin import perlin_mask
from anomalydiffusion_core.baselines.poisson import poisson_paste
from anomalydiffusion_core.baselines.prn import shuffled_blocks
from anomalydiffusion_core.baselines.textures import augmented
from anomalydiffusion_core.data.export import export_pairs
from anomalydiffusion_core.data.mvtec import load_dataset, load_images, load_pairs
from anomalydiffusion_core.data.pairs import load_exported
from anomalydiffusion_core.errors import DatasetError, InputError
from anomalydiffusion_core.masks.procedural import perlin_noise

pytestmark = pytest.mark.core

STILL = Moves(flips=False, max_degrees=0.0, min_scale=1.0, max_scale=1.0)


def normals(count: int = 3, height: int = 48, width: int = 64) -> Tensor:
    """Noisy images of 8-bit values, brighter to the right, so that pieces of them differ."""
    noise = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))
    ramp = torch.linspace(0.2, 0.7, width)
    return ((0.2 * noise + ramp) * 255).round().clamp(0, 255) / 255


def source(height: int = 48, width: int = 64) -> Source:
    """A red L of 9 + 5 px on a grey image."""
    image, mask = torch.full((3, height, width), 0.5), torch.zeros(1, height, width)
    mask[:, 10:19, 20:21] = 1
    mask[:, 18:19, 20:26] = 1
    image = torch.where(mask > 0, torch.tensor([0.9, 0.1, 0.1])[:, None, None], image)
    return Source(image, mask, "L")


METHODS: dict[str, Method] = {
    "crop": CropPaste([source()]),
    "cutpaste": CutPaste(),
    "draem": Draem(),
    "prn": Prn([source()]),
    "poisson": PoissonBlending([source()]),
}


@pytest.mark.parametrize("name", METHODS)
def test_only_the_mask_changes_and_seeds_decide(name: str) -> None:
    method, good = METHODS[name], normals(4)
    seen: list[int] = []
    made = make_pairs(method, good, 5, "part/dot", on_step=seen.append)
    assert seen == [1, 2, 3, 4]
    assert made.images.shape == good.shape and made.masks.shape == (4, 1, 48, 64)
    assert set(made.masks.unique().tolist()) == {0.0, 1.0}
    assert 0 <= float(made.images.min()) and float(made.images.max()) <= 1
    outside = (made.masks == 0).expand_as(good)
    assert torch.equal(made.images[outside], good[outside])
    for image, mask, normal in zip(made.images, made.masks, good, strict=True):
        assert bool((((image * 255).round() != (normal * 255).round()).any(0, keepdim=True) & (mask > 0)).any())
    again = make_pairs(method, good, 5, "part/dot")
    assert torch.equal(again.images, made.images) and again.records == made.records
    alone = make_pairs(method, good[2:3], 7, "part/dot")
    assert torch.equal(alone.images[0], made.images[2]) and alone.records[0] == made.records[2]
    assert not torch.equal(make_pairs(method, good, 6, "part/dot").images[0], made.images[0])
    assert not torch.equal(make_pairs(method, good, 5, "part/bar").masks, made.masks)
    assert [record["seed"] for record in made.records] == [5, 6, 7, 8]
    assert {record["settings"]["method"] for record in made.records} == {method.name}
    inside = (made.images - good).abs().mean(dim=1, keepdim=True) * 255 * made.masks
    by_hand = inside.flatten(1).sum(1) / made.masks.flatten(1).sum(1)
    assert [record["effect_score"] for record in made.records] == pytest.approx(by_hand.tolist(), abs=2e-3)


@pytest.mark.parametrize("name", METHODS)
def test_foreground_bounds_every_change(name: str) -> None:
    foreground = torch.zeros(1, 1, 48, 64)
    foreground[:, :, 12:40, 16:56] = 1
    made = make_pairs(METHODS[name], normals(6), 0, foreground=foreground)
    assert not bool((made.masks * (1 - foreground)).any())
    assert bool(made.masks.flatten(1).any(dim=1).all())
    too_small = torch.zeros(1, 1, 48, 64)
    too_small[:, :, 0, 0] = 1
    with pytest.raises(InputError, match="foreground"):
        make_pairs(METHODS[name], normals(6), 0, foreground=too_small)
    with pytest.raises(InputError, match="one mask of their size, or one for each"):
        make_pairs(METHODS[name], normals(3), 0, foreground=foreground.expand(2, -1, -1, -1))


def test_the_manifest_of_an_export_says_the_method(tmp_path: Path) -> None:
    good = normals(2)
    made = make_pairs(METHODS["draem"], good, 3)
    lines = export_pairs(tmp_path / "pairs", "part", "simulated", made.images, made.masks, good, made.records)
    assert [line["outside_max_abs_diff"] for line in lines] == [0, 0]
    record = load_exported(tmp_path / "pairs")[1].record
    assert record["seed"] == 4 and record["settings"]["method"] == "DRAEM"
    assert record["settings"]["texture"].startswith("procedural surfaces: ")
    assert record["effect_score"] == made.records[1]["effect_score"] > 0


def test_an_unchanged_cut_out_is_pasted_pixel_for_pixel() -> None:
    made = make_pairs(CropPaste([source()], STILL), normals(5), 0)
    for image, mask, record in zip(made.images, made.masks, made.records, strict=True):
        top, left = record["settings"]["top"], record["settings"]["left"]
        expected = torch.zeros(1, 48, 64)
        expected[:, top : top + 9, left : left + 1] = 1
        expected[:, top + 8 : top + 9, left : left + 6] = 1
        assert torch.equal(mask, expected)
        assert torch.allclose(image[:, mask[0] > 0], torch.tensor([[0.9], [0.1], [0.1]]), atol=1e-6)
        assert record["settings"]["source"] == "L" and record["settings"]["scale"] == 1


def test_turned_and_scaled_cut_outs_hold_no_background() -> None:
    """A red square of 12 px on grey, turned by anything: pixels deep inside stay red, the area follows the scale."""
    image, mask = torch.full((3, 48, 48), 0.5), torch.zeros(1, 48, 48)
    mask[:, 0:12, 10:22] = 1  # at the border: no black may come in from beyond it
    image = torch.where(mask > 0, torch.tensor([1.0, 0.0, 0.0])[:, None, None], image)
    moves = Moves(max_degrees=180, min_scale=0.5, max_scale=2.0)
    made = make_pairs(CropPaste([Source(image, mask, "red")], moves), torch.zeros(12, 3, 48, 48), 1)
    for image, pasted, record in zip(made.images, made.masks, made.records, strict=True):
        area = 144 * record["settings"]["scale"] ** 2
        assert float(pasted.sum()) == pytest.approx(area, rel=0.25)
        assert float(image[0][pasted[0] > 0].min()) > 0.49, "red or grey, both at least half red"
        assert float(image[0].max()) == pytest.approx(1.0, abs=1e-5)
    assert len({record["settings"]["degrees"] for record in made.records}) == 12


def test_thin_lines_survive_turning() -> None:
    image, mask = torch.zeros(3, 40, 40), torch.zeros(1, 40, 40)
    mask[:, 20, 5:35] = 1
    image[:, 20] = 1
    made = make_pairs(
        CropPaste([Source(image, mask, "line")], Moves(max_degrees=90)), torch.full((8, 3, 40, 40), 0.2), 0
    )
    assert float(made.masks.flatten(1).sum(1).min()) > 15


def test_a_defect_as_large_as_the_image_still_fits() -> None:
    mask = torch.ones(1, 20, 20)
    made = make_pairs(CropPaste([Source(torch.rand(3, 20, 20), mask, "all")]), torch.zeros(2, 3, 20, 20), 0)
    assert made.masks.shape[2:] == (20, 20)


def test_places_are_those_that_the_foreground_covers() -> None:
    shape = torch.ones(1, 2, 3)
    foreground = torch.zeros(1, 6, 8)
    foreground[:, 2:5, 3:7] = 1  # 3 x 4: a 2 x 3 box fits whole at 2 rows x 2 columns
    rng = np.random.default_rng(0)
    assert {find_place(shape, (6, 8), rng, foreground, 1.0) for _ in range(60)} == {(2, 3), (2, 4), (3, 3), (3, 4)}
    # half of it: 3 of 6 pixels, by rows x columns covered: 1x3 and 2x2 and 2x3, counted by hand
    expected = {(y, x) for y in (1, 2, 3, 4) for x in (3, 4)} | {(y, x) for y in (2, 3) for x in (2, 5)}
    assert {find_place(shape, (6, 8), rng, foreground, 0.5) for _ in range(400)} == expected
    with pytest.raises(InputError, match=r"foreground_overlap|do not fit"):
        find_place(torch.ones(1, 7, 3), (6, 8), rng, foreground, 1.0)
    with pytest.raises(InputError, match=r"a region of 20 px lies on it by at most 0\.60"):
        find_place(torch.ones(1, 4, 5), (6, 8), rng, foreground, 0.9)


def test_a_change_that_does_not_fit_the_foreground_is_drawn_again() -> None:
    """20 px a side, by 0.5 to 2: a foreground of 22 px takes those up to 1.1; 43 per cent of the draws are larger."""
    mask, foreground = torch.zeros(1, 64, 64), torch.zeros(1, 1, 64, 64)
    mask[:, 10:30, 10:30] = 1
    foreground[..., 40:62, 40:62] = 1
    moves = Moves(flips=False, max_degrees=0, min_scale=0.5, max_scale=2.0, foreground_overlap=1.0)
    crop_paste = CropPaste([Source(torch.ones(3, 64, 64), mask, "square")], moves)
    made = make_pairs(crop_paste, torch.zeros(20, 3, 64, 64), 0, foreground=foreground)
    sides = [round(math.sqrt(float(pasted.sum()))) for pasted in made.masks]
    assert max(sides) <= 22 and min(sides) < 15
    assert torch.equal(made.masks * foreground, made.masks)
    narrow = torch.zeros_like(foreground)
    narrow[..., 40:44] = 1  # too narrow for the smallest
    with pytest.raises(InputError, match="Lower foreground_overlap or mark a larger foreground"):
        make_pairs(crop_paste, torch.zeros(1, 3, 64, 64), 0, foreground=narrow)


def test_cutpaste_takes_pixels_of_the_image_itself() -> None:
    good = normals(8, 64, 64)
    patches = make_pairs(CutPaste("patch"), good, 0)
    for mask, record in zip(patches.masks, patches.records, strict=True):
        _, _, height, width = record["settings"]["from"]
        assert float(mask.sum()) == height * width
        assert 0.015 < height * width / 64**2 < 0.16, "2 to 15 per cent, rounded to whole pixels"
    scars = make_pairs(CutPaste("scar"), good, 0)
    sides = [record["settings"]["from"][2:] for record in scars.records]
    assert all(2 <= height <= 6 and 1 <= width <= 4 for height, width in sides), "a quarter of 10-25 and 2-16 px"
    assert {record["settings"]["variant"] for record in make_pairs(CutPaste(), good, 0).records} == {"patch", "scar"}
    grey = torch.full((1, 3, 32, 32), 0.5)
    made = make_pairs(CutPaste("patch"), grey, 0)
    # brightness within a tenth, and contrast, saturation and hue leave plain grey alone
    assert 0.45 <= float(made.images.min()) and float(made.images.max()) <= 0.55
    with pytest.raises(InputError, match="CutPaste: 10 tries changed nothing"):
        make_pairs(CutPaste(), torch.zeros(1, 3, 32, 32), 0)


def test_perlin_noise_is_gradient_noise() -> None:
    rng = np.random.default_rng(0)
    noise = perlin_noise(rng, *np.meshgrid(np.arange(32) / 8, np.arange(64) / 8, indexing="ij"))
    assert noise.shape == (32, 64)
    assert np.abs(noise[::8, ::8]).max() < 1e-12, "0 at the corners of the cells"
    # in the middle of a cell: half of the sum of gradient . offset over its corners, times sqrt(2)
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, (5, 9))
    offsets = ((0.5, 0.5), (0.5, -0.5), (-0.5, 0.5), (-0.5, -0.5))
    corners = ((0, 0), (0, 1), (1, 0), (1, 1))
    total = sum(np.sin(angles[c]) * o[0] + np.cos(angles[c]) * o[1] for c, o in zip(corners, offsets, strict=True))
    assert noise[4, 4] == pytest.approx(np.sqrt(2) * total / 4)
    sizes = [float(perlin_mask((64, 64), rng).mean()) for _ in range(30)]
    assert min(sizes) >= 0.0005 and max(sizes) <= 0.5 and len(set(sizes)) > 25


def test_draem_equation() -> None:
    normal, texture = torch.full((3, 2, 2), 0.8), torch.full((3, 2, 2), 0.3)
    mask = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    made = blend(normal, texture, mask, 0.25, "grey")
    assert torch.allclose(made.image[:, 0, 0], torch.tensor(0.75 * 0.3 + 0.25 * 0.8))
    assert torch.allclose(made.image[:, 0, 1], torch.tensor(0.8))


def test_textures_come_from_a_folder_or_are_named_procedural(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no images"):
        FolderTextures(tmp_path)
    (tmp_path / "banded").mkdir()
    Image.new("RGB", (30, 20), (255, 0, 0)).save(tmp_path / "banded" / "1.jpg")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    folder = FolderTextures(tmp_path)
    texture, called = folder.draw(np.random.default_rng(0), (8, 12))
    assert texture.shape == (3, 8, 12) and called == "banded/1.jpg" and float(texture[0].min()) > 0.98
    made = make_pairs(Draem(folder), normals(2), 0)
    assert made.records[0]["settings"]["texture"] == "banded/1.jpg"
    rendered, called = ProceduralTextures().draw(np.random.default_rng(0), (40, 20))
    assert rendered.shape == (3, 40, 20) and called.startswith("procedural surfaces: ")
    rng = np.random.default_rng(0)
    for _ in range(40):
        changed = augmented(rendered, rng)
        assert changed.shape == rendered.shape and 0 <= float(changed.min()) and float(changed.max()) <= 1


def test_shuffled_blocks_keep_every_pixel() -> None:
    image = torch.arange(3 * 16 * 12, dtype=torch.float32).reshape(3, 16, 12)
    mixed = shuffled_blocks(image, np.random.default_rng(0))
    assert not torch.equal(mixed, image)
    assert torch.equal(mixed.flatten().sort().values, image.flatten())
    # blocks of 2 x 3 stay together
    where = (mixed[0] == image[0, 4, 6]).nonzero()[0]
    assert torch.equal(mixed[0, where[0] : where[0] + 2, where[1] : where[1] + 3], image[0, 4:6, 6:9])
    assert shuffled_blocks(torch.rand(3, 17, 5), np.random.default_rng(0)).shape == (3, 17, 5)


def test_prn_mixes_real_and_simulated() -> None:
    kinds = [r["settings"]["kind"] for r in make_pairs(Prn([source()]), normals(1).expand(20, -1, -1, -1), 0).records]
    assert {"real", "simulated"} == set(kinds) and 4 <= kinds.count("real") <= 16
    only = make_pairs(Prn([source()], real_share=1.0), normals(6), 0).records
    assert {record["settings"]["kind"] for record in only} == {"real"}
    with pytest.raises(InputError, match="real_share"):
        Prn([source()], real_share=1.5)


def test_poisson_paste_by_hand() -> None:
    """One unknown: 4 f = sum of the four neighbours + sum of (s_p - s_q)."""
    target = torch.zeros(3, 3, 3)
    target[:, 0, 1], target[:, 1, 0], target[:, 1, 2], target[:, 2, 1] = 0.1, 0.2, 0.3, 0.4
    source_pixels = torch.full((3, 3, 3), 0.5)
    source_pixels[:, 1, 1] = 0.6
    mask = torch.zeros(1, 3, 3)
    mask[:, 1, 1] = 1
    assert float(poisson_paste(source_pixels, target, mask)[0, 1, 1]) == pytest.approx(0.25 + 0.1)
    # at the upper left corner only two neighbours exist: 2 f = 0.1 + 0.2 + 0
    corner = torch.zeros(1, 3, 3)
    corner[:, 0, 0] = 1
    flat = torch.full((3, 3, 3), 0.5)
    assert float(poisson_paste(flat, target, corner)[0, 0, 0]) == pytest.approx(0.15)
    # mixed: the target's own differences are larger than those of a flat source, so nothing changes
    assert torch.allclose(poisson_paste(flat, target, mask, mixed=True), target)
    with pytest.raises(InputError, match="covers the whole image"):
        poisson_paste(flat, target, torch.ones(1, 3, 3))


def test_poisson_paste_shifts_a_patch_to_the_tone_of_its_surroundings() -> None:
    """A source that is the target plus a constant gives the target: only differences count."""
    target = normals(1, 20, 20)[0] * 0.5
    mask = torch.zeros(1, 20, 20)
    mask[:, 4:15, 0:9] = 1
    assert torch.allclose(poisson_paste(target + 0.3, target, mask), target, atol=1e-5)
    bump = target.clone()
    bump[:, 8:11, 3:6] += 0.2
    assert torch.allclose(poisson_paste(bump + 0.3, target, mask), bump, atol=1e-5)


def test_sources_and_settings_are_checked() -> None:
    with pytest.raises(InputError, match="none to cut out"):
        CropPaste([])
    with pytest.raises(InputError, match="empty mask"):
        CropPaste([Source(torch.zeros(3, 4, 4), torch.zeros(1, 4, 4), "none")])
    for changed in ({"max_degrees": 200}, {"min_scale": 2.0}, {"foreground_overlap": 0.0}):
        with pytest.raises(InputError):
            Moves(**changed)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="variant"):
        CutPaste("dot")
    with pytest.raises(InputError, match="transparency"):
        Draem(transparency=1.0)
    assert isinstance(CropPaste([source()]).make(normals(1)[0], np.random.default_rng(0), None), Made)


@pytest.mark.parametrize("size", [(64, 64), (80, 50)])
def test_real_bottles(shared_data: Path, size: tuple[int, int]) -> None:
    dataset = load_dataset(shared_data, "bottle")
    good = torch.nn.functional.interpolate(load_images(dataset.normals[:3], 64), size=size, mode="nearest")
    images, masks = load_pairs(dataset.types[0].train, size)
    sources = [Source(*parts, f"{i}") for i, parts in enumerate(zip(images, masks, strict=True))]
    for method in (CropPaste(sources), PoissonBlending(sources), Prn(sources), Draem(), CutPaste()):
        made = make_pairs(method, good, 0)
        outside = (made.masks == 0).expand_as(good)
        assert torch.equal(made.images[outside], good[outside])
        assert all(record["outside_max_abs_diff"] == 0 for record in made.records)
