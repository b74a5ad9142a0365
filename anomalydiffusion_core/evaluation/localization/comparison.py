"""Do generated pairs help? The same detector trained on different pairs, on several seeds, tested on real defects."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from .batches import Pairs
from .curves import DetectionCurves, detection_curves
from .evaluation import score_batches
from .network import DiscriminativeSubNetwork
from .rows import BOTH, FEW_REAL, OURS, WITH, WITHOUT, Row, rows_of
from .selection import AUTHORS, LAST_STEP, VALIDATION, selection_score, split_places, split_validation
from .settings import LocalizerSettings
from .sources import (
    HeldOutPictures,
    NormalSource,
    PairSource,
    file_digest,
    held_out_tensors,
    normal_tensors,
    pair_tensors,
)
from .store import Run, RunStore, content_key
from .summary import Comparison, ComparisonStep
from .training import Choose, LocalizerStep, LocalizerTraining
from .weights import load_network

__all__ = ["WITH", "WITHOUT", "Comparison", "ComparisonStep", "Pictures", "compare", "compare_rows"]

RECIPE = 2
"""Part of every content key: raise it when the same settings come to other numbers."""
SAVE_SECONDS = 60.0
TEST_BATCH = 8


@dataclass(frozen=True)
class Pictures:
    """What the rows of a table share: the few real pairs, the good pictures and the test set."""

    few_real: PairSource
    normals: NormalSource
    tests: HeldOutPictures


def compare(
    few_real: Pairs,
    generated: Pairs,
    normals: Tensor,
    test_images: Tensor,
    test_masks: Tensor,
    settings: LocalizerSettings,
    seeds: Sequence[int] = (0, 1, 2),
    on_step: Callable[[ComparisonStep], None] | None = None,
    device: torch.device | str = "cpu",
) -> Comparison:
    """Train without and with the generated pairs (same net, budget, augmentation and seeds) and test both.

    "without" draws its defects from `few_real`; "with" draws `settings.generated_share` of them from `generated`.

    Args:
        few_real, generated, normals: see `train_localizer`; `seeds` replace the seed of the settings.
        test_images, test_masks: see `evaluate_localizer`, resized to `settings.size`; used after the training only,
            unless `settings.selection` is the authors' rule.
        on_step: called after each training step; an exception in it passes on.

    Raises:
        InputError: no real or no generated pairs, no seeds, or what `train_localizer` refuses.
    """
    for label, pairs in (("few real pairs", few_real), ("generated pairs", generated)):
        if not any(len(images) for images, _ in pairs.values()):
            raise InputError(f"{label}: none. The comparison needs both kinds.")
    pictures = Pictures(pair_tensors(few_real), normal_tensors(normals), held_out_tensors(test_images, test_masks))
    rows = rows_of((FEW_REAL, BOTH), {OURS: pair_tensors(generated)})
    return compare_rows(rows, pictures, settings, seeds, range(pictures.tests.count), None, on_step, None, device)


def compare_rows(
    rows: Sequence[Row],
    pictures: Pictures,
    settings: LocalizerSettings,
    seeds: Sequence[int],
    shown: Sequence[int] = (),
    store: RunStore | None = None,
    on_step: Callable[[ComparisonStep], None] | None = None,
    on_test: Callable[[], None] | None = None,
    device: torch.device | str = "cpu",
) -> Comparison:
    """Train and test one detector for each row and seed.

    Args:
        settings: the same for all; `seeds` replace its seed.
        shown: test pictures whose score maps are kept.
        store: finished runs are taken from it, unfinished ones go on from their state there; both are kept in it.
        on_step, on_test: called after each training step and each batch of test pictures; an exception in them (an
            interrupt) passes on after the state was saved.

    Raises:
        InputError: no seeds, no real pairs for a row that needs them, or what training refuses.
    """
    settings.check()
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds: {list(seeds)}. Give at least one, three for a spread, each once.")
    if any(row.real for row in rows) and not pictures.few_real.count:
        raise InputError("few real pairs: none. Choose a split that leaves training pairs, or other training sets.")
    started = time.monotonic()
    work = _Work(pictures, settings, tuple(shown), store, on_test, torch.device(device))
    plan = [(row, seed) for row in rows for seed in (seeds[:1] if row.weights else seeds)]
    keys = [work.key(row, seed) for row, seed in plan]
    known = [None if store is None else store.find(key) for key in keys]
    missing = sum(run is None and row.weights is None for run, (row, _) in zip(known, plan, strict=True))
    comparison = Comparison(settings, tuple(seeds), reused=sum(run is not None for run in known))
    for row in rows:
        shared = len(row.pairs.files & pictures.tests.files) if row.pairs else 0
        if shared:
            comparison.notices.append(f"'{row.label}' was trained on {shared} of the test pictures: it proves nothing")
    done = 0
    for (row, seed), key, run in zip(plan, keys, known, strict=True):
        if run is None:
            report = _reporter(on_step, done * settings.steps, missing * settings.steps, row.key, seed)
            run = work.run(row, seed, key, report)
            done += row.weights is None
        _enter(comparison, row.as_seen(settings.generated_share), run)
    comparison.seconds = time.monotonic() - started
    return comparison


def _enter(comparison: Comparison, row: Row, run: Run) -> None:
    comparison.labels[row.key], comparison.methods[row.key] = row.label, row.method
    comparison.makers[row.key] = row.maker
    comparison.results.setdefault(row.key, []).append(run.result)
    comparison.best_steps.setdefault(row.key, []).append(run.best_step)
    comparison.run_seconds.setdefault(row.key, []).append(run.seconds)
    comparison.score_maps.setdefault(row.key, run.maps)
    comparison.losses.setdefault(row.key, run.losses)
    comparison.curves.setdefault(row.key, run.curves)


class _Work:
    """Runs one row with one seed after the other, and reads pictures as late as possible."""

    def __init__(
        self,
        pictures: Pictures,
        settings: LocalizerSettings,
        shown: tuple[int, ...],
        store: RunStore | None,
        on_test: Callable[[], None] | None,
        device: torch.device,
    ) -> None:
        self.pictures, self.settings, self.shown, self.store = pictures, settings, shown, store
        self.on_test, self.device = on_test, device
        self._few_real: Pairs | None = None
        self._normals: Tensor | None = None
        self._generated: tuple[PairSource, Pairs] | None = None

    def key(self, row: Row, seed: int) -> str:
        """Changes with all that the run depends on, and with nothing else."""
        settings = asdict(replace(self.settings, seed=seed))
        if not (row.real and row.pairs):
            del settings["generated_share"]
        if self.settings.selection == LAST_STEP:
            del settings["check_every"]
        if self.settings.selection != VALIDATION:
            del settings["validation_share"]
        parts = self.pictures
        content: dict[str, Any] = {
            "recipe": RECIPE,
            "shown": self.shown,
            "tests": parts.tests.digest,
            "device": self.device.type,
        }
        if row.weights is not None:
            return content_key({**content, "size": self.settings.size, "weights": file_digest(row.weights)})
        validated = self.settings.selection == VALIDATION
        content |= {
            "settings": settings,
            "trained on": [row.real, row.pairs is not None],
            "few real": parts.few_real.digest if row.real or validated else None,
            "pairs": row.pairs.digest if row.pairs else None,
            "normals": parts.normals.digest,
        }
        return content_key(content)

    def run(self, row: Row, seed: int, key: str, on_step: Callable[[LocalizerStep], None]) -> Run:
        """Train (or go on, or load given weights) and test."""
        started = time.monotonic()
        losses: list[float] = []
        if row.weights is not None:
            network, step = load_network(row.weights).to(self.device), 0
        else:
            network, losses, step = self._train(row, seed, key, on_step)
        tests = self.pictures.tests
        size = self.settings.size
        scored = score_batches(network, tests.batches(size, TEST_BATCH), tests.count, self.on_test)
        maps = [torch.from_numpy(scored.maps[place].copy()) for place in self.shown]
        run = Run(
            scored.measure(),
            torch.stack(maps) if maps else torch.zeros(0, size, size),
            losses,
            detection_curves(scored.maps, scored.masks) if self.store else DetectionCurves(),
            step,
            time.monotonic() - started,
        )
        if self.store is not None:
            self.store.save(key, run, {"row": row.label, "seed": seed, "settings": asdict(self.settings)})
        return run

    def _train(
        self, row: Row, seed: int, key: str, on_step: Callable[[LocalizerStep], None]
    ) -> tuple[DiscriminativeSubNetwork, list[float], int]:
        settings = replace(self.settings, seed=seed)
        real, normals, generated, choose = self._sets(row, settings)
        training = LocalizerTraining(real, normals, settings, generated, self.device)
        state = None if self.store is None else self.store.state_path(key)
        if state is not None and state.is_file():
            training.load(state)
        saved = time.monotonic()

        def report(step: LocalizerStep) -> None:
            nonlocal saved
            if state is not None and time.monotonic() - saved > SAVE_SECONDS:
                training.save(state)
                saved = time.monotonic()
            on_step(step)

        try:
            network = training.run(report, choose)
        except BaseException:
            if state is not None and training.step:
                with suppress(OSError):  # the interrupt is what the user has to see
                    training.save(state)
            raise
        return network, training.losses, training.best_step

    def _sets(self, row: Row, settings: LocalizerSettings) -> tuple[Pairs, Tensor, Pairs, Choose | None]:
        """Real pairs, normals and generated pairs to train on, and how to choose the step."""
        size = settings.size
        validated = settings.selection == VALIDATION
        if self._normals is None:
            self._normals = self.pictures.normals.read(size)
        if self._few_real is None and (row.real or validated):
            self._few_real = self.pictures.few_real.read(size)
        if row.pairs is not None and (self._generated is None or self._generated[0] is not row.pairs):
            self._generated = None  # only one method's pairs at a time
            self._generated = (row.pairs, row.pairs.read(size))
        real = (self._few_real or {}) if row.real else {}
        generated = self._generated[1] if row.pairs is not None and self._generated is not None else {}
        normals = self._normals
        if settings.selection == LAST_STEP:
            return real, normals, generated, None
        if settings.selection == AUTHORS:
            return real, normals, generated, self._chooser(self.pictures.tests, size)
        # The same few real pairs rate every row of one seed, trained on real pairs or not.
        kept_real, held = split_validation(self._few_real or {}, settings.validation_share, settings.seed)
        kept, aside = split_places(len(normals), settings.validation_share, settings.seed)
        images = torch.cat([*(pair[0] for pair in held.values()), normals[aside]])
        masks = torch.cat([*(pair[1] for pair in held.values()), torch.zeros(len(aside), 1, size, size)])
        chooser = self._chooser(held_out_tensors(images, masks), size)
        return kept_real if row.real else {}, normals[kept], generated, chooser

    def _chooser(self, tests: HeldOutPictures, size: int) -> Choose:
        def choose(network: DiscriminativeSubNetwork) -> float:
            batches = tests.batches(size, TEST_BATCH)
            return selection_score(score_batches(network, batches, tests.count, self.on_test).measure())

        return choose


def _reporter(
    on_step: Callable[[ComparisonStep], None] | None, done: int, total: int, name: str, seed: int
) -> Callable[[LocalizerStep], None]:
    def report(step: LocalizerStep) -> None:
        if on_step is not None:
            on_step(ComparisonStep(done + step.step, total, name, seed, step.loss, step.network))

    return report
