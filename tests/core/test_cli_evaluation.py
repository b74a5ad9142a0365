"""The commands evaluate and tables, from folders to files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from anomalydiffusion_core.cli.app import app
from anomalydiffusion_core.data.export import export_pairs
from anomalydiffusion_core.data.images import write_image, write_mask
from anomalydiffusion_core.evaluation.localization.sources import pairs_folder
from anomalydiffusion_core.figures import to_bytes

pytestmark = pytest.mark.core


def _pair(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    image = 0.4 + 0.1 * torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(1, 32, 32)
    mask[:, 5 + seed : 13 + seed, 8:18] = 1
    return torch.where(mask > 0, image + 0.4, image), mask


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A category `bottle` with 4 normals and 3 defects, and exported pairs of it."""
    base = tmp_path / "mvtec" / "bottle"
    for number in range(4):
        write_image(base / "train" / "good" / f"{number}.png", _pair(number)[0] * 0 + 0.45)
    write_image(base / "test" / "good" / "0.png", torch.full((3, 32, 32), 0.45))
    for number in range(3):
        image, mask = _pair(number)
        write_image(base / "test" / "dent" / f"{number}.png", image)
        write_mask(base / "ground_truth" / "dent" / f"{number}_mask.png", mask)
    images, masks = (torch.stack(parts) for parts in zip(*(_pair(number) for number in (5, 6)), strict=True))
    settings = {"settings": {"reweighting": "monotone"}}
    export_pairs(tmp_path / "pairs", "bottle", "dent", images, masks, images * 0, [settings] * 2)
    return tmp_path


def _run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.output


def test_evaluation_without_a_server_lands_in_the_tables(folders: Path) -> None:
    given = ["--pairs", folders / "pairs", "--data", folders / "mvtec", "--category", "bottle"]
    small = ["--size", 32, "--width", 2, "--steps", 2, "--batch-size", 2, "--runs", 2, "--device", "cpu"]
    code, output = _run("evaluate", *given, "--out", folders / "run" / "first", *small)
    assert code == 0, output
    written = json.loads((folders / "run" / "first" / "evaluation.json").read_text())
    assert len(written["with"]["runs"]) == 2 and written["test_defects"] == 2
    code, output = _run("tables", folders / "run", "--out", folders / "tables", "--table", 10, "--table", 3)
    assert code == 0, output
    assert sorted(path.name for path in (folders / "tables").iterdir()) == [
        "table_03.png", "table_10.png", "tables.csv", "tables.md", "tables.tex",
    ]  # fmt: skip
    with (folders / "tables" / "tables.csv").open() as stream:
        rows = {(x["table"], x["row"], x["column"], x["metric"]): x for x in csv.DictReader(stream)}
    own = rows["10", "bottle", "few real + Ours", "pixel_ap"]
    assert float(own["measured"]) == pytest.approx(100 * written["with"]["mean"]["pixel_ap"], rel=1e-5)
    assert (own["published"], own["seeds"], own["reduced"]) == ("", "2", "true")
    plain = rows["10", "bottle", "few real", "pixel_ap"]
    assert float(plain["measured"]) == pytest.approx(100 * written["without"]["mean"]["pixel_ap"], rel=1e-5)
    # pairs together with real ones are not what the paper's column says
    assert rows["10", "bottle", "Ours", "pixel_ap"]["measured"] == ""
    assert "reduced protocol on mvtec: 2 seeds, size 32" in (folders / "tables" / "tables.md").read_text()


def test_mistakes_are_one_line_and_nothing_is_written(folders: Path) -> None:
    given = ["--data", folders / "mvtec", "--category", "bottle"]
    code, output = _run("evaluate", "--pairs", folders / "none", *given, "--out", folders / "new")
    assert code == 1 and output.startswith("error: pairs folder: ") and "Traceback" not in output
    code, output = _run("evaluate", "--pairs", folders / "pairs", *given, "--out", folders / "pairs")
    assert code == 1 and "is not empty" in output
    code, output = _run("tables", folders / "pairs" / "nowhere", "--out", folders / "new")
    assert code == 1 and "does not exist" in output
    code, output = _run("tables", folders, "--out", folders / "new", "--table", 13)
    assert code == 1 and "table: 13" in output
    assert sorted(path.name for path in folders.iterdir()) == ["mvtec", "pairs"]


def test_the_method_is_what_the_manifest_says(folders: Path) -> None:
    assert pairs_folder(folders / "pairs").method == "Ours"
    (folders / "pairs" / "manifest.jsonl").unlink()
    assert pairs_folder(folders / "pairs").method == "other method"
    image, mask = _pair(1)
    record = {"settings": {"method": "CutPaste"}}
    export_pairs(folders / "cut", "bottle", "dent", image[None], mask[None], image[None], [record])
    assert pairs_folder(folders / "cut").method == "CutPaste"
    ours = {"settings": {"reweighting": "monotone"}}
    export_pairs(folders / "cut", "bottle", "dent", image[None], mask[None], image[None], [ours])
    assert pairs_folder(folders / "cut").method == "other method"


