"""Commands that do what helper nodes do: baselines, merged bundles, masks measured, foregrounds found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from anomalydiffusion_core.baselines import CutPaste, make_pairs
from anomalydiffusion_core.baselines.folder import METHODS, BaselinePlan
from anomalydiffusion_core.bundles.bundle import AnomalyBundle, load_bundle
from anomalydiffusion_core.cli.app import app
from anomalydiffusion_core.data.pairs import load_exported
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.synthetic import render_fewshot_set

pytestmark = pytest.mark.core


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    render_fewshot_set(folder, size=128, train_pairs=3, test_pairs=1, normals=4, test_normals=1)
    return folder


def call(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("method", METHODS)
def test_each_baseline_has_pairs_that_equal_their_normal_image_outside_the_mask(
    data: Path, tmp_path: Path, method: str
) -> None:
    out = tmp_path / "pairs"
    call("baseline", method, "--data", data, "--category", "leather", "--out", out, "--count", 2, "--size", 64)
    pairs = load_exported(out)
    real = method in ("crop-and-paste", "prn", "poisson")
    assert {pair.key for pair in pairs} == ({"leather/scratch", "leather/stain"} if real else {"leather/simulated"})
    assert len(pairs) == (4 if real else 2)
    for pair in pairs:
        assert pair.normal is not None
        image, normal, mask = pixels(pair.image), pixels(pair.normal), pixels(pair.mask) > 0
        changed = (image != normal).any(2)
        assert image.shape == (64, 64, 3) and changed.any() and not (changed & ~mask).any()


def test_a_baseline_makes_the_pairs_of_its_node(data: Path, tmp_path: Path) -> None:
    given = ["--data", data, "--category", "leather", "--seed", 5, "--size", 64, "--set", "variant=scar"]
    call("baseline", "cutpaste", *given, "--count", 9, "--out", tmp_path / "pairs")
    pairs = load_exported(tmp_path / "pairs")
    stored = [pixels(pair.normal).astype(np.float32) / 255 for pair in pairs if pair.normal is not None]
    normals = torch.from_numpy(np.stack(stored))
    made = make_pairs(CutPaste(variant="scar"), normals.permute(0, 3, 1, 2), 5, "leather/simulated")
    for pair, image in zip(pairs, made.images, strict=True):
        # The stored normal images are rounded, those that the command read are not.
        assert np.abs(pixels(pair.image) - (image.permute(1, 2, 0) * 255).numpy()).max() <= 1.5


def test_unknown_methods_options_and_textures_are_named() -> None:
    with pytest.raises(InputError, match="crop-and-paste"):
        BaselinePlan("paste")
    with pytest.raises(InputError, match="strength"):
        BaselinePlan("cutpaste", options={"strength": 1})
    with pytest.raises(InputError, match="textures"):
        BaselinePlan("cutpaste", textures=Path("t"))


def test_copies_among_masks_are_counted(tmp_path: Path) -> None:
    mask = np.zeros((40, 50), np.uint8)
    mask[10:20, 10:20] = 255
    other = np.zeros_like(mask)
    other[30:40, 30:50] = 255
    for number, one in enumerate((mask, mask, other)):
        Image.fromarray(one).save(tmp_path / f"{number}.png")
    told = call("mask-report", tmp_path, "--out", tmp_path / "plot.png")
    # Areas of 100, 100 and 200 of 2000 pixels.
    assert "5.0" in told and "10" in told
    assert pixels(tmp_path / "plot.png").ndim == 3
    assert CliRunner().invoke(app, ["mask-report", str(tmp_path), "--out", str(tmp_path / "plot.png")]).exit_code == 1


def test_a_dark_part_on_a_light_background_is_found(tmp_path: Path) -> None:
    image = np.full((60, 80, 3), 230, np.uint8)
    image[20:40, 30:60] = (40, 60, 90)
    (tmp_path / "images").mkdir()
    Image.fromarray(image).save(tmp_path / "images" / "part.png")
    call("foreground", tmp_path / "images", "--out", tmp_path / "masks")
    expected = np.zeros((60, 80), bool)
    expected[20:40, 30:60] = True
    found = pixels(tmp_path / "masks" / "part_mask.png") > 0
    assert (found & expected).sum() / (found | expected).sum() > 0.95


def test_two_bundles_become_one_file_once(tmp_path: Path) -> None:
    for number, key in enumerate(("bottle/crack", "bottle/dent")):
        tokens = {key: torch.full((2, 8), float(number))}
        metadata = {"base_fingerprint": "f00", "token_route": "context", "settings": {"resolution": 64}}
        AnomalyBundle("mask", tokens, None, metadata).save(tmp_path / f"{number}.safetensors")
    both = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    for _ in range(2):
        told = call("merge-bundles", *both, "--out", tmp_path / "merged", "--name", "all")
    assert "saved before as all_00001.safetensors" in told
    merged = load_bundle(tmp_path / "merged" / "all_00001.safetensors")
    assert merged.types == ("bottle/crack", "bottle/dent") and float(merged.tokens["bottle/dent"].mean()) == 1
    done = CliRunner().invoke(app, ["save-textual-inversion", str(both[0]), "--out", str(tmp_path / "embeddings")])
    assert done.exit_code == 1 and "CLIP" in done.output  # its tokens are the context itself


def test_a_recipe_tells_how_pairs_were_made(data: Path, tmp_path: Path) -> None:
    given = ["--data", data, "--category", "leather", "--count", 1, "--size", 64, "--out", tmp_path / "pairs"]
    call("baseline", "draem", *given)
    recipe = json.loads((tmp_path / "pairs" / "recipe.json").read_text())
    assert recipe["method"] == "draem" and recipe["normals"]["count"] == 1
