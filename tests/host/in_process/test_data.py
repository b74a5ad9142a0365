"""Bundles, masks, data sets, exports and evaluations through their nodes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image


def test_bundles_are_used_for_what_they_are(extension: Any, loaded: Any, bundle: Any, mask_bundle: Any) -> None:
    error = extension.errors.AnomalyDiffusionError
    mask = extension.box_mask(2)
    with pytest.raises(error, match="kind 'mask', kind 'anomaly' is required"):
        extension.run("SpatialAnomalyEmbedding", bundle=mask_bundle, defect_type="part/dot", mask=mask)
    with pytest.raises(error, match="kind 'anomaly', kind 'mask' is required"):
        extension.run("MaskEmbeddingSampler", model=loaded.model, vae=loaded.vae, bundle=bundle, cfg=1.0)
    with pytest.raises(error, match="'part/hole' is not in.*part/bar, part/dot"):
        extension.run("SpatialAnomalyEmbedding", bundle=bundle, defect_type="part/hole", mask=mask)
    with pytest.raises(error, match="defect_type: is empty"):
        extension.run("SpatialAnomalyEmbedding", bundle=bundle, mask=mask)
    ((context, extra),) = extension.run(
        "SpatialAnomalyEmbedding", bundle=bundle, defect_type="part/dot", mask=mask
    ).args[0]
    assert context.shape == (2, 8 + 4, 128)
    assert torch.equal(context[0, :8], bundle.tokens["part/dot"]) and not torch.equal(context[0, 8:], context[1, 8:])
    assert extra[extension.conditioning.COLUMNS].tolist() == [True] * 12
    loaded_again, types, *_ = extension.run("LoadSpatialEncoder", bundle_name="shared_00001.safetensors").args
    assert types == ["part/bar", "part/dot"] == list(loaded_again.types)


def test_masks_are_wanted_in_number_and_never_empty(extension: Any, loaded: Any, mask_bundle: Any) -> None:
    values = {"model": loaded.model, "vae": loaded.vae, "bundle": mask_bundle, "defect_type": "part/dot", "size": 64}
    values |= {"count": 3, "steps": 2, "cfg": 1.0, "largest_area": 1.0, "border_rule": False}
    masks, report = extension.run("MaskEmbeddingSampler", **values).args
    assert masks.shape == (3, 64, 64)
    assert set(masks.unique().tolist()) == {0.0, 1.0} and masks.flatten(1).amax(dim=1).eq(1).all()
    assert torch.equal(extension.run("MaskEmbeddingSampler", **values).args[0], masks)
    assert "3 of 3" in report
    with pytest.raises(extension.errors.InputError, match=r"0 of 6 sampled masks kept \(6 too (small|large)"):
        extension.run("MaskEmbeddingSampler", **{**values, "smallest_area": 0.0, "largest_area": 0.0, "tries": 2})


def test_types_get_different_masks_from_one_seed(extension: Any, loaded: Any, mask_bundle: Any) -> None:
    # With equal tokens only the noise can tell two types apart.
    shared = mask_bundle.tokens["part/dot"]
    bundle = replace(mask_bundle, tokens={"part/bar": shared, "part/dot": shared})
    values = {"model": loaded.model, "vae": loaded.vae, "bundle": bundle, "size": 64, "steps": 2, "cfg": 1.0}
    values |= {"largest_area": 1.0, "smallest_area": 0.0, "speck_area": 0.0, "border_rule": False}
    dots, bars = (
        extension.run("MaskEmbeddingSampler", **values, defect_type=key, count=3).args[0]
        for key in ("part/dot", "part/bar")
    )
    assert not any(torch.equal(dot, bar) for dot in dots for bar in bars)
    alone = extension.run("MaskEmbeddingSampler", **values, defect_type="part/dot", count=1, seed=2).args[0]
    assert torch.equal(alone[0], dots[2])


def test_masks_that_pass_are_repeated_when_they_are_too_few(
    extension: Any, loaded: Any, mask_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleanup = extension.module("anomalydiffusion_core.masks.cleanup")
    drawn: list[int] = []

    def only_the_first(images: torch.Tensor, *_: Any) -> Any:
        first = not drawn
        drawn.append(len(images))
        masks = torch.ones(1 if first else 0, 1, 64, 64)
        rejected = tuple((i, "too small: by decree") for i in range(len(masks), len(images)))
        return cleanup.CleanedMasks(masks, tuple(range(len(masks))), rejected)

    monkeypatch.setattr(extension.module("anomalydiffusion_core.masks.collection"), "clean_masks", only_the_first)
    values = {"model": loaded.model, "vae": loaded.vae, "bundle": mask_bundle, "defect_type": "part/dot", "size": 64}
    masks, report = extension.run("MaskEmbeddingSampler", **values, count=3, steps=1, cfg=1.0, tries=2).args
    assert drawn == [3, 2, 1], "bounded by tries x count"
    assert masks.shape == (3, 64, 64)
    assert "1 of 6 sampled masks kept (5 too small); 3 were wanted" in report


def test_masks_lie_on_the_foreground_and_in_the_allowed_region(extension: Any, loaded: Any, mask_bundle: Any) -> None:
    values = {"model": loaded.model, "vae": loaded.vae, "bundle": mask_bundle, "defect_type": "part/dot", "size": 64}
    values |= {"count": 3, "steps": 2, "cfg": 1.0, "largest_area": 1.0, "border_rule": False, "smallest_area": 0.0}
    values |= {"speck_area": 0.0, "foreground_overlap": 0.0, "allowed_overlap": 0.0}
    plain = extension.run("MaskEmbeddingSampler", **values).args[0]
    ground, allowed = torch.zeros(32, 32), torch.zeros(64, 64)
    ground[:, 8:] = 1
    allowed[:40] = 1
    masks, report = extension.run("MaskEmbeddingSampler", **values, foreground=ground, allowed=allowed).args
    wanted = plain.clone()
    wanted[:, 40:] = 0
    wanted[:, :, :16] = 0
    assert torch.equal(masks, wanted) and wanted.flatten(1).amax(dim=1).all()
    assert "the foreground is 32x32 px, the mask 64x64 px: it was resized" in report
    corner = torch.zeros(64, 64)
    corner[0, 0] = 1
    with pytest.raises(extension.errors.InputError, match=r"kept \(12 off the allowed region\)"):
        extension.run("MaskEmbeddingSampler", **{**values, "allowed_overlap": 0.9}, allowed=corner)
    with pytest.raises(extension.errors.InputError, match="foreground: has 2 masks"):
        extension.run("MaskEmbeddingSampler", **values, foreground=torch.ones(2, 64, 64))


def test_normals_are_drawn_without_repetition_first(extension: Any, dataset: Any) -> None:
    images = extension.run("PickNormals", dataset=dataset, count=5, size=0).args[0]
    assert images.shape == (5, 64, 64, 3)
    assert len({image.sum().item() for image in images[:3]}) == 3
    again = extension.run("PickNormals", dataset=dataset, count=5, size=0).args[0]
    assert torch.equal(images, again)
    resized = extension.run("PickNormals", dataset=dataset, count=1, size=32, defect_type="part/dot").args[0]
    assert resized.shape == (1, 32, 32, 3)


def test_dataset_node_lists_types_and_names_faults(extension: Any, data: Path, tmp_path: Path) -> None:
    result = extension.load()
    assert result.args[1] == ["part/bar", "part/dot"]
    assert result.args[2].shape[0] == 1 and result.args[2].shape[3] == 3
    assert "2 training pairs, 2 for testing" in result.args[3]
    only = extension.load(folder=str(data), defects=" dot ")
    assert only.args[1] == ["part/dot"]
    error = extension.errors.AnomalyDiffusionError
    with pytest.raises(error, match="nowhere does not exist"):
        extension.load(folder="nowhere")
    orphan = data / "part" / "ground_truth" / "dot" / "999_mask.png"
    Image.new("L", (64, 64), 255).save(orphan)
    node = extension.nodes["AnomalyDiffusionLoadDataset"]
    changed = node.fingerprint_inputs(folder="few", category="part", split="first n")
    try:
        with pytest.raises(error, match="999_mask.png"):
            extension.load()
    finally:
        orphan.unlink()
    assert node.fingerprint_inputs(folder="few", category="part", split="first n") != changed


def test_export_keeps_types_apart_and_leaves_nothing_after_an_error(extension: Any) -> None:
    images, masks = torch.rand(2, 32, 32, 3), extension.box_mask(2, (32, 32))[:, :, :32]
    effects = [{"seed": 4, "effect_score": 3.0}, {"seed": 5, "effect_score": 30.0}]
    values: dict[str, Any] = {
        "images": [images, images],
        "masks": [masks, masks],
        "normals": [images],
        "defect_type": ["part/dot", "part/bar"],
        "effects": [effects, effects],
        "folder": ["runs/pairs"],
        "min_effect": [10.0],
    }
    result = extension.run("ExportPairs", **values)
    folder = Path(result.args[0])
    assert folder == extension.folders.output_root() / "runs" / "pairs_00001"
    assert result.ui["pairs_folder"] == ["runs/pairs_00001"]
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert [(line["defect"], line["seed"]) for line in lines] == [("dot", 5), ("bar", 5)]
    assert {line["outside_max_abs_diff"] for line in lines} == {0}
    assert (folder / "part" / "ground_truth" / "bar" / "000_mask.png").is_file()
    for change, message in (
        ({"min_effect": [100.0]}, "no pair reaches 100"),
        ({"defect_type": ["part/dot", "dot"]}, "'dot' is not of the form object/defect"),
        ({"effects": [effects, effects[:1]]}, "2 images, 2 masks, 2 normals and 1 effects"),
        ({"defect_type": ["part/dot"]}, "Connect the list types"),
        ({"folder": ["../pairs"]}, "folder: '../pairs'"),
    ):
        with pytest.raises(extension.errors.InputError, match=message):
            extension.run("ExportPairs", **{**values, **change})
    assert [path.name for path in folder.parent.iterdir()] == ["pairs_00001"]


def test_evaluation_writes_table_and_sheets(extension: Any, dataset: Any) -> None:
    images, masks = torch.rand(2, 64, 64, 3), extension.box_mask(2)
    pairs = extension.run(
        "ExportPairs",
        images=[images],
        masks=[masks],
        normals=[images],
        defect_type=["part/dot"],
        folder=["eval/pairs"],
        min_effect=[0.0],
    ).args[0]
    values = {"dataset": dataset, "size": 32, "width": 2, "steps": 1, "batch_size": 2, "runs": 1, "folder": "eval/out"}
    result = extension.run("EvaluateLocalization", pairs="eval/pairs_00001", **values)
    folder = extension.folders.output_root() / result.ui["evaluation_folder"][0]
    written = json.loads((folder / "evaluation.json").read_text())
    assert len(written["without"]["runs"]) == len(written["with"]["runs"]) == 1
    assert (written["generated_pairs"], written["test_defects"], written["test_normals"]) == (2, 4, 3)
    assert [entry["kind"] for entry in written["heat_maps"]] == ["part/bar", "part/dot"] * 2
    for entry in (*written["heat_maps"], {"file": "contact_sheet.png"}, {"file": "heat_maps.png"}):
        assert (folder / entry["file"]).is_file()
    assert "pixel AP" in result.args[0] and (folder / "table.md").read_text().strip() == result.args[0].strip()
    with pytest.raises(extension.errors.InputError, match="pairs: .*missing does not exist"):
        extension.run("EvaluateLocalization", pairs="missing", **values)
    everything = extension.load(train_count=4).args[0]
    with pytest.raises(extension.errors.InputError, match="no defect image of part is kept for testing"):
        extension.run("EvaluateLocalization", pairs=pairs, **{**values, "dataset": everything})


def test_masks_of_the_mask_editor_become_a_data_set(
    extension: Any, stock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Load Image gives the painted region of an image, kept in its alpha channel, as MASK."""
    monkeypatch.setattr(extension.folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 4), dtype=np.uint8)
    pixels[:, :, 3] = 255
    pixels[10:20, 30:44, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "painted.png")
    Image.fromarray(pixels[:, :, :3]).save(tmp_path / "plain.png")
    image, mask = stock("LoadImage", str(tmp_path / "painted.png"))
    plain, nothing = stock("LoadImage", str(tmp_path / "plain.png"))
    values = {"object": "cup", "defect": "chip"}
    out = extension.run("DatasetFromImages", images=image, masks=mask, normals=plain, **values)
    dataset, types, sheet, report = out.args
    assert types == ["cup/chip"] and sheet.ndim == 4 and "cup/chip: 1 training pairs" in report
    assert dataset.root.is_relative_to(tmp_path / "output")
    stored = dataset.types[0].train[0].read_mask()[0]
    assert stored.sum() == 140 and stored[10:20, 30:44].all()
    with pytest.raises(extension.errors.InputError, match=r"masks: entry 0 of 1 is empty \(nothing is marked\)"):
        extension.run("DatasetFromImages", images=plain, masks=nothing, normals=plain, **values)
    (picked,) = extension.run("PickNormals", dataset=dataset, count=1, size=0).args
    assert torch.equal(picked, plain)
