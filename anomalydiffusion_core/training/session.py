"""One training from its plan to a file, the same for nodes and commands.

Identity: what decides the result is hashed into a content key. A file with that key is loaded instead of trained
again; a stored state of the same training, whatever its number of steps, is resumed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.images import write_image
from ..errors import TrainingError
from ..figures import plot_curve
from ..files import check_writable, content_key, write_json
from ..plain_json import finite_values
from ..progress import MakeProgress
from ..store import Store, save_numbered
from .bank import OnPrepare
from .memory import check_memory, estimate_memory
from .run import Learned, Trainer
from .settings import NonFiniteLossError, Pause, TrainingChoices
from .state import StateFile
from .watch import Watch

logger = logging.getLogger(__name__)

RECIPE = 2
"""Part of the content key: raise it when the same settings train to something else."""


@dataclass(frozen=True)
class TrainingPlan:
    """What is to be trained.

    name: of the file, without number and suffix. title: for people. content: everything that decides the result, as
    plain values; ``content["settings"]`` holds the settings. metadata: what is written with the result beside them.
    images: how many are encoded before the first step. make: encodes them and returns the trainer. load: reads a file
    of the same training. before, after: called around the training, with what was learned; return more metadata.
    """

    name: str
    title: str
    content: dict[str, Any]
    metadata: dict[str, Any]
    images: int
    make: Callable[[OnPrepare], Trainer]
    load: Callable[[Path], Learned]
    before: Callable[[], dict[str, Any]] = dict
    after: Callable[[Learned], dict[str, Any]] = field(default=lambda _: {})

    @property
    def steps(self) -> int:
        """Steps asked for."""
        return int(self.content["settings"]["steps"])

    @property
    def key(self) -> str:
        """The same for the same result."""
        return content_key(RECIPE, self.content)

    @property
    def identity(self) -> str:
        """The same for the same training, whatever its number of steps and its early stop: more steps continue it."""
        settings = {name: value for name, value in self.content["settings"].items() if name != "steps"}
        settings["options"] = {k: v for k, v in settings["options"].items() if k != "early_stop"}
        return content_key(RECIPE, {**self.content, "settings": settings})


@dataclass(frozen=True)
class Trained:
    """What a training left. reused: it was read from a file. resumed, memory: what to tell, "" for nothing."""

    learned: Any
    path: Path
    title: str
    reused: bool = False
    resumed: str = ""
    memory: str = ""
    seconds: float = 0.0

    @property
    def losses(self) -> list[float]:
        """The loss of every step."""
        return [float(loss) for loss in self.learned.metadata.get("losses", ())]

    @property
    def stopped_at(self) -> int | None:
        """The step after which the training was stopped, None when it is finished."""
        found: int | None = self.learned.metadata.get("stopped_at_step")
        return found

    def loss_means(self) -> tuple[float, float, int]:
        """Mean loss of the first and of the last tenth of the steps, and how many steps that is."""
        part = max(len(self.losses) // 10, 1)
        first, last = (sum(some) / max(len(some), 1) for some in (self.losses[:part], self.losses[-part:]))
        return first, last, part

    def report(self) -> str:
        """What was trained, in two sentences or three."""
        what = "the same training was done before, loaded" if self.reused else "trained and saved"
        first, last, part = self.loss_means()
        parts = [f"{self.path.name}: {', '.join(filter(None, (self.resumed, what)))}."]
        if getattr(self.learned, "types", ()):
            parts.append(f"Types: {', '.join(self.learned.types)}.")
        parts.append(
            f"{len(self.losses)} steps, loss {first:.4f} at the start and {last:.4f} at the end (means over {part} "
            "steps)."
        )
        if self.memory:
            parts.append(f"Estimated before: {self.memory}.")
        return " ".join(parts)

    def write_summary(self) -> dict[str, Any]:
        """Write the loss curve (.png) and the figures (.json) beside a new file, and return the figures."""
        metadata, (first, last, _) = self.learned.metadata, self.loss_means()
        figures = {
            "bundle": self.path.name,
            "types": list(getattr(self.learned, "types", ())),
            "steps": len(self.losses),
            "steps_wanted": metadata["settings"]["steps"],
            "stopped_at_step": self.stopped_at,
            "loss_first_tenth": round(first, 6) if self.losses else None,
            "loss_last_tenth": round(last, 6) if self.losses else None,
            "seconds": round(self.seconds, 1),
            **{name: value for name, value in metadata.items() if name not in ("losses", "stopped_at_step")},
        }
        # Also beside a file that was found: the process that wrote it may have been killed before this.
        image, summary = self.path.with_suffix(".png"), self.path.with_suffix(".json")
        if not (image.exists() and summary.exists()):
            write_image(image, plot_curve(self.losses, self.title))
            write_json(summary, finite_values(figures))
        return figures


def run_training(
    plan: TrainingPlan,
    store: Store,
    make_progress: MakeProgress,
    free_memory: Callable[[], int],
    choices: TrainingChoices | None = None,
) -> Trained:
    """Train and save, or load what a training of the same content saved: a host may ask for the same at any time.

    Whatever ends a training before its time, what was learned by then is saved as a file that says so, and its state
    is kept; run again to resume. free_memory: bytes that are free where the model computes. Raises InputError for a
    bad name and for a training that cannot fit into memory, both before the first step, and TrainingError when a loss
    is not finite. StopTraining raised by the progress ends quietly with what was learned.
    """
    choices = choices or TrainingChoices()
    target = store.new_path(plan.name)  # a bad name should fail before the training, not after it
    state = StateFile(store.state_path(plan.identity), plan.identity)
    found = store.find(plan.key)
    if found is not None:
        if not choices.keep_state:
            state.remove()  # left there when the process was killed just after it had saved its result
        return Trained(plan.load(found), found, plan.title, reused=True)
    check_writable(target.parent, "name")
    started = time.monotonic()
    if not choices.resume:
        state.remove()
    before = plan.before()
    watch = Watch(make_progress(plan.images + plan.steps), plan.title, plan.images, choices.preview_steps)
    try:
        trainer = watch.trainer = plan.make(watch.on_prepare)
        estimate = estimate_memory(trainer.loop)
        logger.info(estimate.text())
        check_memory(estimate, free_memory())
        learned, path = _train(plan, trainer, watch, choices, state, store, before)
        resumed = trainer.resumed
        if choices.keep_state:
            state.save_if_possible(trainer.loop)
        elif trainer.loop.finished:
            state.remove()
    finally:
        watch.trainer = None
    return Trained(learned, path, plan.title, False, resumed, estimate.text(), time.monotonic() - started)


def _train(
    plan: TrainingPlan,
    trainer: Trainer,
    watch: Watch,
    choices: TrainingChoices,
    state: StateFile,
    store: Store,
    before: dict[str, Any],
) -> tuple[Learned, Path]:
    def save(learned: Learned, **more: Any) -> Path:
        learned.metadata.update(plan.metadata, **before, **more)
        path = save_numbered(store, plan.name, learned.to_bytes())
        logger.info("saved %s", path)
        return path

    pauses = [Pause(choices.preview_every, watch.on_preview)]
    try:
        learned: Learned = trainer.run(watch.on_step, pauses=pauses, state=state, save_every=choices.save_every).bundle
    except NonFiniteLossError as error:
        path = save(error.result.bundle, stopped_at_step=error.step)
        raise TrainingError(f"{error} The state before that step is saved as {path.name}.") from error
    except BaseException as error:
        if trainer.loop.step:
            path = save(trainer.result().bundle, stopped_at_step=trainer.loop.step, stopped_by=type(error).__name__)
            logger.info("training stopped after step %d: %s; run again to resume", trainer.loop.step, path)
        raise
    if not trainer.loop.finished:
        return learned, save(learned, stopped_at_step=trainer.loop.step)
    try:
        learned.metadata.update(plan.after(learned))
    finally:
        # Whatever happens while the result is measured, it is not lost.
        path = save(learned, content_key=plan.key)
    return learned, path
