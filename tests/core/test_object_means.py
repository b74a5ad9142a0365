"""Several objects in one evaluation: networks of their own, and the mean over the objects; classifiers on tiles."""

from __future__ import annotations

import csv
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from anomalydiffusion_core.cli.app import app
from anomalydiffusion_core.data.export import export_pairs
from anomalydiffusion_core.data.merging import merge_datasets, objects_of
from anomalydiffusion_core.data.mvtec import AnomalyDataset, load_dataset
from anomalydiffusion_core.data.splits import SplitSettings
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.evaluation.classification.evaluation import NO_DEFECT
from anomalydiffusion_core.evaluation.classification.table import ClassificationTable
from anomalydiffusion_core.evaluation.classification.tiles import tile_recognizer, training_windows
from anomalydiffusion_core.evaluation.classification.training import predict, predict_tiled, train_classifier
from anomalydiffusion_core.evaluation.settings import TILES, ClassifierData, ClassifierSettings, RunSettings
from anomalydiffusion_core.progress import Quiet

pytestmark = pytest.mark.core
COLOURS = {"red": 0, "green": 1}


def write_object(root: Path, name: str, light: int, size: tuple[int, int] = (50, 90)) -> None:
    """Grey oblong images with a small red or green square each."""
    rng = np.random.default_rng(light)
    for number in range(4):
        image = rng.integers(light, light + 12, (*size, 1)).repeat(3, axis=2).astype(np.uint8)
        for part in ("train", "test"):
            path = root / name / part / "good" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image + (np.uint8(1 + number) if part == "test" else np.uint8(0))).save(path)
        for defect, channel in COLOURS.items():
            mask = np.zeros(size, dtype=np.uint8)
            top, left = int(rng.integers(size[0] - 8)), int(rng.integers(size[1] - 8))
            mask[top : top + 8, left : left + 8] = 255
            marked = image.copy()
            marked[..., channel][mask > 0] = 250
            for part, pixels in ((f"test/{defect}", marked), (f"ground_truth/{defect}", mask)):
                path = root / name / part / (f"{number}_mask.png" if part.startswith("ground") else f"{number}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two objects of two types, and exported pairs of all of them."""
    for name, light in (("cup", 60), ("plate", 140)):
        write_object(tmp_path / "data", name, light)
        for defect in COLOURS:
            images = torch.full((2, 3, 50, 90), light / 255) + 0.01 * torch.rand(2, 3, 50, 90)
            masks = torch.zeros(2, 1, 50, 90)
            masks[..., 10:20, 30:44] = 1
            made = torch.where(masks > 0, torch.rand(2, 3, 50, 90), images)
            for target in (tmp_path / "pairs", tmp_path / "pairs of one" / name):
                export_pairs(target, name, defect, made, masks, images, [{"settings": {}}] * 2)
    return tmp_path


def load(folders: Path, name: str) -> AnomalyDataset:
    return load_dataset(folders / "data", name, SplitSettings("first n", 2))


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.output


def test_a_merged_data_set_gives_back_its_objects(folders: Path) -> None:
    cup, plate = load(folders, "cup"), load(folders, "plate")
    merged = merge_datasets([cup, plate])
    assert objects_of(merged) == [cup, plate] and objects_of(cup) == [cup]
    write_object(folders / "data", "bowl", 30)
    bowl = load(folders, "bowl")
    assert objects_of(merge_datasets([merged, bowl])) == [cup, plate, bowl]


def test_localization_of_two_objects_and_its_mean(folders: Path) -> None:
    given = ["--data", folders / "data", "--split", "first n", "--train-count", 2]
    small = ["--size", 32, "--width", 2, "--steps", 2, "--batch-size", 2, "--runs", 2, "--device", "cpu"]
    both = ["--category", "cup", "--category", "plate", "--pairs", folders / "pairs"]
    code, output = run("evaluate", *given, *both, *small, "--out", folders / "run" / "both")
    assert code == 0, output
    found = json.loads((folders / "run" / "both" / "evaluation.json").read_text())
    alone: dict[str, Any] = {}
    for name in ("cup", "plate"):
        alone[name] = json.loads((folders / "run" / "both" / name / "evaluation.json").read_text())
        assert (alone[name]["object"], alone[name]["generated_pairs"]) == (name, 4)
    own = ["--category", "cup", "--pairs", folders / "pairs of one" / "cup", "--kept", folders / "again"]
    code, output = run("evaluate", *given, *own, *small, "--out", folders / "alone")
    assert code == 0, output
    assert (
        json.loads((folders / "alone" / "evaluation.json").read_text())["with"]["mean"] == alone["cup"]["with"]["mean"]
    )
    for row in ("without", "with"):
        for metric in ("pixel_ap", "image_auroc"):
            each = [[one[metric] for one in alone[name][row]["runs"]] for name in ("cup", "plate")]
            means = [statistics.fmean(pair) for pair in zip(*each, strict=True)]
            assert found[row]["mean"][metric] == pytest.approx(statistics.fmean(means))
            assert found[row]["spread"][metric] == pytest.approx(statistics.stdev(means))
    assert found["object"] == "mean of 2 objects (cup, plate)"
    assert (folders / "run" / "both" / "table.md").read_text().startswith("mean of 2 objects (cup, plate)")
    # tables show each object once, and their mean
    code, output = run("tables", folders / "run", "--out", folders / "tables", "--table", 10, "--only-measured")
    assert code == 0, output
    text = (folders / "tables" / "tables.md").read_text()
    with (folders / "tables" / "tables.csv").open() as stream:
        rows = {(x["row"], x["column"], x["metric"]): x for x in csv.DictReader(stream)}
    expected = statistics.fmean(alone[name]["without"]["mean"]["pixel_ap"] for name in alone)
    mean = next(x for key, x in rows.items() if key[0].startswith("mean of") and key[1:] == ("few real", "pixel_ap"))
    assert float(mean["measured"]) == pytest.approx(100 * expected, rel=1e-4)
    assert "mean of 2 objects" in text


def test_pairs_of_unknown_objects_are_refused_before_any_training(folders: Path) -> None:
    given = ["--pairs", folders / "pairs", "--data", folders / "data", "--split", "first n", "--train-count", 2]
    write_object(folders / "data", "bowl", 30)
    code, output = run("evaluate", *given, "--category", "cup", "--category", "bowl", "--out", folders / "new")
    assert code == 1 and "plate" in output and not (folders / "new").exists()
    code, output = run("classify", *given, "--category", "bowl", "--category", "cup", "--out", folders / "new")
    assert code == 1 and not (folders / "new").exists()


def test_classification_of_two_objects_and_its_mean(folders: Path) -> None:
    given = ["--pairs", folders / "pairs", "--data", folders / "data", "--split", "first n", "--train-count", 2]
    small = ["--size", 32, "--width", 2, "--steps", 2, "--batch-size", 2, "--runs", 2, "--device", "cpu"]
    both = ["--category", "cup", "--category", "plate", "--training-set", "both"]
    for _ in range(2):  # the second time it is read again
        code, output = run("classify", *given, *both, *small, "--out", folders / "run")
        assert code == 0, output
        assert "| cup |" in output and "| plate |" in output and "| mean of 2 objects |" in output
    found = json.loads((folders / "run" / "classification.json").read_text())
    each = [[one["accuracy"] for one in found["objects"][name]["runs"]] for name in ("cup", "plate")]
    means = [statistics.fmean(pair) for pair in zip(*each, strict=True)]
    assert [one["accuracy"] for one in found["runs"]] == pytest.approx(means)
    assert found["metrics"]["accuracy"] == pytest.approx(statistics.fmean(means))
    records = json.loads((folders / "run" / "results.json").read_text())["records"]
    assert [one["category"] for one in records] == ["cup", "plate"]
    assert found["objects"]["cup"]["training_pictures"] == {"green": 4, "red": 4}


def test_classifiers_see_windows_and_tiles_at_the_images_own_scale(folders: Path) -> None:
    dataset = load(folders, "cup")
    tiny = ClassifierSettings(
        "ResNet-18", size=32, width=8, steps=150, batch_size=8, learning_rate=3e-3, view=TILES, tile_scale=1.0
    )
    pairs = {kind.defect: kind.train for kind in dataset.types}
    windows = training_windows(dataset, pairs, [], tiny)
    # six windows of each of two pairs; two of the four normal images give as many
    assert {name: len(part) for name, part in windows.items()} == {"green": 12, "red": 12, NO_DEFECT: 12}
    for name, channel in COLOURS.items():
        coloured = windows[name][:, channel] - windows[name][:, 2]
        assert bool((coloured.flatten(1).amax(dim=1) > 0.6).all())  # each shows a part of its defect
    assert float((windows[NO_DEFECT][:, :2] - windows[NO_DEFECT][:, 2:]).abs().max()) < 0.01
    network = train_classifier(windows, tiny)
    assert [set(predict(network, part).tolist()) for part in windows.values()] == [{0}, {1}, {2}]
    table = ClassificationTable(dataset, [], ClassifierData("few real"), replace(tiny, steps=1), RunSettings(1))
    measured = table.measure(Quiet, "cpu")
    found = measured.figures
    assert found["budget"]["view"] == TILES and measured.record is not None and measured.record.reduced
    assert "on tiles of 32 image px" in table.table(found)
    assert sum(map(sum, found["confusion"])) == 4 and found["test_pictures"] == {"green": 2, "red": 2}


class Colour(torch.nn.Module):
    """Logits: how green, how red, and a constant that wins wherever neither is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.own = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        seen = (images - images[:, 2:]).flatten(2).amax(dim=2)
        return torch.stack([seen[:, 1] * 20, seen[:, 0] * 20, torch.full_like(seen[:, 0], 5.0)], dim=1)


def test_the_surest_tile_decides_wherever_the_defect_is(folders: Path) -> None:
    dataset = load(folders, "cup")
    settings = ClassifierSettings(size=32, view=TILES)
    pairs = {kind.defect: kind.test for kind in dataset.types}
    assert list(pairs) == ["green", "red"]
    assert tile_recognizer(pairs, settings)(Colour()).tolist() == [0, 0, 1, 1]
    image = torch.full((3, 200, 90), 0.5)
    image[0, 190:196, 80:84] = 1  # in the last tile
    assert predict_tiled(Colour(), image, settings) == 1


def test_tiles_need_masks(folders: Path) -> None:
    for defect in COLOURS:
        path = folders / "plain" / "cup" / defect / "0.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.full((50, 90, 3), 90, np.uint8)).save(path)
    data, settings = ClassifierData("generated"), ClassifierSettings(size=32, width=2, steps=1, view=TILES)
    table = ClassificationTable(load(folders, "cup"), [folders / "plain"], data, settings, RunSettings(1))
    with pytest.raises(InputError, match="no mask"):
        table.measure(Quiet, "cpu")
