"""Speed, memory and error of the pixel metrics, against scikit-learn and a plain PRO on the same score maps.

    python benchmarks/metrics.py            83 maps of 900 x 900, both in processes of their own
    python benchmarks/metrics.py --large    2,000 maps of 1024 x 1024, rendered one by one, memory of the whole process
    python benchmarks/metrics.py --maps 10 --size 300    a quick look

A third of the images are normal, the others have one to three discs of defect, in all about three per cent of the
pixels; scores are probabilities. Peak memory is that of the process above what it held before the metrics began; CPU
seconds tell more than seconds where other processes run. A PRO
at 100 thresholds is itself off by about a thousandth, so the error of PRO is taken against the same plain PRO at
100,000 thresholds, which is not timed. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
from common import show, table
from numpy.typing import NDArray

METRICS = ("auroc", "ap", "f1", "pro")
PRO_THRESHOLDS = 100
FINE_THRESHOLDS = 100_000
PRO_LIMIT = 0.3


def images(count: int, size: int, seed: int = 0) -> Iterator[tuple[NDArray, NDArray]]:
    """Score maps float32 in (0,1) and masks bool, [size,size] each."""
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        mask = np.zeros((size, size), dtype=bool)
        for _ in range(int(rng.integers(1, 4)) if number % 3 else 0):
            top, left, radius = rng.uniform(0.15, 0.85), rng.uniform(0.15, 0.85), rng.uniform(0.05, 0.12)
            mask |= (y - top) ** 2 + (x - left) ** 2 < radius**2
        logits = rng.standard_normal((size, size), dtype=np.float32) * 2 - 6 + 5 * mask
        yield 1 / (1 + np.exp(-logits)), mask


def ours(maps: list[NDArray], masks: list[NDArray]) -> dict[str, float]:
    """All four at once."""
    from anomalydiffusion_core.evaluation.metrics.pixels import StreamingPixelMetrics

    metrics = StreamingPixelMetrics()
    for values, mask in zip(maps, masks, strict=True):
        metrics.update(values, mask)
    found = metrics.compute()
    return {**{name: getattr(found, name) for name in METRICS}, "max_error": found.max_error}


def peers(maps: list[NDArray], masks: list[NDArray]) -> dict[str, float]:
    """As evaluation scripts commonly do it: one long array, three calls of scikit-learn, regions one by one."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    scores = np.concatenate([values.ravel() for values in maps])
    labels = np.concatenate([mask.ravel() for mask in masks])
    precision, recall, _ = precision_recall_curve(labels, scores)
    best = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-30))
    del precision, recall
    found = {"auroc": roc_auc_score(labels, scores), "ap": average_precision_score(labels, scores), "f1": best}
    del scores, labels
    return {**{name: float(value) for name, value in found.items()}, "pro": plain_pro(maps, masks)}


def plain_pro(maps: list[NDArray], masks: list[NDArray], count: int = PRO_THRESHOLDS) -> float:
    """Overlap of each region at thresholds that lie evenly in rank among the normal pixels, trapezoids up to 0.3."""
    from scipy.ndimage import label

    normal = np.sort(np.concatenate([values[~mask] for values, mask in zip(maps, masks, strict=True)]))
    ranks = np.linspace(len(normal) - 1, round((1 - PRO_LIMIT) * len(normal)), count).astype(int)
    thresholds = normal[ranks]
    rates = (len(normal) - np.searchsorted(normal, thresholds, side="right")) / len(normal)
    overlaps = []
    for values, mask in zip(maps, masks, strict=True):
        regions, found = label(mask, structure=np.ones((3, 3)))
        for number in range(1, found + 1):
            inside = np.sort(values[regions == number])
            overlaps.append(1 - np.searchsorted(inside, thresholds, side="right") / len(inside))
    heights = np.mean(overlaps, axis=0)
    rates, heights = np.append(rates, PRO_LIMIT), np.append(heights, heights[-1])
    return float(np.sum(np.diff(rates) * (heights[1:] + heights[:-1]) / 2) / PRO_LIMIT)


