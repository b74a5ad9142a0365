"""Labels, gate and review of pairs through their nodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch


def test_export_writes_labels_that_cover_what_changed(extension: Any, loaded: Any) -> None:
    normals, masks = torch.full((2, 64, 64, 3), 0.3), torch.zeros(2, 64, 64)
    masks[:, 20:44, 16:48] = 1
    images = normals.clone()
    images[:, 20:44, 16:32] = 0.9  # half of each mask
    values: dict[str, Any] = {
        "images": [images],
        "masks": [masks],
        "normals": [normals],
        "defect_type": ["part/dot"],
        "folder": ["runs/refined"],
        "min_effect": [0.0],
        "refine": ["cut"],
        "refine_threshold": [40.0],
    }
    folder, report = extension.run("ExportPairs", **values).args
    lines = [json.loads(line) for line in (Path(folder) / "manifest.jsonl").read_text().splitlines()]
    assert [line["share_kept"] for line in lines] == [pytest.approx(0.5, abs=0.05)] * 2
    assert (Path(folder) / lines[0]["drawn_mask"]).is_file() and "2 labels by cut" in report
    plain = extension.run("ExportPairs", **{**values, "refine": ["keep"]}).args[0]
    assert "drawn_mask" not in (Path(plain) / "manifest.jsonl").read_text()
    with pytest.raises(extension.errors.InputError, match="refine_threshold: is 0"):
        extension.run("ExportPairs", **{**values, "refine_threshold": [0.0]})
    # The threshold from the noise of a VAE of random weights: far above any difference, so nothing shows.
    hidden = extension.run("ExportPairs", **{**values, "refine_threshold": [0.0], "vae": [loaded.vae]}).args[1]
    assert "2 left out, nothing shows" in hidden or "labels by cut keep" in hidden


def test_refine_masks_in_the_graph(extension: Any, loaded: Any, dataset: Any) -> None:
    normals, masks = torch.full((1, 64, 64, 3), 0.3), torch.zeros(2, 64, 64)
    masks[:, 20:44, 16:48] = 1
    images = normals.expand(2, -1, -1, -1).clone()
    images[:, 20:44, 16:32] = 0.9
    values = {"images": images, "masks": masks, "normals": normals, "refine": "cut", "refine_threshold": 40.0}
    labels, report = extension.run("RefineMasks", **values).args
    assert labels.shape == (2, 64, 64) and bool((labels <= masks).all())
    assert float(labels.sum()) == pytest.approx(float(masks.sum()) / 2, rel=0.1) and "2 labels keep" in report
    auto = {**values, "refine": "auto", "dataset": dataset, "defect_type": "part/dot", "vae": loaded.vae}
    assert extension.run("RefineMasks", **auto).args[1].startswith("part/dot: ")
    with pytest.raises(extension.errors.InputError, match="refine: auto"):
        extension.run("RefineMasks", **{**values, "refine": "auto"})


def test_pairs_are_scored_and_reviewed_in_the_output_folder_only(extension: Any, dataset: Any, tmp_path: Path) -> None:
    normals, masks = torch.full((2, 64, 64, 3), 0.3), torch.zeros(2, 64, 64)
    masks[:, 20:44, 16:48] = 1
    images = torch.where(masks[..., None] > 0, 0.9, normals)
    values: dict[str, Any] = {"images": [images], "masks": [masks], "normals": [normals], "min_effect": [0.0]}
    folder = extension.run("ExportPairs", **values, defect_type=["part/dot"], folder=["runs/scored"]).args[0]
    where, sheet, report = extension.run("ScorePairs", dataset=dataset, pairs=folder).args
    assert where == folder and sheet.shape[0] == 1 and report.startswith("part/dot: ")
    lines = [json.loads(line) for line in (Path(folder) / "manifest.jsonl").read_text().splitlines()]
    assert lines[0]["scores"]["fill"] == 1.0
    _, page, report = extension.run("ReviewPairs", pairs=folder).args
    assert "0 pairs accepted, 0 rejected, 2 without" in report
    text = Path(page).read_text("utf-8")
    content = json.loads(text.split('id="content">')[1].split("</script>")[0])
    decisions = {"kind": content["kind"], "pairs": content["pairs"], "decisions": {lines[1]["image"]: "rejected"}}
    saved = Path(extension.folder_paths.get_input_directory()) / "decisions.json"
    saved.write_text(json.dumps(decisions))
    assert "1 rejected" in extension.run("ReviewPairs", pairs=folder, decisions="decisions.json").args[2]
    with pytest.raises(extension.errors.InputError, match="decisions: .none.json. does not exist"):
        extension.run("ReviewPairs", pairs=folder, decisions="none.json")
    elsewhere = tmp_path / "pairs"
    elsewhere.mkdir()
    for name, more in (("ScorePairs", {"dataset": dataset}), ("ReviewPairs", {})):
        with pytest.raises(extension.errors.InputError, match="pairs: .* lies outside of"):
            extension.run(name, pairs=str(elsewhere), **more)
