"""Kills real work with signal 9 at random times, and looks at what is left: `python kill_worker.py FOLDER COUNT`.

The work runs in forked children, so that a kill costs no start of Python. Prints one line of JSON for each kill:
{"what": ..., "short": [...]} with everything that fell short.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from attacks import drafts_in, files_of
from long_training import SETTINGS, make_trainer

from anomalydiffusion_core.bundles.bundle import load_bundle
from anomalydiffusion_core.data.export import ExportSettings, PairBatch, export_batches, export_key
from anomalydiffusion_core.files import find_keyed_folder, new_numbered_folder
from anomalydiffusion_core.lines import append_lines, read_lines
from anomalydiffusion_core.options import declared
from anomalydiffusion_core.progress import Quiet
from anomalydiffusion_core.store import FolderStore, save_numbered
from anomalydiffusion_core.training.session import TrainingPlan, run_training
from anomalydiffusion_core.training.settings import TrainingChoices

PAIRS = 12


def train(folder: Path) -> None:
    """A small training with a state after every step."""
    values = {name: getattr(SETTINGS, name) for name in declared(type(SETTINGS)) if hasattr(SETTINGS, name)}
    content = {"settings": {**values, "options": {}}}
    metadata = {"settings": {"steps": SETTINGS.steps, "resolution": 64}}
    plan = TrainingPlan("bundle", "killed", content, metadata, 0, lambda _: make_trainer(), load_bundle)
    choices = TrainingChoices(save_every=1)
    run_training(plan, FolderStore(folder), Quiet, lambda: 10**12, choices)


def export(folder: Path, number: int = 0) -> None:
    """The same pairs for the same number, written once."""
    generator = torch.Generator().manual_seed(number)
    images = torch.rand(PAIRS, 3, 64, 64, generator=generator)
    masks = torch.zeros(PAIRS, 1, 64, 64)
    masks[:, :, 8:40, 8:40] = 1
    batches = [PairBatch("part/dent", images, masks, images.flip(0), [{"seed": i} for i in range(PAIRS)])]
    key = export_key(batches, ExportSettings())
    if find_keyed_folder(folder, "pairs", key) is None:
        with new_numbered_folder(folder, "pairs", key) as made:
            export_batches(made.path, batches, ExportSettings())


def save_files(folder: Path) -> None:
    """Numbered files and lines of a record, many of them."""
    store = FolderStore(folder)
    for number in range(40):
        save_numbered(store, "file", bytes([number]) * 100_000)
        append_lines(folder / "lines.jsonl", [{"number": number, "text": "x" * 1000}] * 20)


def in_child(work: Callable[[], None], after: float | None = None) -> bool:
    """Run in a child, killed ``after`` seconds; True when it ended by itself."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the work itself failed"
    return not os.WIFSIGNALED(status)


def changed_files(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    """Finished files that a kill changed or took away."""
    kept = {name: content for name, content in before.items() if not _in_work(name)}
    return [f"{name} changed" for name, content in kept.items() if after.get(name) != content]


def _in_work(name: str) -> bool:
    return name.endswith(".partial") or ".partial/" in name or ".training/" in name or name.endswith(".jsonl")


def main(folder: Path, count: int) -> None:
    """Kill the three kinds of work in turn."""
    rng = random.Random(count)
    jobs: list[Callable[[Path], None]] = [train, export, save_files]
    seconds, reference = {}, {}
    for job in jobs:
        place = folder / f"reference_{job.__name__}"
        place.mkdir()
        in_child(partial(job, place))
        started = time.monotonic()
        again = folder / f"again_{job.__name__}"
        again.mkdir()
        in_child(partial(job, again))
        seconds[job] = time.monotonic() - started
        reference[job] = files_of(place)
        assert reference[job] == files_of(again), "the work is not the same every time"
    for number in range(count):
        job, turn = jobs[number % len(jobs)], number // len(jobs)
        place = folder / f"{job.__name__}_{turn // 2}"
        place.mkdir(exist_ok=True)
        before, after = files_of(place), rng.uniform(0.05, 1.0) * seconds[job]
        in_child(partial(job, place), after)
        short = changed_files(before, files_of(place))
        for path in FolderStore(place).folder.glob("bundle_*.safetensors"):
            load_bundle(path)
        read_lines(place / "lines.jsonl")
        if turn % 2:  # after two kills the work is finished
            short += finish(job, place, reference[job])
        _tell(f"{number} {job.__name__} after {after:.2f} s", short)
    for place in folder.glob("*_[0-9]*"):
        job = next(one for one in jobs if place.name.startswith(one.__name__))
        _tell(f"{place.name} at last", finish(job, place, reference[job]))


def finish(job: Callable[[Path], None], place: Path, reference: dict[str, bytes]) -> list[str]:
    """Run the work to its end; what then differs from work that nobody killed, and what is left beside it."""
    in_child(lambda: job(place))
    found = files_of(place)
    short = [f"{name} is left" for name in drafts_in(place)]
    if job is save_files:  # which goes on, and does not resume
        return short
    short += [f"{name} is not as without a kill" for name in reference if found.get(name) != reference[name]]
    return short + [f"{name} is left" for name in found if name not in reference]


def _tell(what: str, short: list[str]) -> None:
    print(json.dumps({"what": what, "short": short}), flush=True)  # noqa: T201 - this is its answer


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
