"""Refined labels of a folder of pairs: both masks on disk and in the manifest, undone, resumed, and respected."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from anomalydiffusion_core.cli.app import app
from anomalydiffusion_core.data.export import export_pairs
from anomalydiffusion_core.data.mask_files import read_mask
from anomalydiffusion_core.data.pairs import MANIFEST, load_exported, update_manifest
from anomalydiffusion_core.errors import DatasetError, InputError
from anomalydiffusion_core.evaluation.localization.sources import pairs_folder
from anomalydiffusion_core.masks import relabel as module
from anomalydiffusion_core.masks.change import unchanged
from anomalydiffusion_core.masks.refine import RefineSettings
from anomalydiffusion_core.masks.relabel import needs_labels, relabel

CUT = RefineSettings("cut", refine_threshold=20.0)


def _box(columns: slice) -> Tensor:
    mask = torch.zeros(1, 48, 64)
    mask[:, 16:32, columns] = 1
    return mask


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    """Three pairs whose left half changed, and one in which nothing did."""
    normal, drawn = torch.full((3, 48, 64), 0.25), _box(slice(8, 40))
    shown = [_box(slice(8, 24))] * 3 + [torch.zeros(1, 48, 64)]
    images = torch.stack([normal + mask * 0.5 for mask in shown])
    count = len(images)
    masks, normals = drawn.expand(count, 1, -1, -1), normal.expand(count, -1, -1, -1)
    export_pairs(tmp_path / "pairs", "part", "hole", images, masks, normals, [{"seed": i} for i in range(count)])
    return tmp_path / "pairs"


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / MANIFEST).read_text("utf-8").splitlines()]


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_both_masks_are_written_and_named(folder: Path) -> None:
    before = _files(folder)
    done = relabel(folder, CUT)
    line = _lines(folder)[1]
    assert line["mask"] == line["refined_mask"] == "part/ground_truth/hole/001_mask.png"
    assert line["drawn_mask"] == "part/drawn/hole/001_mask.png"
    # 16 of 32 columns; smoothing moves an edge of 128 levels by about a pixel at a threshold of 20.
    assert line["share_kept"] == pytest.approx(0.5, abs=0.04) and line["label"]["mode"] == "cut"
    drawn, label = read_mask(folder / line["drawn_mask"]), read_mask(folder / line["mask"])
    assert torch.equal(drawn, _box(slice(8, 40))) and bool((label <= drawn).all())
    assert float(label.sum()) / float(drawn.sum()) == pytest.approx(line["share_kept"], abs=1e-4)
    assert done.modes == {"part/hole": "cut"} and "4 labels by cut keep 0.5" in done.report
    after = _files(folder)
    assert all(after[name] == content for name, content in before.items() if "/test/" in name or "/normal/" in name)
    assert {key: line[key] for key in ("image", "seed", "object")} == {
        "image": "part/test/hole/001.png",
        "seed": 1,
        "object": "part",
    }


def test_a_pair_in_which_nothing_shows_is_not_used_until_somebody_accepts_it(folder: Path) -> None:
    whole = pairs_folder(folder)
    relabel(folder, CUT)
    last = _lines(folder)[3]
    assert last["left_out"].startswith("nothing shows") and last["share_kept"] == 1.0
    assert torch.equal(read_mask(folder / last["mask"]), _box(slice(8, 40)))
    assert [pair.image.name for pair in load_exported(folder)] == ["000.png", "001.png", "002.png"]
    assert len(load_exported(folder, every=True)) == 4
    source = pairs_folder(folder)
    assert source.count == 3 and source.digest != whole.digest
    update_manifest(folder, {last["image"]: {"review": "accepted"}, "part/test/hole/000.png": {"review": "rejected"}})
    assert [pair.image.name for pair in load_exported(folder)] == ["001.png", "002.png", "003.png"]
    update_manifest(folder, {line["image"]: {"review": "rejected"} for line in _lines(folder)})
    with pytest.raises(DatasetError, match="all 4 pairs of .* were rejected"):
        load_exported(folder)


def test_keep_brings_the_drawn_masks_back(folder: Path) -> None:
    before = {name: data for name, data in _files(folder).items() if name != MANIFEST}
    relabel(folder, CUT)
    relabel(folder, RefineSettings("drop", refine_threshold=20.0))
    relabel(folder, RefineSettings("keep"))
    after = _files(folder)
    assert {name: after[name] for name in before} == before
    assert all(line["share_kept"] == 1.0 and "left_out" not in line for line in _lines(folder))


def test_the_same_again_changes_nothing(folder: Path) -> None:
    assert needs_labels(folder, CUT) and not needs_labels(folder, RefineSettings("keep"))
    relabel(folder, CUT)
    first = _files(folder)
    assert not needs_labels(folder, CUT) and needs_labels(folder, RefineSettings("keep"))
    relabel(folder, CUT)
    assert _files(folder) == first


@pytest.mark.parametrize("killed_at", range(4))
def test_an_interrupted_run_is_finished_by_the_next(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    shutil.copytree(folder, tmp_path / "whole")
    relabel(tmp_path / "whole", CUT)
    write, calls = module._write, []

    def dying(*values: Any) -> Any:
        calls.append(1)
        if len(calls) > killed_at:
            raise KeyboardInterrupt
        return write(*values)

    monkeypatch.setattr(module, "_write", dying)
    with pytest.raises(KeyboardInterrupt):
        relabel(folder, CUT)
    monkeypatch.undo()
    relabel(folder, CUT)
    assert _files(folder) == _files(tmp_path / "whole")


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="refine_threshold: is 0"):
        relabel(folder, RefineSettings("cut"))
    with pytest.raises(InputError, match="refine: auto"):
        relabel(folder, RefineSettings("auto"), unchanged)
    (folder / MANIFEST).unlink()
    with pytest.raises(InputError, match="4 of 4 .* have no normal image or no line"):
        relabel(folder, CUT)
    with pytest.raises(InputError, match="has no manifest.jsonl"):
        update_manifest(folder, {})


def test_the_command_does_the_same(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "whole")
    relabel(tmp_path / "whole", CUT)
    done = CliRunner().invoke(app, ["refine", str(folder), "--mode", "cut", "--refine-threshold", "20"])
    assert done.exit_code == 0, done.output
    assert "4 labels by cut" in done.output and _files(folder) == _files(tmp_path / "whole")
    done = CliRunner().invoke(app, ["refine", str(folder)])
    assert done.exit_code == 2 or "refine: auto" in done.output
