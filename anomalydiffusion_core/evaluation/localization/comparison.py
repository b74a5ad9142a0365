"""Do generated pairs help? The same detector trained on different pairs, on several seeds, tested on real defects."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ...errors import InputError
from ..settings import LocalizerSettings
from .rows import Row
from .runs import Runner, RunStore, SharedData
from .summary import Comparison, RowResult
from .training import LocalizerStep


@dataclass(frozen=True)
class ComparisonStep:
    """Progress of a comparison: `done` of `total` training steps of all runs together, and where it is."""

    done: int
    total: int
    row: Row
    seed: int
    step: LocalizerStep


def compare_rows(
    rows: Sequence[Row],
    data: SharedData,
    settings: LocalizerSettings,
    seeds: Sequence[int],
    store: RunStore,
    shown: Sequence[int] = (),
    on_step: Callable[[ComparisonStep], None] = lambda step: None,
    on_test: Callable[[], None] = lambda: None,
    device: torch.device | str = "cpu",
) -> Comparison:
    """Train and test one detector for each row and seed.

    Args:
        settings: the same for all; `seeds` replace its seed.
        store: finished runs are taken from it, unfinished ones resume from their state there; both are kept in it.
        shown: test images whose score maps are kept.
        on_step, on_test: called after each training step and each batch of test images; an exception in them (an
            interrupt) passes on after the state was saved.

    Raises:
        InputError: no seeds, no real pairs for a row that requires them, or what training refuses.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds: {list(seeds)}. Give at least one, three for a spread, each once.")
    if any(row.real for row in rows) and not data.few_real.count:
        raise InputError("few real pairs: none. Choose a split that leaves training pairs, or other training sets.")
    started = time.monotonic()
    runner = Runner(data, settings, tuple(shown), store, on_test, torch.device(device))
    plan = [(row, seed, runner.key(row, seed)) for row in rows for seed in (seeds[:1] if row.weights else seeds)]
    known = {key: run for _, _, key in plan if (run := store.find(key)) is not None}
    total = sum(key not in known and row.weights is None for row, _, key in plan) * settings.steps
    comparison = Comparison(settings, tuple(seeds), reused=sum(key in known for *_, key in plan))
    done = 0
    for row in rows:
        shared = len(row.pairs.files & data.tests.files) if row.pairs else 0
        if shared:
            comparison.notices.append(f"'{row.label}' was trained on {shared} of the test images: it proves nothing")
        given = (None,) if row.weights else tuple(seeds)
        result = RowResult(row.as_seen(settings.generated_share), given)
        for seed, key in ((seed, key) for planned, seed, key in plan if planned is row):
            if key in known:
                result.runs.append(known[key])
                continue

            def report(step: LocalizerStep, before: int = done, row: Row = row, seed: int = seed) -> None:
                on_step(ComparisonStep(before + step.step, total, row, seed, step))

            result.runs.append(runner.run(row, seed, key, report))
            done += settings.steps * (row.weights is None)
        comparison.rows.append(result)
    comparison.seconds = time.monotonic() - started
    return comparison