def test_a_second_table_trains_only_what_is_new(folders: Path) -> None:
    given = ["--pairs", folders / "pairs", "--data", folders / "mvtec", "--category", "bottle", "--device", "cpu"]
    small = ["--size", 32, "--width", 2, "--steps", 2, "--batch-size", 2, "--runs", 2]

    def evaluated(name: str, *more: object) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        code, output = _run("evaluate", *given, *small, "--out", folders / "run" / name, *more)
        assert code == 0, output
        folder = folders / "run" / name
        files = [json.loads((folder / file).read_text()) for file in ("evaluation.json", "results.json")]
        assert all((folder / file).is_file() for file in files[0]["files"])
        return files[0], files[1]["records"]

    first, _ = evaluated("first")
    more = ("--training-sets", "few real, generated, both", "--other", f"CutPaste={folders / 'pairs'}")
    second, records = evaluated("second", *more, "--method", "Named")
    assert (first["reused_runs"], second["reused_runs"]) == (0, 6)  # few real, and both under two names
    assert second["with"]["mean"] == first["with"]["mean"]
    assert [(record["method"], record["training_set"]) for record in records] == [
        ("", "few real"),
        ("Named", "generated"), ("Named", "few real + generated"),
        ("CutPaste", "generated"), ("CutPaste", "few real + generated"),
    ]  # fmt: skip
    # the other share changes neither the few real pairs alone nor what is alone anyway
    third, records = evaluated("third", "--generated-share", 1, "--training-sets", "few real, both")
    assert third["reused_runs"] == 2
    assert [(record["method"], record["training_set"]) for record in records] == [
        ("", "few real"), ("Ours", "generated"),
    ]  # fmt: skip
    assert "| generated pairs alone |" in (folders / "run" / "third" / "table.md").read_text()
    code, output = _run("evaluate", *given, "--out", folders / "run" / "x", "--other", f"ours={folders / 'pairs'}")
    assert code == 1 and "'ours' is reserved" in output


@pytest.fixture
def two_types(folders: Path) -> Path:
    """A second defect type of the category and of the pairs."""
    base = folders / "mvtec" / "bottle"
    for number in range(3):
        image, mask = _pair(number)
        write_image(base / "test" / "spot" / f"{number}.png", 1 - image)
        write_mask(base / "ground_truth" / "spot" / f"{number}_mask.png", mask)
    image, mask = _pair(4)
    record = {"settings": {"reweighting": "monotone"}, "effect_score": 20.0, "fill_share": 0.5}
    images, masks = torch.stack([1 - image] * 2), torch.stack([mask] * 2)
    export_pairs(folders / "pairs", "bottle", "spot", images, masks, images * 0, [record] * 2)
    return folders


def test_classification_without_a_server(two_types: Path) -> None:
    given = ["--data", two_types / "mvtec", "--category", "bottle", "--device", "cpu"]
    small = ["--architecture", "ResNet-18", "--size", 32, "--width", 4, "--steps", 2, "--batch-size", 2, "--runs", 2]
    out = two_types / "run" / "first"
    command = ["classify", *given, *small, "--pairs", two_types / "pairs", "--out", out]
    code, output = _run(*command)
    assert code == 0 and "| bottle | Ours | generated |" in output, output
    assert sorted(path.name for path in out.iterdir()) == [
        "classification.csv", "classification.json", "confusion.png", "results.json", "table.md",
    ]  # fmt: skip
    written = json.loads((out / "classification.json").read_text())
    assert (written["training_pictures"], written["seeds"]) == ({"dent": 2, "spot": 2}, [0, 1])
    assert written["test_pictures"] == {"dent": 2, "spot": 2}
    code, output = _run(*command)
    assert code == 0 and "was made before" in output, "the same again is read"
    code, output = _run(*command, "--seed", 1)
    assert code == 1 and "is not empty" in output
    code, output = _run("classify", *given, *small, "--out", two_types / "run" / "none")
    assert code == 1 and output.startswith("error: pairs: none")
    real = ["classify", *given, *small, "--training-set", "few real", "--out", two_types / "run" / "real"]
    code, output = _run(*real)
    assert code == 0 and "| bottle | few real | few real |" in output, output
    code, output = _run("tables", two_types / "run", "--out", two_types / "tables", "--table", 4)
    assert code == 0 and "4 records" not in output and "2 records" in output, output


