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
    """Train and test one detector for each row and seed, on each generated set.

    Where a method has several sets, each repetition uses another set and other detector seeds: that of number r those
    from ``seeds[0] + r * len(seeds)`` on. Rows without pairs are repeated as often, with the same detector seeds.

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
    sets = max((len(row.sets) for row in rows), default=1) or 1
    plan = [(place, *run) for place, row in enumerate(rows) for run in _planned(row, seeds, sets, runner)]
    known = {key: run for *_, key in plan if (run := store.find(key)) is not None}
    total = len({key for _, row, _, _, key in plan if key not in known and row.trained}) * settings.steps
    comparison = Comparison(settings, tuple(seeds), reused=sum(key in known for *_, key in plan), sets=sets)
    done = 0
    for place, whole in enumerate(rows):
        own = [run[1:] for run in plan if run[0] == place]
        given = (None,) if whole.weights else tuple(seed for _, _, seed, _ in own)
        result = RowResult(whole.as_seen(settings.generated_share), given)
        result.sets = tuple(name for _, name, _, _ in own)
        result.keys = tuple(key for *_, key in own)
        for row, _, seed, key in own:
            if key in known:
                result.runs.append(known[key])
                continue

            def report(step: LocalizerStep, before: int = done, row: Row = row, seed: int = seed) -> None:
                on_step(ComparisonStep(before + step.step, total, row, seed, step))

            result.runs.append(runner.run(row, seed, key, report))
            known[key] = result.runs[-1]
            done += settings.steps * row.trained
        comparison.rows.append(result)
    comparison.seconds = time.monotonic() - started
    return comparison


def _planned(row: Row, seeds: Sequence[int], sets: int, runner: Runner) -> list[tuple[Row, str, int, str]]:
    """Each run of a row: the row on its set, the name of the set, the seed and the key."""
    if row.weights:
        return [(row, "", seeds[0], runner.key(row, seeds[0]))]
    found = []
    for number in range(sets):
        own = row.repetition(number)
        name = own.pairs.digest[:16] if own.pairs else str(number)
        for seed in seeds:
            found.append((own, name, seed + number * len(seeds), runner.key(own, seed + number * len(seeds))))
    return found
