"""A workflow run several times, with other seeds or other data, in one folder that resumes; and what the runs say.

Independent repetitions move every seed: those of trainings, masks, normal images, samples and detectors. Rows of a
table are then compared repetition by repetition, with a confidence interval of the mean difference.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..evaluation.metrics.detection import defined, spread
from ..evaluation.statistics import LEVEL, paired_difference
from ..files import content_key, replacing, write_json
from ..plain_json import read_json
from .results import EVALUATION, EVALUATION_FILE
from .runs import SUMMARY
from .workflow import (
    EVALUATION_NODE,
    MASK_SAMPLER,
    MASK_TRAINING,
    NORMALS,
    SAMPLER,
    TRAINING,
    Workflow,
    nodes_of_class,
)

SEED_STEP = 1000
SEEDED = (TRAINING, MASK_TRAINING, MASK_SAMPLER, NORMALS, SAMPLER, EVALUATION_NODE)
PLAN = "plan.json"
SHOWN = ("pixel_ap", "pixel_auroc", "pixel_f1", "pixel_pro", "image_auroc")
RunOne = Callable[[Workflow, Path], object]
"""Runs a workflow and leaves its results in a new folder."""
Say = Callable[[str], None]


def repetition(workflow: Workflow, number: int) -> Workflow:
    """The workflow with every seed moved on, those of the detectors too. Number 0 is the workflow itself."""
    changed = copy.deepcopy(workflow)
    for name in SEEDED:
        for node in nodes_of_class(changed, name):
            if isinstance(changed[node]["inputs"].get("seed"), list):
                raise InputError(f"workflow: the seed of node {node} is connected. Repetitions set it.")
            changed[node]["inputs"]["seed"] += SEED_STEP * number
    return changed


def run_cases(
    out: Path, cases: Mapping[str, Workflow], run_one: RunOne, say: Say = lambda text: None
) -> dict[str, dict[str, Any]]:
    """Run what is missing of the named workflows, each in its folder below ``out``; evaluation.json of each by name.

    Raises InputError where ``out`` holds runs of other workflows, or a run evaluated nothing.
    """
    plan = {name: content_key(workflow) for name, workflow in cases.items()}
    path = out / PLAN
    if path.is_file():
        known = read_json(path, "plan")
        other = sorted(name for name in known if name in plan and known[name] != plan[name])
        if other:
            raise InputError(f"out: {out} holds runs with other settings ({', '.join(other)}). Give a new folder.")
        plan = {**known, **plan}
    elif out.is_dir() and any(out.iterdir()):
        raise InputError(f"out: {out} holds something else. Give a new folder, or one of such runs to resume.")
    out.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        write_json(partial, plan)
    found = {}
    for number, (name, workflow) in enumerate(cases.items(), start=1):
        folder = out / name
        if not (folder / SUMMARY).is_file():
            say(f"{number} of {len(cases)}: {name}")
            folder.parent.mkdir(parents=True, exist_ok=True)
            run_one(workflow, folder)
        evaluated = folder / EVALUATION / EVALUATION_FILE
        if not evaluated.is_file():
            raise InputError(f"workflow: {name} evaluated nothing. Use a workflow with Evaluate Localization.")
        found[name] = read_json(evaluated, "evaluation")
    return found


def values_of(evaluations: Sequence[Mapping[str, Any]], metric: str) -> dict[str, list[float]]:
    """Label of each row -> its mean over the detectors in every repetition, NaN where undefined."""
    labels = [row["label"] for row in evaluations[0]["rows"]]
    found: dict[str, list[float]] = {label: [] for label in labels}
    for evaluation in evaluations:
        own = {row["label"]: row["metrics"][metric] for row in evaluation["rows"]}
        if own.keys() != found.keys():
            raise InputError("repetitions: they have different rows. Give a new folder.")
        for label, value in own.items():
            found[label].append(float("nan") if value is None else float(value))
    return found


def compared(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and spread of every row over independent repetitions, and each row minus the first one, paired.

    Plain values for JSON.
    """
    rows: dict[str, dict[str, Any]] = {}
    differences: dict[str, dict[str, Any]] = {}
    for metric in SHOWN:
        values = values_of(evaluations, metric)
        first = next(iter(values))
        for label, own in values.items():
            mean = sum(own) / len(own)
            rows.setdefault(label, {})[metric] = {
                "values": [defined(value) for value in own],
                "mean": defined(mean),
                "spread": defined(spread(own)),
            }
            if label != first:
                one = paired_difference(own, values[first])
                differences.setdefault(f"{label} - {first}", {})[metric] = {
                    "mean": defined(one.mean),
                    "low": defined(one.low),
                    "high": defined(one.high),
                    "verdict": one.verdict,
                    "text": one.text(),
                }
    return {"repetitions": len(evaluations), "level": LEVEL, "rows": rows, "differences": differences}


def to_markdown(result: Mapping[str, Any]) -> str:
    """The tables of ``compared``."""
    count = result["repetitions"]
    lines = [
        f"{count} independent repetitions of training, masks, generation and detectors on the same images; mean +- "
        "sample standard deviation",
        "",
        "| trained on | " + " | ".join(SHOWN) + " |",
        "|---" * (len(SHOWN) + 1) + "|",
    ]
    for label, metrics in result["rows"].items():
        lines.append(
            f"| {label} | " + " | ".join(cell(metrics[m]["mean"], metrics[m]["spread"]) for m in SHOWN) + " |"
        )
    lines += [
        "",
        f"| difference, {result['level']:.0%} interval over {count} repetitions | " + " | ".join(SHOWN) + " |",
    ]
    lines.append("|---" * (len(SHOWN) + 1) + "|")
    for label, metrics in result["differences"].items():
        lines.append(f"| {label} | " + " | ".join(metrics[metric]["text"] for metric in SHOWN) + " |")
    return "\n".join(lines)


def cell(mean: float | None, deviation: float | None) -> str:
    """Mean and spread of one cell."""
    if mean is None:
        return "undefined"
    return f"{mean:.3f}" if deviation is None else f"{mean:.3f} +- {deviation:.3f}"


def repeat(out: Path, workflow: Workflow, count: int, run_one: RunOne, say: Say = lambda text: None) -> str:
    """Run a workflow ``count`` times; writes repetitions.md and repetitions.json and returns the tables."""
    if count < 2:
        raise InputError(f"repetitions: {count}. Give 2 or more, 3 for an interval that says something.")
    cases = {f"repetition_{number}": repetition(workflow, number) for number in range(count)}
    result = compared(list(run_cases(out, cases, run_one, say).values()))
    text = to_markdown(result)
    with replacing(out / "repetitions.json") as partial:
        write_json(partial, result)
    with replacing(out / "repetitions.md") as partial:
        partial.write_text(f"{text}\n", encoding="utf-8", newline="\n")
    return text
