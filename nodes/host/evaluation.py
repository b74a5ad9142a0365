"""The adapter to ComfyUI for evaluations: stored weights and runs, and progress with a preview and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import folder_paths
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ...anomalydiffusion_core.errors import InputError
from ...anomalydiffusion_core.evaluation.localization.evaluation import score_pictures
from ...anomalydiffusion_core.evaluation.localization.summary import ComparisonStep
from ...anomalydiffusion_core.figures import contact_sheet, heat_map
from . import folders
from .progress import Progress

RUNS = "anomalydiffusion/evaluation_runs"
"""Folder of finished and unfinished runs inside the output folder."""
PREVIEW_SECONDS = 5.0


def runs_folder() -> Path:
    """Where runs are kept."""
    return folders.output_path(RUNS)


def weights_file(text: str) -> Path:
    """A file of weights: absolute, or relative to models/anomalydiffusion. Raises InputError when it is not there."""
    root = Path(folder_paths.get_folder_paths(folders.BUNDLES)[0])
    given = Path(text.strip("\"'")).expanduser()
    path = given if given.is_absolute() else root / text.strip("\"'").replace("\\", "/")
    if not path.is_file():
        raise InputError(f"weights: {path} does not exist. Give a file, absolute or relative to {root}.")
    return path


def show_text(text: str) -> None:
    """A line of progress on the node that is running. Without a server (tests) there is nobody to show it to."""
    instance = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    context = get_executing_context()
    if instance is not None and context is not None:
        instance.send_progress_text(text, context.node_id)


def time_text(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class ComparisonProgress:
    """The bar, the time left and the heat map of one test picture while detectors are trained.

    Every step and every batch of test pictures looks whether the user interrupted. The picture chooses nothing: it
    is only shown.
    """

    def __init__(self, picture: Callable[[], tuple[Tensor, Tensor]], label: Callable[[str], str]) -> None:
        """`picture`: a test picture [3,s,s] and its mask [1,s,s]; `label`: key of a row -> its name."""
        self._picture, self._label = picture, label
        self._bar = Progress(1)
        self._started = time.monotonic()
        self._first: int | None = None
        self._shown = float("-inf")

    def on_step(self, step: ComparisonStep) -> None:
        """After each training step."""
        self._first = step.done - 1 if self._first is None else self._first
        self._bar.total = step.total
        now = time.monotonic()
        if now - self._shown < PREVIEW_SECONDS and step.done < step.total:
            self._bar.at(step.done)
            return
        self._shown = now
        left = (now - self._started) / (step.done - self._first) * (step.total - step.done)
        text = f"{self._label(step.training_set)}, seed {step.seed}: step {step.done} of {step.total}"
        show_text(f"{text}, loss {step.loss:.4f}, about {time_text(left)} left")
        self._bar.at(step.done, self._preview(step, f"about {time_text(left)} left"))

    def on_test(self) -> None:
        """After each batch of test pictures."""
        self._bar.at(self._bar.done)

    def _preview(self, step: ComparisonStep, left: str) -> Tensor | None:
        if step.network is None:
            return None
        image, mask = self._picture()
        score = score_pictures(step.network, image[None])[0]
        titles = [self._label(step.training_set), f"{step.done} of {step.total}", left]
        return contact_sheet([[image, mask, heat_map(score, image)]], titles, cell=192)
