"""Speed, memory and error of the pixel metrics, against scikit-learn and a plain PRO on the same score maps.

    python benchmarks/metrics.py            83 maps of 900 x 900, both in processes of their own
    python benchmarks/metrics.py --large    2,000 maps of 1024 x 1024, rendered one by one, memory of the whole process
    python benchmarks/metrics.py --maps 10 --size 300    a quick look

A third of the images are normal, the others have one to three discs of defect, in all about three per cent of the
pixels; scores are float32 probabilities, as detectors give them. Peak memory is that of the process above what it held
before the metrics began. Both sides compute with one thread, and the speedup is that of CPU seconds, which tell more
than seconds where other processes run; ours is the median of five rounds, since one takes less than a second. A PRO
at 100 thresholds is itself off by about a thousandth, so the error of PRO is taken against the same plain PRO at
100,000 thresholds, which is not timed. The last line is JSON.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated

import numpy as np
import psutil
import typer
from common import finish, in_own_process, peak_while, show, table
from numpy.typing import NDArray

METRICS = ("auroc", "ap", "f1", "pro")
PRO_THRESHOLDS = 100
FINE_THRESHOLDS = 100_000
PRO_LIMIT = 0.3
ROUNDS = 5


def images(count: int, size: int, seed: int = 0) -> Iterator[tuple[NDArray, NDArray]]:
    """Score maps float32 in (0,1) and masks bool, [size,size] each."""
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        mask = np.zeros((size, size), dtype=bool)
        for _ in range(int(rng.integers(1, 4)) if number % 3 else 0):
            top, left, radius = rng.uniform(0.15, 0.85), rng.uniform(0.15, 0.85), rng.uniform(0.05, 0.12)
            mask |= (y - top) ** 2 + (x - left) ** 2 < radius**2
        logits = rng.standard_normal((size, size), dtype=np.float32) * 2 - 6 + np.float32(5) * mask
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
    import torch

    torch.set_num_threads(1)
    run(*_lists(6, 32))  # imports are not what is measured
    maps, masks = _lists(count, size)
    found: dict[str, float] = {}
    times: list[tuple[float, float]] = []

    def once() -> None:
        started, worked = time.perf_counter(), time.process_time()
        found.update(run(maps, masks))
        times.append((time.perf_counter() - started, time.process_time() - worked))

    before = psutil.Process().memory_info().rss
    found["gb"] = (peak_while(once) - before) / 1e9
    for _ in range(ROUNDS - 1 if run is ours else 0):
        once()
    found["seconds"], found["cpu_seconds"] = (statistics.median(part) for part in zip(*times, strict=True))
    if run is peers:
        found["fine_pro"] = plain_pro(maps, masks, FINE_THRESHOLDS)
    finish(found, None)


def _lists(count: int, size: int) -> tuple[list[NDArray], list[NDArray]]:
    maps, masks = zip(*images(count, size), strict=True)
    return list(maps), list(masks)


def streamed(count: int, size: int) -> None:
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
    finish({"maps": count, "seconds": seconds, "peak_gb": peak, "error_bound": found.max_error}, None)


def main(
    maps: int | None = None,
    size: int | None = None,
    large: bool = False,
    only: Annotated[str, typer.Option(help="Print the measurement of one side: ours or peers.")] = "",
) -> None:
    """Measure the sizes that the command line names."""
    count, side = maps or (2000 if large else 83), size or (1024 if large else 900)
    if large:
        streamed(count, side)
    elif only:
        measure({"ours": ours, "peers": peers}[only], count, side)
    else:
        show(f"{count} maps of {side} x {side}")
        mine, theirs = (in_own_process(__file__, only=name, maps=count, size=side) for name in ("ours", "peers"))
        costs = ("seconds", "cpu_seconds", "gb")
        rows = [
            [name, *(f"{side[key]:.6f}" for key in METRICS), *(f"{side[key]:.3f}" for key in costs)]
            for name, side in (("this extension", mine), ("scikit-learn and a plain PRO", theirs))
        ]
        rows.append(["plain PRO, 100,000 thresholds", "", "", "", f"{theirs['fine_pro']:.6f}", "", "", ""])
        table(["", *METRICS, "seconds", "CPU seconds", "GB above the inputs"], rows)
        truth = {**theirs, "pro": theirs["fine_pro"]}
        figures = {
            "speedup": round(theirs["cpu_seconds"] / mine["cpu_seconds"], 1),
            "wall_speedup": round(theirs["seconds"] / mine["seconds"], 1),
            "memory_ratio": round(mine["gb"] / theirs["gb"], 4),
            "max_abs_error": max(abs(mine[key] - truth[key]) for key in METRICS),
            "error_bound": mine["max_error"],
        }
        finish(figures, None)  # an error of 1e-6 is not 0


if __name__ == "__main__":
    typer.run(main)
