"""One run of a table: a network trained on one row with one seed, tested, and kept on disk so as not to be made twice.

`<root>/<key>/run.json` and `maps.npy` exist once a run is finished, `state.pt` while it is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from ...files import content_key, file_digest, replacing, write_json
from ...plain_json import read_json
from ..settings import AUTHORS, LAST_STEP, VALIDATION, LocalizerSettings
from .curves import DetectionCurves, detection_curves
from .detectors import Detector, detector_maps
from .network import DiscriminativeSubNetwork, load_network
from .rows import Row
from .sources import HeldOutImages, NormalSource, PairSource, held_out_tensors
from .testing import METRICS, LocalizationResult, ScoredImages, score_tests, score_tests_tiled, selection_score
from .tiles import normal_windows, pair_windows
from .training import Choose, LocalizerStep, LocalizerTraining, Pairs

RECIPE = 3
"""Part of every content key: raise it when the same settings give other numbers."""
SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class SharedData:
    """What the rows of a table share: the few real pairs, the normal images and the test set."""

    few_real: PairSource
    normals: NormalSource
    tests: HeldOutImages


@dataclass(frozen=True)
class Run:
    """One network, trained and tested.

    Attributes:
        maps: score maps [K,H,W] of the images that are shown.
        losses: of each step, empty where nothing was trained.
        best_step: the step that was kept.
        seconds: wall time of training and testing.
    """

    result: LocalizationResult
    maps: Tensor
    losses: list[float] = field(default_factory=list)
    curves: DetectionCurves = field(default_factory=DetectionCurves)
    best_step: int = 0
    seconds: float = 0.0


class RunStore:
    """Runs below one folder. A file is written whole or not at all; a finished run is never written again."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def state_path(self, key: str) -> Path:
        """Where the state of the unfinished run is kept."""
        return self.root / key / "state.pt"

    def find(self, key: str) -> Run | None:
        """The finished run, None where there is none. Raises InputError for a damaged one."""
        path = self.root / key / "run.json"
        if not path.is_file():
            return None
        try:
            stored = read_json(path, "stored run")
            values = {name: stored["result"][name] for name in METRICS}
            result = LocalizationResult(**{n: float("nan") if v is None else v for n, v in values.items()})
            curves = DetectionCurves(**stored["curves"])
            maps = torch.from_numpy(np.load(path.with_name("maps.npy"), allow_pickle=False))
            return Run(result, maps, stored["losses"], curves, stored["best_step"], stored["seconds"])
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, OSError) as error:
            raise InputError(f"stored run: {path.parent} is damaged ({error}). Remove this folder.") from error

    def save(self, key: str, run: Run, about: Mapping[str, Any]) -> None:
        """Keep a finished run; `about` (plain values) is for people who open the file."""
        folder = self.root / key
        with replacing(folder / "maps.npy") as partial, partial.open("wb") as stream:
            np.save(stream, run.maps.numpy())
        stored = {
            "about": dict(about),
            "result": run.result.as_dict(),
            "best_step": run.best_step,
            "seconds": run.seconds,
            "curves": asdict(run.curves),
            "losses": run.losses,
        }
        write_json(folder / "run.json", stored)
        self.state_path(key).unlink(missing_ok=True)


