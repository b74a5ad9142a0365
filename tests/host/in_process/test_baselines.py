"""Baselines through their nodes, exported in place of the sampler's images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

REAL = ("CropAndPaste", "PrnAnomalies", "PoissonBlending")
SIMULATED = ("CutPaste", "DraemAnomalies")


@pytest.mark.parametrize("name", [*REAL, *SIMULATED])
def test_pairs_of_a_baseline_are_exported_like_the_samplers(extension: Any, dataset: Any, name: str) -> None:
    normals = extension.run("PickNormals", dataset=dataset, count=3, size=0).args[0]
    own = {"dataset": dataset, "defect_type": "dot"} if name in REAL else {"defect_type": "part/made"}
    foreground = torch.zeros(1, 64, 64)
    foreground[:, :, 8:] = 1
    images, masks, effects, key, report = extension.run(name, image=normals, seed=4, foreground=foreground, **own).args
    assert images.shape == normals.shape and masks.shape == (3, 64, 64)
    assert set(masks.unique().tolist()) == {0.0, 1.0} and not masks[:, :, :8].any()
    assert torch.equal(images[masks == 0], normals[masks == 0])
    assert key == ("part/dot" if name in REAL else "part/made") and key in report
    assert ("textures: procedural surfaces" in report) == (name in ("PrnAnomalies", "DraemAnomalies"))
    exported = extension.run(
        "ExportPairs",
        images=[images],
        masks=[masks],
        normals=[normals],
        defect_type=[key],
        folder=[f"baselines/{name}"],
        min_effect=[0.0],
        effects=[effects],
    )
    lines = [json.loads(text) for text in (Path(exported.args[0]) / "manifest.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [4, 5, 6]
    assert {line["outside_max_abs_diff"] for line in lines} == {0}
    assert len({line["settings"]["method"] for line in lines}) == 1 and lines[0]["settings"]["method"]


def test_dropped_alpha_is_told_by_every_node_that_drops_it(extension: Any, loaded: Any, bundle: Any) -> None:
    clear = torch.cat([torch.full((1, 64, 64, 3), 0.5), torch.ones(1, 64, 64, 1)], dim=-1)
    clear[:, 20:40, 20:40, :3] = 0.9
    report = extension.run("CutPaste", image=clear, defect_type="part/made").args[-1]
    assert "alpha channel, which was dropped" in report
    report = extension.blend(loaded, bundle, clear, extension.box_mask(), steps=1).args[-1]
    assert "alpha channel, which was dropped" in report
    plain = clear[..., :3]
    assert "alpha" not in extension.blend(loaded, bundle, plain, extension.box_mask(), steps=1).args[-1]
    assert "alpha channel" in extension.run("EstimateForeground", image=clear).args[-1]


def test_only_training_defects_are_cut_out(extension: Any, dataset: Any) -> None:
    normals = extension.run("PickNormals", dataset=dataset, count=30, size=32).args[0]
    made = extension.run("CropAndPaste", image=normals, dataset=dataset, defect_type="part/bar")
    assert made.args[0].shape == (30, 32, 32, 3)
    assert {record["settings"]["source"] for record in made.args[2]} == {"bar/000", "bar/001"}
    learned = made.args[2][0]["learned_from"]
    assert {name.rsplit("/", 1)[-1] for name in learned} == {"000.png", "001.png"}, "so that overlaps are found"
    with pytest.raises(extension.errors.InputError, match="defect_type: is empty.*part/bar, part/dot"):
        extension.run("CropAndPaste", image=normals, dataset=dataset)
    with pytest.raises(extension.errors.InputError, match="'hole' is not in"):
        extension.run("PoissonBlending", image=normals, dataset=dataset, defect_type="hole")
    with pytest.raises(extension.errors.InputError, match="folder: .*nowhere does not exist"):
        extension.run("DraemAnomalies", image=normals, textures="nowhere")