def test_generated_images_are_measured_without_a_server(two_types: Path) -> None:
    given = ["--data", two_types / "mvtec", "--category", "bottle", "--device", "cpu", "--pairs", two_types / "pairs"]
    out = two_types / "score"
    command = ["score", *given, "--out", out, "--trunk", "stand-in", "--size", 64, "--splits", 2]
    code, output = _run(*command)
    assert code == 0 and "The networks are stand-ins" in output, output
    assert sorted(path.name for path in out.iterdir()) == [
        "generation.csv", "generation.json", "nearest.png", "table.md",
    ]  # fmt: skip
    written = json.loads((out / "generation.json").read_text())
    assert written["by_type"]["spot"]["effect_score"] == 20.0
    assert written["pairs_folders"] == [str(two_types / "pairs")]
    assert written["budget"] == {"size": 64, "splits": 2, "most_pictures": 1000}
    code, output = _run(*command)
    assert code == 0 and "was made before" in output
    code, output = _run("score", *given, "--out", two_types / "new", "--inception-weights", two_types / "none.pth")
    assert code == 1 and "error: inception_weights: " in output


def test_an_evaluation_tells_what_was_noticed_and_takes_the_split_of_a_training(folders: Path) -> None:
    base = folders / "mvtec" / "bottle"
    (base / "train" / "good" / "notes.txt").write_text("x")
    lines = (folders / "pairs" / "manifest.jsonl").read_text().splitlines()
    (folders / "pairs" / "manifest.jsonl").write_text(lines[0] + "\n")
    given = ["--pairs", folders / "pairs", "--data", folders / "mvtec", "--category", "bottle"]
    small = ["--size", 32, "--width", 2, "--steps", 2, "--batch-size", 2, "--runs", 1, "--device", "cpu"]
    split = ["--split", "random", "--train-count", 2, "--split-seed", 5]
    code, output = _run("evaluate", *given, *small, *split, "--out", folders / "new")
    assert code == 0, output
    assert "split 'random', count 2, seed 5" in output
    assert "1 skipped, no images: notes.txt" in output
    table = (folders / "new" / "table.md").read_text()
    assert "Notice: data set: train/good: 1 skipped, no images: notes.txt." in table
    assert "in no line of the manifest" in table
    assert json.loads((folders / "new" / "evaluation.json").read_text())["test_defects"] == 1
    chosen = ["--split", "list", "--train-list", "dent/2"]
    code, output = _run("evaluate", *given, *small, *chosen, "--out", folders / "other")
    assert code == 0 and "1 training pairs, 2 for testing; train 2; test 0 to 1" in output


def _published(folder: Path, form: str) -> Path:
    """Pairs of another generator: in the MVTec layout, or as the authors' code leaves them, in JPEG."""
    for kind in ("dent", "spot"):
        for number in range(2):
            image, mask = _pair(3 + number)
            if form == "mvtec":
                write_image(folder / "test" / kind / f"{number:03d}.png", image)
                write_mask(folder / "ground_truth" / kind / f"{number:03d}_mask.png", mask)
                continue
            for name, content in (("image", image), ("mask", mask.expand(3, -1, -1))):
                path = folder / kind / name / f"{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(to_bytes(content).transpose(1, 2, 0)).save(path, quality=95)
    return folder


@pytest.mark.parametrize("form", ["mvtec", "authors"])
def test_a_published_generator_stands_beside_its_published_row(two_types: Path, form: str) -> None:
    pairs = _published(two_types / "DFMGAN" / "bottle", form)
    given = ["--data", two_types / "mvtec", "--category", "bottle", "--device", "cpu"]
    small = ["--size", 32, "--width", 2, "--steps", 2, "--batch-size", 2, "--runs", 1]
    runs = two_types / "run"
    commands: tuple[list[Any], ...] = (
        ["evaluate", *given, *small, "--pairs", two_types / "pairs", "--other", f"DFMGAN={pairs}"],
        ["classify", *given, *small, "--pairs", pairs, "--method", "DFMGAN"],
        ["score", *given, "--pairs", pairs, "--method", "DFMGAN", "--trunk", "stand-in", "--size", 64, "--splits", 2],
    )
    for name, *options in commands:
        more = ["--training-sets", "generated"] if name == "evaluate" else []
        code, output = _run(name, *options, *more, "--out", runs / name)
        assert code == 0, output
    tables = [part for number in (1, 2, 4) for part in ("--table", number)]
    code, output = _run("tables", runs, "--out", two_types / "tables", *tables)
    assert code == 0, output
    with (two_types / "tables" / "tables.csv").open() as stream:
        rows = [x for x in csv.DictReader(stream) if (x["row"], x["column"]) == ("bottle", "DFMGAN")]
    # The paper's own figures of DFMGAN on bottle.
    assert {(x["table"], x["metric"]): float(x["published"]) for x in rows} == {
        ("1", "is"): 1.62, ("1", "ic_lpips"): 0.12,
        ("2", "pixel_auroc"): 98.9, ("2", "pixel_ap"): 90.2, ("2", "pixel_f1"): 83.9,
        ("4", "accuracy"): 56.59,
    }  # fmt: skip
    # Table 1 stays empty: what stand-ins measure is never shown beside published numbers.
    assert all(bool(x["measured"]) == (x["table"] != "1") for x in rows)