class Runner:
    """Trains and tests one row with one seed after the other, and reads images as late as possible."""

    def __init__(
        self,
        data: SharedData,
        settings: LocalizerSettings,
        shown: tuple[int, ...],
        store: RunStore,
        on_test: Callable[[], None],
        device: torch.device,
    ) -> None:
        self.data, self.settings, self.shown, self.store = data, settings, shown, store
        self.on_test, self.device = on_test, device
        self._few_real: Pairs | None = None
        self._normals: Tensor | None = None
        self._generated: tuple[PairSource, Pairs] | None = None

    def key(self, row: Row, seed: int) -> str:
        """Changes with all that the run depends on, and with nothing else."""
        settings = asdict(replace(self.settings, seed=seed))
        if not (row.real and row.pairs):
            del settings["generated_share"]
        if not self.settings.tiled:
            del settings["view"], settings["tile_scale"]
        if self.settings.selection == LAST_STEP:
            del settings["check_every"]
        if self.settings.selection != VALIDATION:
            del settings["validation_share"]
        data = self.data
        content: dict[str, Any] = {
            "recipe": RECIPE,
            "shown": self.shown,
            "tests": data.tests.digest,
            "device": self.device.type,
        }
        if row.weights is not None:
            seen = [self.settings.view, self.settings.tile_scale] if self.settings.tiled else []
            weights = {"size": self.settings.size, "weights": file_digest(row.weights)}
            return content_key({**content, **weights, **({"seen": seen} if seen else {})})
        if row.detector is not None:
            own = {"detector": dict(row.detector.identity), "size": self.settings.size, "seed": seed}
            return content_key({**content, **own, "normals": data.normals.digest})
        validated = self.settings.selection == VALIDATION
        content |= {
            "settings": settings,
            "trained on": [row.real, row.pairs is not None],
            "few real": data.few_real.digest if row.real or validated else None,
            "pairs": row.pairs.digest if row.pairs else None,
            "normals": data.normals.digest,
        }
        return content_key(content)

    def run(self, row: Row, seed: int, key: str, on_step: Callable[[LocalizerStep], None]) -> Run:
        """Train (or resume, or load given weights) and test."""
        started = time.monotonic()
        losses: list[float] = []
        step = 0
        if row.detector is not None:
            scored = self._detected(row.detector, seed)
        elif row.weights is not None:
            scored = self._score(load_network(row.weights).to(self.device), self.data.tests)
        else:
            network, losses, step = self._train(row, seed, key, on_step)
            scored = self._score(network, self.data.tests)
        run = Run(
            scored.measure(),
            scored.shown(self.shown),
            losses,
            detection_curves(scored.maps, scored.masks),
            step,
            time.monotonic() - started,
        )
        self.store.save(key, run, {"row": row.label, "seed": seed, "settings": asdict(self.settings)})
        return run

    def _detected(self, detector: Detector, seed: int) -> ScoredImages:
        if self.settings.tiled:
            raise InputError("view: detectors of other libraries see whole images. Choose whole images.")
        size, where = self.settings.size, self.device.type
        return detector_maps(
            detector, self.data.normals, self.data.tests, size, seed, self.store.root, where, self.on_test
        )

    def _train(
        self, row: Row, seed: int, key: str, on_step: Callable[[LocalizerStep], None]
    ) -> tuple[DiscriminativeSubNetwork, list[float], int]:
        settings = replace(self.settings, seed=seed)
        real, normals, generated, choose = self._sets(row, settings)
        training = LocalizerTraining(real, normals, settings, generated, self.device)
        state = self.store.state_path(key)
        if state.is_file():
            training.load(state)
        saved = time.monotonic()

        def report(step: LocalizerStep) -> None:
            nonlocal saved
            if time.monotonic() - saved > SAVE_SECONDS:
                training.save(state)
                saved = time.monotonic()
            on_step(step)

        try:
            network = training.run(report, choose)
        except BaseException:
            if training.step:
                with suppress(OSError):  # the interrupt is what the user must see
                    training.save(state)
            raise
        return network, training.losses, training.best_step

    def _sets(self, row: Row, settings: LocalizerSettings) -> tuple[Pairs, Tensor, Pairs, Choose | None]:
        """Real pairs, normals and generated pairs to train on, and what rates the steps."""
        size = settings.size
        validated = settings.selection == VALIDATION
        if self._normals is None:
            self._normals = (
                normal_windows(self.data.normals, settings) if settings.tiled else self.data.normals.read(size)
            )
        if self._few_real is None and (row.real or validated):
            self._few_real = self._pairs(self.data.few_real)
        if row.pairs is not None and (self._generated is None or self._generated[0] is not row.pairs):
            self._generated = None  # only one method's pairs at a time
            self._generated = (row.pairs, self._pairs(row.pairs))
        real = (self._few_real or {}) if row.real else {}
        generated = self._generated[1] if row.pairs is not None and self._generated is not None else {}
        normals = self._normals
        if settings.selection == LAST_STEP:
            return real, normals, generated, None
        if settings.selection == AUTHORS:
            return real, normals, generated, self._rated(lambda network: self._score(network, self.data.tests))
        # The same few real pairs rate every row of one seed, trained on real pairs or not.
        kept_real, held = split_validation(self._few_real or {}, settings.validation_share, settings.seed)
        kept, aside = split_places(len(normals), settings.validation_share, settings.seed)
        images = torch.cat([*(pair[0] for pair in held.values()), normals[aside]])
        masks = torch.cat([*(pair[1] for pair in held.values()), torch.zeros(len(aside), 1, size, size)])
        held_out = held_out_tensors(images, masks)  # squares as the network sees them, also windows
        chooser = self._rated(lambda network: score_tests(network, held_out, size, self.on_test))
        return kept_real if row.real else {}, normals[kept], generated, chooser

    def _pairs(self, source: PairSource) -> Pairs:
        return pair_windows(source, self.settings) if self.settings.tiled else source.read(self.settings.size)

    def _score(self, network: DiscriminativeSubNetwork, tests: HeldOutImages) -> ScoredImages:
        if self.settings.tiled:
            return score_tests_tiled(network, tests, self.settings, self.on_test)
        return score_tests(network, tests, self.settings.size, self.on_test)

    def _rated(self, scored: Callable[[DiscriminativeSubNetwork], ScoredImages]) -> Choose:
        return lambda network: selection_score(scored(network).measure())


def split_validation(
    pairs: Mapping[str, tuple[Tensor, Tensor]], share: float, seed: int
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, tuple[Tensor, Tensor]]]:
    """Divide pairs into (training, validation), type by type, `share` of each drawn with `seed`.

    A type with two or more pairs gives at least one and keeps at least one; a type with one keeps it.

    Raises:
        InputError: no type has two pairs.
    """
    training: dict[str, tuple[Tensor, Tensor]] = {}
    held: dict[str, tuple[Tensor, Tensor]] = {}
    for key in sorted(pairs):
        images, masks = pairs[key]
        kept, chosen = split_places(len(images), share, seed)
        training[key] = (images[kept], masks[kept])
        if len(chosen):
            held[key] = (images[chosen], masks[chosen])
    if not held:
        raise InputError(
            f"selection: a {VALIDATION} requires a defect type with two training pairs. Use '{LAST_STEP}'."
        )
    return training, held


def split_places(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices 0..count-1 divided into (kept, held), both ascending; see `split_validation`."""
    number = min(max(round(share * count), 1), count - 1) if count > 1 else 0
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[number:].sort().values, order[:number].sort().values
