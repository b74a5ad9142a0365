"""How much generated pairs help on real objects: few real pairs, Crop and Paste, ours, and the few real with either.

    python benchmarks/few_shot.py --data FOLDER --out OUT
    python benchmarks/few_shot.py --data FOLDER --out OUT --choose magnetic_tile    choose the budgets first

FOLDER holds categories in the MVTec layout. Each object is measured with 1, 3 and all training pairs of each type (the
lowest third); the test set is the same for all, the upper two thirds and the normal test images. Every repetition has
an embedding, generated pairs, pasted pairs and detectors of its own, so intervals hold for all of these together.
Budgets are never chosen on the objects that are measured: `--choose` tries them on another object and keeps
`budget.json` in OUT, which later calls read. Everything resumes: run the same command again. A budget that a CPU
finishes says little about full ones; the note names it.

Prints a table for each object and number of pairs; the last line is JSON: the number of tables, and in how many the
few real pairs with ours have an interval above zero over the few real alone, and over those with Crop and Paste.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from common import ROOT, finish, show, table

METRIC = "pixel_ap"
ALL = 0
"""A number of pairs that means the whole lowest third."""
TEST_RATE = 66
"""Percent that test: what the lowest third leaves, for any number of training pairs."""
CLI = [sys.executable, "-m", "anomalydiffusion_core.cli"]
METRICS = ("image_auroc", "pixel_auroc", "pixel_ap", "pixel_f1", "pixel_pro")
WITHOUT, WITH, PASTED = "without", "with", "few real + Crop and Paste"


@dataclass(frozen=True)
class Budget:
    """Steps and side of the embedding, steps and guidance of the sampler, pairs of each type, and the detectors."""

    embedding_steps: int = 80
    side: int = 128
    sampling_steps: int = 12
    cfg: float = 2.0
    pairs: int = 6
    detector_steps: int = 80
    detector_size: int = 128
    detector_width: int = 8


def candidates() -> list[Budget]:
    """What is tried on the object for choosing."""
    base = Budget()
    return [base, replace(base, embedding_steps=160), replace(base, cfg=4.0), replace(base, detector_steps=160)]


class Case:
    """One object with one number of training pairs of each type, in a folder of its own."""

    def __init__(self, data: Path, out: Path, model: Path, category: str, count: int, budget: Budget) -> None:
        self.data, self.model, self.category, self.budget = data, model, category, budget
        split = ["--split", "lowest third"] if count == ALL else ["--split", "first n", "--train-count", str(count)]
        self.split = [*split, "--test-rate", str(TEST_RATE)]
        self.name = f"{category}_{count or 'all'}"
        self.folder, self.runs = out / self.name, out / "evaluation_runs"

    def command(self, name: str, *options: str) -> None:
        """One command of ours; it resumes by itself."""
        where = ["--data", str(self.data), "--category", self.category, *self.split]
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log.txt").open("a", encoding="utf-8") as log:
            subprocess.run([*CLI, name, *where, *options], check=True, stdout=log, stderr=subprocess.STDOUT)

    def ours(self, seed: int) -> Path:
        """Pairs of an embedding of its own. Masks are the training masks, varied, on the object."""
        b, tag = self.budget, f"{self.budget.embedding_steps}_{seed}"
        trained = self.folder / f"bundle_{tag}"
        bundle = trained / "anomaly_embedding_00001.safetensors"
        if not bundle.is_file():
            steps = ["--steps", str(b.embedding_steps), "--augmented-copies", "3", "--seed", str(seed)]
            steps += ["--resolution", str(b.side)]
            self.command("train", "--model", str(self.model), "--out", str(trained), *steps)
        pairs = self.folder / f"ours_{tag}_{b.sampling_steps}_{b.cfg:g}_{b.pairs}"
        if not (pairs / "report.txt").is_file():
            sampling = ["--steps", str(b.sampling_steps), "--cfg", f"{b.cfg:g}", "--count", str(b.pairs)]
            sampling += ["--seed", str(1000 * (seed + 1)), "--size", str(b.side), "--control-samples", "0"]
            given = ["--model", str(self.model), "--bundle", str(bundle), "--out", str(pairs), "--on-object"]
            self.command("generate", *given, *sampling)
        return pairs

    def pasted(self, seed: int) -> Path:
        """Pairs of Crop and Paste on the same number of normal images, inside the object where one stands out."""
        folder = self.folder / f"pasted_{seed}_{self.budget.pairs}_{self.budget.side}"
        if not (folder / "manifest.jsonl").is_file():
            size = ["--count", str(self.budget.pairs), "--size", str(self.budget.side)]
            numbers = ["--seed", str(1000 * (seed + 1)), "--on-object"]
            self.command("baseline", "crop-and-paste", "--out", str(folder), *size, *numbers)
        return folder

    def measured(self, repetitions: int, detectors: int = 1, only_ours: bool = False) -> dict[str, Any]:
        """evaluation.json of the five rows, or of few real and few real with ours, over so many repetitions."""
        ours = [self.ours(seed) for seed in range(repetitions)]
        pasted = [] if only_ours else [self.pasted(seed) for seed in range(repetitions)]
        b = self.budget
        mark = f"{b.side}_{b.embedding_steps}_{b.cfg:g}_{b.detector_steps}_{b.detector_size}_{repetitions}x{detectors}"
        out = self.folder / f"evaluation_{mark}"
        if not (out / "evaluation.json").is_file():
            given = [text for folder in ours for text in ("--pairs", str(folder))]
            given += [text for folder in pasted for text in ("--other", f"Crop and Paste={folder}")]
            steps = ["--steps", str(b.detector_steps), "--size", str(b.detector_size), "--runs", str(detectors)]
            steps += ["--width", str(b.detector_width)]
            sets = "few real, both" if only_ours else "few real, generated, both"
            rows = ["--training-sets", sets, "--kept", str(self.runs)]
            self.command("evaluate", *given, *steps, *rows, "--out", str(out))
        found: dict[str, Any] = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
        return found


def choose(data: Path, out: Path, model: Path, category: str) -> Budget:
    """The candidate with the highest pixel AP of the few real pairs with ours, on an object that is not measured."""
    rated = []
    for budget in candidates():
        found = Case(data, out, model, category, 3, budget).measured(1, 2, only_ours=True)
        rated.append(found[WITH]["mean"][METRIC])
        show(f"{category}: {budget}: {METRIC} {rated[-1]:.3f}")
    best = candidates()[max(range(len(rated)), key=rated.__getitem__)]
    tried = [asdict(one) for one in candidates()]
    kept = {"chosen_on": category, "budget": asdict(best), "tried": tried, METRIC: rated}
    (out / "budget.json").write_text(json.dumps(kept, indent=2), encoding="utf-8")
    return best


def shown(name: str, found: dict[str, Any]) -> tuple[int, int]:
    """Print the rows of a case and its differences; 1 where ours helps, and where it helps more than pasting."""
    rows = [
        [one["label"], *(_cell(one["metrics"][m], one["spread"][m]) for m in METRICS), str(len(one["runs"]))]
        for one in found["rows"]
    ]
    table([name, *METRICS, "runs"], rows)
    verdicts = {}
    for one in found["differences"]:
        verdicts[one["row"], one["minus"]] = one["metrics"][METRIC]["verdict"] == "better"
        sys.stdout.write(f"{one['label']}: {METRIC} {one['metrics'][METRIC]['text']}\n")
    sys.stdout.write("\n")
    return int(verdicts.get((WITH, WITHOUT), False)), int(verdicts.get((WITH, PASTED), False))


def _cell(mean: float | None, spread: float | None) -> str:
    if mean is None:
        return "undefined"
    return f"{mean:.3f}" if spread is None else f"{mean:.3f} +- {spread:.3f}"


def main(
    data: Annotated[Path, typer.Option(help="Folder that holds the categories.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; give it again to resume.")],
    objects: Annotated[str, typer.Option(help="Categories that are measured.")] = "bottle,cookie",
    counts: Annotated[str, typer.Option(help="Training pairs of each type; 0 means the lowest third.")] = "1,3,0",
    repetitions: int = 3,
    choose_on: Annotated[str, typer.Option("--choose", help="Another category, on which budgets are chosen.")] = "",
    model: Path = ROOT / "models" / "demo_prior.safetensors",
    only_choose: bool = False,
    minutes: Annotated[float, typer.Option(help="Begin no further case after so many minutes. 0 has no limit.")] = 0,
) -> None:
    """Measure what is missing and print all tables."""
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "budget.json"
    wanted = [name.strip() for name in objects.split(",")]
    if choose_on in wanted:
        raise typer.BadParameter(f"{choose_on} is measured; choose budgets on another object")
    if kept.is_file():
        budget = Budget(**json.loads(kept.read_text(encoding="utf-8"))["budget"])
    else:
        budget = choose(data, out, model, choose_on) if choose_on else Budget()
    sys.stdout.write(f"budget: {budget}\n\n")
    made = better = beyond = 0
    for count in [int(text) for text in counts.split(",")] if not only_choose else []:
        for category in wanted:
            case = Case(data, out, model, category, count, budget)
            if minutes and time.monotonic() - started > 60 * minutes:
                show(f"{case.name}: left out, the minutes are over")
                continue
            own, more = shown(case.name, case.measured(repetitions))
            made, better, beyond = made + 1, better + own, beyond + more
            sys.stdout.flush()
    finish({"tables": made, "better_than_few_real": better, "better_than_crop_and_paste": beyond})


if __name__ == "__main__":
    typer.run(main)
