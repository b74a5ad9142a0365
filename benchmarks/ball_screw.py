"""What native scale brings: small pits on oblong images, few real pairs with ours, Crop and Paste, and a squash.

    python benchmarks/ball_screw.py --data FOLDER --out OUT

FOLDER holds the category `ball_screw` as its owner stored it (BSData: 1130 x 460 pixels, one pit of 5 to 61 px on an
image, LabelMe files). The lowest third of the pits trains, the others and a fifth of the normal images test. The base
model is the demo prior, adapted to the normal images. Detectors see windows and are tested by overlapping tiles, at
the pixels of the originals, every row with the same budget:

- few real: the training pairs alone;
- few real + ours: embedding, pairs and their masks at the scale that the training chose, on full-size images;
- few real + Crop and Paste: as many pairs on as many normal images;
- few real + whole image squashed: as ours, but the embedding learned from whole images that were made squares of twice
  the trained side, as trainings did before they took windows, and its windows are enlarged without regard to scale.

Everything resumes: run the same command again. Prints the table and the intervals of the differences; OUT/sheet.png
shows pairs with their windows enlarged. The last line is JSON: pixel AP of few real, and what each method adds to it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from common import ROOT, finish, table
from few_shot import CLI, METRIC, METRICS
from PIL import Image

CATEGORY = "ball_screw"
PASTED, SQUASHED = "Crop and Paste", "whole image squashed"
CELL, SHOWN = 160, 8


def squashed(data: Path, target: Path, side: int) -> Path:
    """The data set in the MVTec layout with every image made a square, as trainings saw it before windows."""
    from anomalydiffusion_core.data.images import resize_image
    from anomalydiffusion_core.data.mask_resizing import resize_mask
    from anomalydiffusion_core.data.mvtec import load_dataset, load_images
    from anomalydiffusion_core.data.splits import SplitSettings
    from anomalydiffusion_core.figures import to_bytes

    done = target / "done.txt"
    if done.is_file():
        return target
    dataset = load_dataset(data, CATEGORY, SplitSettings())

    def write(path: Path, pixels: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        shown = to_bytes(pixels)
        Image.fromarray(shown.transpose(1, 2, 0) if shown.shape[0] == 3 else shown[0]).save(path)

    base = target / CATEGORY
    for part, paths in (("train", dataset.normals), ("test", dataset.test_normals)):
        for path in paths:
            write(base / part / "good" / f"{path.stem}.png", load_images([path], side)[0])
    for kind in dataset.types:
        for pair in (*kind.train, *kind.test):
            image = load_images([pair.image_path], 0)
            write(base / "test" / kind.defect / f"{pair.name}.png", resize_image(image, side)[0])
            mask = resize_mask(pair.read_mask()[None], side)
            write(base / "ground_truth" / kind.defect / f"{pair.name}_mask.png", mask[0])
    done.write_text("all images written\n", encoding="utf-8")
    return target


class Run:
    """The steps of one measurement, each kept in OUT."""

    def __init__(self, data: Path, out: Path, model: Path, budget: dict[str, Any]) -> None:
        self.data, self.out, self.model, self.budget = data, out, model, budget

    def command(self, name: str, *options: object, data: Path | None = None) -> None:
        """One command of ours; it resumes by itself."""
        where = ["--data", str(data or self.data), "--category", CATEGORY]
        with (self.out / "log.txt").open("a", encoding="utf-8") as log:
            given = [*CLI, *name.split(), *where, *map(str, options)]
            subprocess.run(given, check=True, stdout=log, stderr=subprocess.STDOUT)

    def bundle(self, name: str, data: Path, view: str, seed: int) -> tuple[Path, Path]:
        """Adaptation to the normal images of ``data``, and the embedding trained with it."""
        b, folder = self.budget, self.out / name
        learned = ["--resolution", b["side"], "--view", view, "--model", self.model, "--batch-size", 4]
        lora, trained = folder / "adapted_00001.safetensors", folder / f"pits{seed}_00001.safetensors"
        if not lora.is_file():
            adapted = ["--name", "adapted", "--steps", b["adapt_steps"], "--control-samples", 2, "--pictures", 100]
            self.command("adapt", *learned, *adapted, "--out", folder, data=data)
        if not trained.is_file():
            settings = ["--name", f"pits{seed}", "--steps", b["steps"], "--seed", seed, "--lora", lora]
            self.command("train", *learned, *settings, "--out", folder, data=data)
        return lora, trained

    def pairs(self, name: str, data: Path, view: str, seed: int, *options: object) -> Path:
        """Pairs on the normal images at their own size."""
        b, folder = self.budget, self.out / f"{name}_pairs_{seed}"
        if not (folder / "report.txt").is_file():
            lora, bundle = self.bundle(name, data, view, seed)
            sampling = ["--steps", b["sampling_steps"], "--cfg", 2, "--control-samples", 0, "--crop-size", b["side"]]
            given = ["--model", self.model, "--lora", lora, "--bundle", bundle, "--out", folder]
            self.command("generate", *given, *sampling, *self.count(seed), "--max-shift", 0.4, *options)
        return folder

    def count(self, seed: int) -> list[object]:
        """As many pairs as every method makes, on images of their own size."""
        return ["--count", self.budget["pairs"], "--size", 0, "--seed", 1000 * (seed + 1)]

    def pasted(self, seed: int) -> Path:
        """Pairs of Crop and Paste."""
        folder = self.out / f"pasted_pairs_{seed}"
        if not (folder / "manifest.jsonl").is_file():
            self.command("baseline crop-and-paste", "--out", folder, *self.count(seed))
        return folder

    def measured(self, repetitions: int, detectors: int, squash: bool) -> dict[str, Any]:
        """evaluation.json of all rows."""
        out, b = self.out / f"evaluation_{repetitions}x{detectors}{'_squash' if squash else ''}", self.budget
        given: list[object] = []
        for seed in range(repetitions):
            given += ["--pairs", self.pairs("windows", self.data, "windows", seed)]
            given += ["--other", f"{PASTED}={self.pasted(seed)}"]
            if squash:
                data = squashed(self.data, self.out / "squashed", 2 * b["side"])
                made = self.pairs("squash", data, "whole image", seed, "--crop", "always")
                given += ["--other", f"{SQUASHED}={made}"]
        if not (out / "evaluation.json").is_file():
            network = ["--steps", b["detector_steps"], "--size", b["tile"], "--width", b["width"], "--view", "tiles"]
            rows = ["--training-sets", "few real, both", "--runs", detectors, "--kept", self.out / "evaluation_runs"]
            self.command("evaluate", *given, *network, *rows, "--out", out)
        found: dict[str, Any] = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
        return found


def zoomed(path: Path, box: tuple[int, int, int, int]) -> Image.Image:
    """A part of an image, enlarged pixel by pixel."""
    with Image.open(path) as image:
        return image.convert("RGB").crop(box).resize((CELL, CELL), Image.Resampling.NEAREST)


def sheet(folders: list[Path], target: Path, window: int = 80) -> None:
    """For each pair the generated image, and around its mask: normal image, mask, generated image, all enlarged."""
    from anomalydiffusion_core.data.pairs import load_exported

    rows = []
    for folder in folders:
        for pair in load_exported(folder)[:SHOWN]:
            with Image.open(pair.mask) as drawn:
                mask = np.asarray(drawn.convert("L")) > 0
            height, width = mask.shape
            y, x = (int(where.mean()) for where in mask.nonzero())
            left, top = (min(max(at - window // 2, 0), n - window) for at, n in ((x, width), (y, height)))
            box = (left, top, left + window, top + window)
            with Image.open(pair.image) as image:
                whole = image.convert("RGB").resize((round(CELL * width / height), CELL))
            normal = pair.normal or pair.image
            rows.append([whole, *(zoomed(path, box) for path in (normal, pair.mask, pair.image))])
    wide = sum(cell.width for cell in rows[0])
    drawn_sheet = Image.new("RGB", (wide, CELL * len(rows)))
    for number, row in enumerate(rows):
        left = 0
        for cell in row:
            drawn_sheet.paste(cell, (left, number * CELL))
            left += cell.width
    drawn_sheet.save(target)


def _cell(one: dict[str, Any], metric: str) -> str:
    mean, spread = one["metrics"][metric], one["spread"][metric]
    if mean is None:
        return "undefined"
    return f"{mean:.3f}" if spread is None else f"{mean:.3f} +- {spread:.3f}"


def main(
    data: Annotated[Path, typer.Option(help="Folder that holds the folder ball_screw.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; give it again to resume.")],
    repetitions: Annotated[int, typer.Option(help="Sets with an embedding and pairs of their own.")] = 1,
    detectors: Annotated[int, typer.Option(help="Detector seeds for each set.")] = 3,
    pairs: int = 40,
    adapt_steps: int = 120,
    steps: int = 150,
    sampling_steps: int = 12,
    side: Annotated[int, typer.Option(help="Side in pixels at which defects are learned.")] = 128,
    detector_steps: int = 150,
    tile: int = 128,
    width: int = 8,
    squash: Annotated[bool, typer.Option(help="The row of the squash as well.")] = True,
    model: Path = ROOT / "models" / "demo_prior.safetensors",
) -> None:
    """Measure what is missing and print the table."""
    sys.path.append(str(ROOT))
    out.mkdir(parents=True, exist_ok=True)
    names = "pairs adapt_steps steps sampling_steps side detector_steps tile width".split()
    given = locals()
    budget = {name: given[name] for name in names}
    run = Run(data, out, model, budget)
    found = run.measured(repetitions, detectors, squash)
    folders = [out / f"{name}_pairs_0" for name in ("windows", *(("squash",) if squash else ()), "pasted")]
    sheet(folders, out / "sheet.png")
    sys.stdout.write(f"budget: {budget}\n\n")
    rows = [[one["label"], *(_cell(one, m) for m in METRICS), str(len(one["runs"]))] for one in found["rows"]]
    table(["trained on", *METRICS, "runs"], rows)
    sys.stdout.write(
        "\n" + "".join(f"{d['label']}: {METRIC} {d['metrics'][METRIC]['text']}\n" for d in found["differences"])
    )
    base, *others = [(one["label"], one["metrics"][METRIC]) for one in found["rows"]]
    finish({base[0]: base[1], **{f"{label} - {base[0]}": value - base[1] for label, value in others}})


if __name__ == "__main__":
    typer.run(main)
