"""How many are enough: a workflow run with 1, 2, 3, ... real defects of each type, each with any number of pairs.

Every number of real defects is learned anew from these alone, embedding and masks included; the test set is the same
for all. Within one run the detectors differ in how many of its pairs they are trained on.
"""

from __future__ import annotations

import copy
import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.images import write_image
from ..errors import InputError
from ..evaluation.localization.amounts import AMOUNTS, METRIC, Points, plot_amounts
from ..evaluation.metrics.detection import defined, spread
from ..evaluation.settings import BOTH, FEW_REAL
from ..evaluation.statistics import LEVEL, paired_difference
from ..files import new_folder, write_json
from .repetitions import RunOne, Say, cell, repetition, run_cases, values_of
from .workflow import (
    DATASET_NODE,
    EVALUATION_NODE,
    EXPORT_NODE,
    MASK_SAMPLER,
    NORMALS,
    SAMPLER,
    Workflow,
    describe_nodes,
    nodes_of_class,
)

ALL = 0
"""A number of real defects that means the lowest third of each type."""
CURVE = "curve"


class AmountRuns:
    """All runs of one curve, in one folder. What is finished is not run again."""

    def __init__(
        self, out: Path, workflow: Workflow, real: Sequence[int], generated: Sequence[int], count: int, test_rate: int
    ) -> None:
        """See the command ``enough``. Raises InputError for numbers that make no curve, or a node that lacks."""
        if not real or min(real) < 0 or len(set(real)) < len(real):
            raise InputError(f"real: {list(real)}. Give numbers of 1 and more, each once; 0 is the lowest third.")
        if not any(generated) or min(generated) < 0 or len(set(generated)) < len(generated):
            raise InputError(f"generated: {list(generated)}. Give 0 and more, each once, one of them above 0.")
        if count < 1 or not 1 <= test_rate <= 66:
            raise InputError(f"repetitions {count}, test_rate {test_rate}. Give 1 and more, and a rate of 1 to 66.")
        self.out, self.real, self.generated, self.count = out, tuple(real), tuple(sorted({0, *generated})), count
        self.cases = {
            self._name(number, one): repetition(_case(workflow, number, self.generated, test_rate), one)
            for number in real
            for one in range(count)
        }

    def run(self, run_one: RunOne, say: Say = lambda text: None) -> str:
        """Run what is missing; writes enough.md, .csv, .json and amounts.png below curve, and returns the table."""
        found = run_cases(self.out, self.cases, run_one, say)
        measured = {
            number: _by_count([found[self._name(number, one)] for one in range(self.count)]) for number in self.real
        }
        text = _markdown(measured, self.generated, self.count)
        plain = {
            _real_text(number): {str(count): [defined(one) for one in values] for count, values in own.items()}
            for number, own in measured.items()
        }
        lines: dict[str, Points] = {
            f"{_real_text(number)} real": {
                count: (math.fsum(values) / len(values), spread(values)) for count, values in own.items()
            }
            for number, own in measured.items()
        }
        image = plot_amounts(lines, "How many are enough", f"standard deviation, {self.count} repetitions")
        with new_folder(self.out / CURVE, replace=True) as draft:
            (draft / "enough.md").write_text(f"{text}\n", encoding="utf-8", newline="\n")
            (draft / "enough.csv").write_text(_csv(measured), encoding="utf-8", newline="\n")
            figures = {"metric": METRIC, "level": LEVEL, "repetitions": self.count, "real": plain}
            write_json(draft / "enough.json", figures)
            write_image(draft / AMOUNTS, image)
        return text

    def _name(self, real: int, one: int) -> str:
        return f"real_{_real_text(real)}/repetition_{one}"


def _real_text(number: int) -> str:
    return "all" if number == ALL else str(number)


def _case(workflow: Workflow, real: int, generated: Sequence[int], test_rate: int) -> Workflow:
    """The workflow with so many real defects of each type, enough pairs, and a row for each number of them."""
    split = {"split": "lowest third"} if real == ALL else {"split": "first n", "train_count": real}
    wanted: dict[str, Mapping[str, Any]] = {
        DATASET_NODE: {**split, "test_rate": test_rate},
        MASK_SAMPLER: {"count": max(generated)},
        NORMALS: {"count": max(generated)},
        # A weak sample counts, or there would be fewer pairs than the curve says.
        SAMPLER: {"control_samples": 0},
        EXPORT_NODE: {"min_effect": 0.0},
        EVALUATION_NODE: {
            "training_sets": f"{FEW_REAL}, {BOTH}",
            "pair_counts": ", ".join(map(str, generated)),
            "methods": "",
        },
    }
    changed = copy.deepcopy(workflow)
    for name, values in wanted.items():
        nodes = nodes_of_class(changed, name)
        if not nodes:
            raise InputError(f"workflow: it has no node {name}. It has {describe_nodes(workflow)}.")
        for node in nodes:
            if name == EVALUATION_NODE and isinstance(changed[node]["inputs"].get("methods"), list):
                raise InputError(f"workflow: node {node} compares with other methods. Use one without.")
            changed[node]["inputs"].update(values)
    return changed


def _by_count(evaluations: Sequence[Mapping[str, Any]]) -> dict[int, list[float]]:
    """Number of generated pairs of each type -> AP of every repetition; 0 is the few real pairs alone."""
    found: dict[int, list[float]] = {}
    for label, values in values_of(evaluations, METRIC).items():
        words = label.rpartition(", ")[2].split()
        count = int(words[0]) if label.endswith(" of each type") else 0
        found[count] = values
    return dict(sorted(found.items()))


def _markdown(measured: Mapping[int, Mapping[int, Sequence[float]]], counts: Sequence[int], repeated: int) -> str:
    head = "".join(f" {count} |" for count in counts)
    lines = [
        f"{METRIC} of the test set over real defects of each type (rows) and generated pairs of each type (columns); "
        f"{repeated} repetitions of training, generation and detectors, mean +- sample standard deviation",
        "",
        f"| real |{head}",
        "|---" * (len(counts) + 1) + "|",
    ]
    for number, own in measured.items():
        cells = (cell(defined(sum(own[count]) / len(own[count])), defined(spread(own[count]))) for count in counts)
        lines.append(f"| {_real_text(number)} | " + " | ".join(cells) + " |")
    lines += ["", f"| real, minus no generated pairs, {LEVEL:.0%} interval |" + head.partition("|")[2]]
    lines.append("|---" * len(counts) + "|")
    for number, own in measured.items():
        cells = (paired_difference(own[count], own[0]).text() for count in counts[1:])
        lines.append(f"| {_real_text(number)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _csv(measured: Mapping[int, Mapping[int, Sequence[float]]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["real of each type", "generated of each type", "repetition", METRIC])
    for number, own in measured.items():
        for count, values in own.items():
            for one, value in enumerate(values):
                writer.writerow([_real_text(number), count, one, "" if math.isnan(value) else f"{value:.6f}"])
    return text.getvalue()
