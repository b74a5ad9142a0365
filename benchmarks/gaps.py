"""Pairs planned from what a detector misses against as many drawn blindly: `python benchmarks/gaps.py --out OUT`.

On the demo's images, with the demo prior: each repetition learns an embedding of its own, lets `gaps` find what a
detector of the few real pairs misses on those held back from it, generates the planned pairs and as many blind ones
(half of each type, real masks varied, normal images at random), and trains a detector on the few real pairs with
either. The test images are the same for all, and `gaps` never looks at them. Everything resumes: run it again.

Prints a row for each and the paired difference with its interval; the last line is JSON: `ap_few_real`, `ap_blind`,
`ap_planned`, `planned_minus_blind` and the ends of its 95 % interval.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from common import OUTPUT, ROOT, finish, show, table

from anomalydiffusion_core.evaluation.statistics import paired_difference
from anomalydiffusion_core.synthetic.fewshot import DRAWN_LEATHER, render_fewshot_set

CLI = [sys.executable, "-m", "anomalydiffusion_core.cli"]
METRIC, TYPES, TRAINED = "pixel_ap", 2, 6
INITIAL = "stain, scratch"


class Repetition:
    """One repetition in a folder of its own."""

    def __init__(self, data: Path, out: Path, seed: int, model: Path, detector: list[str]) -> None:
        split = ["--split", "first n", "--train-count", str(TRAINED)]
        self.where = ["--data", str(data), "--category", DRAWN_LEATHER.category, *split]
        self.folder, self.seed, self.model, self.detector = out / f"repetition_{seed}", seed, model, detector
        self.folder.mkdir(parents=True, exist_ok=True)

    def command(self, name: str, done: Path, *options: str) -> Path:
        """One command, unless what it leaves is there; returns that."""
        if not done.exists():
            show(f"repetition {self.seed}: {name} {done.parent.name}")
            with (self.folder / "log.txt").open("a", encoding="utf-8") as log:
                run = [*CLI, name, *self.where, *options]
                subprocess.run(run, check=True, stdout=log, stderr=subprocess.STDOUT)
        return done

    def ap(self, count: int, training_steps: int) -> dict[str, float]:
        """Pixel AP of the detectors of this repetition."""
        folder, seed, model = self.folder, str(self.seed), ["--model", str(self.model)]
        bundle = self.command(
            "train", folder / "bundle" / "anomaly_embedding_00001.safetensors", *model, "--out",
            str(folder / "bundle"), "--steps", str(training_steps), "--augmented-copies", "3", "--batch-size", "4",
            "--initial", INITIAL, "--seed", seed,
        )  # fmt: skip
        plan = self.command(
            "gaps", folder / "plan" / "plan.json", *self.detector, "--count", str(count), "--seed", seed, "--out",
            str(folder / "plan"),
        ).parent  # fmt: skip
        made = {}
        for name, more in (("planned", ["--plan", str(plan)]), ("blind", ["--count", str(count // TYPES)])):
            given = [*model, "--bundle", str(bundle), *more, "--steps", "16", "--cfg", "2", "--min-effect", "15"]
            keep = ["--export-min-effect", "0", "--control-samples", "0", "--seed", str(1000 * (self.seed + 1))]
            out = folder / name
            made[name] = self.command("generate", out / "report.txt", *given, *keep, "--out", str(out)).parent
        found = {}
        for name, pairs in made.items():
            rows = ["--training-sets", "few real, both", "--runs", "1", "--seed", seed]
            out = folder / f"evaluation_{name}"
            kept = ["--kept", str(folder / "runs"), "--out", str(out)]
            done = self.command(
                "evaluate", out / "evaluation.json", "--pairs", str(pairs), *self.detector, *rows, *kept
            )
            read: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
            found["few real"], found[name] = (read[row]["mean"][METRIC] for row in ("without", "with"))
        return found


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results; give it again to resume.")] = OUTPUT / "gaps",
    count: int = 32,
    repetitions: int = 3,
    training_steps: int = 300,
    detector_steps: int = 600,
    model: Path = ROOT / "models" / "demo_prior.safetensors",
) -> None:
    """Pixel AP with planned and with blind pairs."""
    out = out.absolute()
    data = render_fewshot_set(out / "images", product=DRAWN_LEATHER).parent
    detector = ["--size", "64", "--width", "8", "--steps", str(detector_steps)]
    found = [Repetition(data, out, seed, model, detector).ap(count, training_steps) for seed in range(repetitions)]
    names = list(found[0])
    by_name = {name: [one[name] for one in found] for name in names}
    heads = [f"repetition {seed}" for seed in range(repetitions)]
    rows = [[n, *(f"{v:.3f}" for v in values), f"{sum(values) / len(values):.3f}"] for n, values in by_name.items()]
    table([METRIC, *heads, "mean"], rows)
    difference = paired_difference(by_name["planned"], by_name["blind"])
    means = {f"ap_{name.replace(' ', '_')}": sum(values) / len(values) for name, values in by_name.items()}
    ends = {"low": difference.low, "high": difference.high} if repetitions > 1 else {}
    finish({**means, "planned_minus_blind": difference.mean, **ends})


if __name__ == "__main__":
    typer.run(main)
