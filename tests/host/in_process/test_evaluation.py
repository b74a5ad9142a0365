"""Evaluate Localization: methods, pairs from the graph, weights, and what is kept between two calls."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

SMALL = {"size": 32, "width": 2, "steps": 2, "batch_size": 2, "runs": 1}
DOT = "part/dot"


@pytest.fixture(scope="module")
def folders(extension: Any) -> list[str]:
    """Two folders of pairs below the output folder."""
    made = []
    for name, seed in (("first", 1), ("second", 2)):
        images = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(seed))
        result = extension.run(
            "ExportPairs",
            images=[images], masks=[extension.box_mask(3)], normals=[images], defect_type=[DOT],
            folder=[f"rows/{name}"], min_effect=[0.0],
            effects=[[{"effect_score": 9.0, "reweighting": "monotone"}] * 3],
        )  # fmt: skip
        made.append(result.ui["pairs_folder"][0])
    return made


def evaluate(extension: Any, dataset: Any, **values: Any) -> tuple[Any, dict[str, Any], Path]:
    result = extension.run("EvaluateLocalization", dataset=dataset, **{**SMALL, "folder": "rows/out", **values})
    return result, json.loads(result.args[3]), Path(result.args[4])


def test_methods_and_weights_are_rows_of_one_table(extension: Any, dataset: Any, folders: list[str]) -> None:
    network = extension.module("anomalydiffusion_core.evaluation.localization.network")
    weights = extension.base / "models" / "anomalydiffusion" / "part.pckl"
    weights.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.build_network(2, torch.Generator().manual_seed(0)).state_dict(), weights)
    result, metrics, folder = evaluate(
        extension,
        dataset,
        pairs=folders[0],
        training_sets="none, few real, generated, both",
        methods=f"Crop&Paste = {folders[1]}",
        weights="authors=part.pckl",
    )
    methods = [row["method"] for row in metrics["rows"]]
    assert methods == [
        "none", "few real", "ours", "few real + ours", "Crop&Paste", "few real + Crop&Paste", "authors",
    ]  # fmt: skip
    assert all((row["kind"], row["object"]) == ("localization", "part") for row in metrics["rows"])
    assert metrics["with"]["mean"] == metrics["rows"][3]["metrics"]
    lines = result.args[0].split("\n\n")[0].splitlines()
    assert len(lines) == 2 + len(methods)
    with (folder / "results.csv").open(encoding="utf-8") as file:
        assert len(list(csv.reader(file))) == 1 + 3 * len(methods)
    stored = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    columns = [(record["method"], record["training_set"]) for record in stored["records"]]
    assert columns == [
        ("", "few real"), ("Ours", "generated"), ("Ours", "few real + generated"),
        ("Crop&Paste", "generated"), ("Crop&Paste", "few real + generated"),
    ]  # fmt: skip
    first = stored["records"][0]
    assert first["metrics"]["pixel_ap"] == [metrics["without"]["runs"][0]["pixel_ap"]]
    assert (first["category"], first["seeds"], first["data"], first["reduced"]) == ("part", [0], "few", True)
    for name in ("table.md", "evaluation.json", "contact_sheet.png", "heat_maps.png", "curves.png"):
        assert (folder / name).is_file()
    assert [item["filename"] for item in result.ui["images"]] == ["contact_sheet.png", "heat_maps.png", "curves.png"]
    assert result.args[5].shape == (1, 480, 1500, 3) and result.args[1].shape[2] > 7 * 160


def test_again_it_trains_nothing_and_says_the_same(extension: Any, dataset: Any, folders: list[str]) -> None:
    values = {"pairs": folders[0], "steps": 3, "seed": 5}
    first, metrics, folder = evaluate(extension, dataset, **values)
    again, known, other = evaluate(extension, dataset, **values)
    assert (metrics["reused_runs"], known["reused_runs"]) == (0, 2) and folder != other
    assert again.args[0] == first.args[0] and known["rows"] == metrics["rows"]
    for name in ("table.md", "results.csv", "contact_sheet.png", "heat_maps.png", "curves.png", "heat_maps/000.png"):
        assert (other / name).read_bytes() == (folder / name).read_bytes(), name


def test_an_interrupted_evaluation_goes_on(
    extension: Any, dataset: Any, folders: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"pairs": folders[0], "steps": 4, "seed": 9, "training_sets": "few real"}
    management = extension.module("nodes.host.progress").comfy.model_management
    reached: list[int] = []
    at = extension.progress.Progress.at

    def watched(self: Any, done: int, preview: Any = None) -> None:
        reached.append(done)
        if len(reached) == 3:
            management.interrupt_current_processing(True)
        at(self, done, preview)

    monkeypatch.setattr(extension.progress.Progress, "at", watched)
    before = sorted(extension.folders.output_root().glob("rows/out_*"))
    with pytest.raises(management.InterruptProcessingException):
        evaluate(extension, dataset, **values)
    assert reached == [1, 2, 3]
    assert sorted(extension.folders.output_root().glob("rows/out_*")) == before
    _, metrics, _ = evaluate(extension, dataset, **values)
    assert [done for done in reached[3:] if done][:1] == [4]
    straight, same, _ = evaluate(extension, dataset, **{**values, "check_every": 7})
    assert same["rows"] == metrics["rows"] and straight.args[0].count("few real pairs") == 1


def test_pairs_come_straight_from_the_graph(extension: Any, dataset: Any, folders: list[str]) -> None:
    generator = torch.Generator().manual_seed(1)
    dots, bars = torch.rand(3, 64, 64, 3, generator=generator), torch.rand(2, 64, 64, 3, generator=generator)
    connected = {
        "images": [dots, bars],
        "masks": [extension.box_mask(3), extension.box_mask(2)],
        "defect_type": [DOT, "part/bar"],
        "training_sets": "generated",
    }
    _, metrics, _ = evaluate(extension, dataset, **connected)
    assert (metrics["generated_pairs"], metrics["pairs_folder"]) == (5, None)
    assert [row["method"] for row in metrics["rows"]] == ["ours"]
    for change, message in (
        ({"pairs": folders[0]}, "Use one of the two"),
        ({"masks": connected["masks"][:1]}, "2 batches, 1 of masks"),
        ({"masks": connected["masks"][::-1]}, "one mask of equal size for each image"),
        ({"defect_type": [DOT] * 3}, "3 of defect_type"),
        ({"size": [32, 64]}, "size: 2 entries"),
    ):
        with pytest.raises(extension.errors.InputError, match=message):
            evaluate(extension, dataset, **{**connected, **change})


def test_bad_values_are_named_before_anything_is_trained(extension: Any, dataset: Any, folders: list[str]) -> None:
    for change, message in (
        ({"training_sets": "real"}, "training_sets: 'real'"),
        ({"pairs": ""}, "pairs: none"),
        ({"methods": "GAN"}, "methods: 'GAN' is not of the form NAME=FOLDER"),
        ({"methods": "GAN=nowhere"}, "methods, GAN: .*nowhere does not exist"),
        ({"methods": f"ours={folders[1]}"}, "'ours' is reserved"),
        ({"weights": "a=none.pckl"}, "none.pckl does not exist"),
        ({"selection": "best"}, "selection: .*'best'"),
        ({"folder": "../out"}, "is not inside"),
    ):
        with pytest.raises(extension.errors.InputError, match=message):
            evaluate(extension, dataset, **{"pairs": folders[0], "steps": 10**6, **change})


def test_changed_folders_are_seen(extension: Any, folders: list[str]) -> None:
    node = extension.nodes["AnomalyDiffusionEvaluateLocalization"]
    values = {"pairs": [folders[0]], "methods": [f"a={folders[1]}"], "weights": [""], "size": [32]}
    before = node.fingerprint_inputs(**values)
    assert before == node.fingerprint_inputs(**values) != ""
    (extension.folders.output_root() / folders[1] / "note.txt").write_text("new")
    assert node.fingerprint_inputs(**values) != before
    assert node.fingerprint_inputs(**{**values, "pairs": None}) != before
    assert node.fingerprint_inputs(pairs=["nowhere"]) == ""