def measure(run: Callable[[list[NDArray], list[NDArray]], dict[str, float]], count: int, size: int) -> None:
    """Run once with the maps in memory and print metrics, seconds and GB above the inputs as JSON."""
    run(*_lists(6, 32))  # imports are not what is measured
    maps, masks = _lists(count, size)
    process, peak, finished = psutil.Process(), [0], threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not finished.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started, worked = time.perf_counter(), time.process_time()
    found = run(maps, masks)
    seconds, work = time.perf_counter() - started, time.process_time() - worked
    finished.set()
    watcher.join()
    if run is peers:
        found["fine_pro"] = plain_pro(maps, masks, FINE_THRESHOLDS)
    figures = {"seconds": seconds, "cpu_seconds": work, "gb": (peak[0] - before) / 1e9}
    sys.stdout.write(json.dumps({**found, **figures}) + "\n")


def _lists(count: int, size: int) -> tuple[list[NDArray], list[NDArray]]:
    maps, masks = zip(*images(count, size), strict=True)
    return list(maps), list(masks)


def measured(name: str, count: int, size: int) -> dict[str, float]:
    """`measure` in a process of its own, where the peak is its own as well."""
    show(f"{name}: {count} maps of {size} x {size}")
    command = [sys.executable, str(Path(__file__)), "--only", name, "--maps", str(count), "--size", str(size)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def large(count: int, size: int) -> None:
    """More maps than fit into memory, one after the other."""
    from anomalydiffusion_core.evaluation.metrics.pixels import StreamingPixelMetrics

    metrics, seconds = StreamingPixelMetrics(), 0.0
    for number, (values, mask) in enumerate(images(count, size)):
        started = time.perf_counter()
        metrics.update(values, mask)
        seconds += time.perf_counter() - started
        if number % 100 == 0:
            show(f"{number} of {count}")
    started = time.perf_counter()
    found = metrics.compute()
    seconds += time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    head = ["maps", *METRICS, "error at most", "seconds", "peak GB of the process"]
    row = [f"{getattr(found, name):.5f}" for name in METRICS]
    table(head, [[f"{count} x {size}^2", *row, f"{found.max_error:.1e}", f"{seconds:.1f}", f"{peak:.2f}"]])
    figures = {"maps": count, "seconds": round(seconds, 1), "peak_gb": round(peak, 3), "error_bound": found.max_error}
    sys.stdout.write(json.dumps(figures) + "\n")


def main() -> None:
    """Measure the sizes that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--maps", type=int)
    parser.add_argument("--size", type=int)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--only", choices=("ours", "peers"), help="print the measurement of one side")
    options = parser.parse_args()
    count, size = options.maps or (2000 if options.large else 83), options.size or (1024 if options.large else 900)
    if options.large:
        large(count, size)
    elif options.only:
        measure(ours if options.only == "ours" else peers, count, size)
    else:
        mine, theirs = measured("ours", count, size), measured("peers", count, size)
        costs = ("seconds", "cpu_seconds", "gb")
        rows = [
            [name, *(f"{side[key]:.6f}" for key in METRICS), *(f"{side[key]:.3f}" for key in costs)]
            for name, side in (("this extension", mine), ("scikit-learn and a plain PRO", theirs))
        ]
        rows.append(["plain PRO, 100,000 thresholds", "", "", "", f"{theirs['fine_pro']:.6f}", "", "", ""])
        table(["", *METRICS, "seconds", "CPU seconds", "GB above the inputs"], rows)
        truth = {**theirs, "pro": theirs["fine_pro"]}
        figures = {
            "speedup": round(theirs["seconds"] / mine["seconds"], 1),
            "cpu_speedup": round(theirs["cpu_seconds"] / mine["cpu_seconds"], 1),
            "memory_ratio": round(mine["gb"] / theirs["gb"], 4),
            "max_abs_error": max(abs(mine[key] - truth[key]) for key in METRICS),
            "error_bound": mine["max_error"],
        }
        sys.stdout.write(json.dumps(figures) + "\n")  # an error of 1e-6 is not 0


if __name__ == "__main__":
    main()
