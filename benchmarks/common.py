"""What the benchmarks share: a slim model in ComfyUI, paired timing, peak memory, a table, the last line of JSON."""

from __future__ import annotations

import importlib
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "output" / "benchmarks"
# As in the tests: with the repository root on the path our `nodes` would hide ComfyUI's module of that name.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
sys.path.append(str(ROOT / "tests" / "support"))


def slim_host(base: Path) -> tuple[Callable[..., Any], Any, Any, Any]:
    """ComfyUI's own nodes, and MODEL, CLIP and VAE of a slim Stable Diffusion 1.5; folders lie below ``base``."""
    in_process = importlib.import_module("in_process")
    in_process.load_extension(base)
    stock = in_process.stock_nodes()
    return (stock, *in_process.slim_diffusion(stock))


def module(name: str) -> Any:
    """A module of the extension as ComfyUI loaded it, after ``slim_host``."""
    return importlib.import_module(f"{importlib.import_module('in_process').PACKAGE}.{name}")


def timed(run: Callable[[], object]) -> Callable[[], float]:
    """``run`` as something that returns its seconds."""

    def measure() -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    return measure


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


def against(times: Mapping[str, Sequence[float]], name: str, peer: str) -> tuple[float, list[str]]:
    """Median of the ratios of two runs of one round, and two cells: median seconds, and that ratio with its range."""
    ratios = [own / other for own, other in zip(times[name], times[peer], strict=True)]
    middle = statistics.median(ratios)
    seconds = f"{statistics.median(times[name]):.3f}"
    return middle, [seconds, "1" if name == peer else f"{middle:.3f} ({min(ratios):.3f} to {max(ratios):.3f})"]


def peak_while(run: Callable[[], object]) -> int:
    """Largest resident set in bytes while ``run`` runs, sampled every two milliseconds."""
    psutil = importlib.import_module("psutil")
    own, done = psutil.Process(), threading.Event()
    peak = [own.memory_info().rss]

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], own.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return peak[0]


def in_own_process(script: str, **options: object) -> dict[str, float]:
    """The last line of JSON of a benchmark that is run in a process of its own, where the peak is its own as well."""
    command = [sys.executable, script]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def show(text: str) -> None:
    """Progress, which is no result."""
    sys.stderr.write(text + "\n")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    sys.stdout.write("".join("| " + " | ".join(line) + " |\n" for line in lines))


def finish(figures: Mapping[str, float], digits: int | None = 4) -> None:
    """The last line of the output; figures are rounded to ``digits`` after the point, None leaves them as they are."""
    rounded = {name: value if digits is None else round(value, digits) for name, value in figures.items()}
    sys.stdout.write(json.dumps(rounded) + "\n")
