"""What the benchmarks share: the path to the support of the tests, paired timing, a table, the last line of JSON."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# As in the tests: with the repository root on the path our `nodes` would hide ComfyUI's module of that name.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
sys.path.append(str(ROOT / "tests" / "support"))


def paired_times(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run in each round. Every round does all runs, each time starting with another one.

    One round before the first is not counted: it pays for what is only done once.
    """
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, rounds):
        first = max(number, 0) % len(names)
        for name in names[first:] + names[:first]:
            seconds = runs[name]()
            if number >= 0:
                times[name].append(seconds)
        show(f"round {number + 1} of {rounds}" if number >= 0 else "warm-up")
    return times


def ratio(times: Mapping[str, Sequence[float]], name: str, peer: str) -> tuple[float, float, float]:
    """Median, smallest and largest of the ratios of two runs of one round."""
    ratios = [own / other for own, other in zip(times[name], times[peer], strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def show(text: str) -> None:
    """Progress, which is no result."""
    sys.stderr.write(text + "\n")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    sys.stdout.write("".join("| " + " | ".join(line) + " |\n" for line in lines))


def finish(figures: Mapping[str, float]) -> None:
    """The last line of the output."""
    sys.stdout.write(json.dumps({name: round(value, 4) for name, value in figures.items()}) + "\n")
