"""What the training nodes show of a running training, and what they give back after it."""

from __future__ import annotations

import gc
import logging
import time

import comfy.model_management
from torch import Tensor

from ...anomalydiffusion_core.figures import contact_sheet, plot_curve
from ...anomalydiffusion_core.training.memory import check_memory, estimate_memory
from ...anomalydiffusion_core.training.run import Pace, Trainer
from ...anomalydiffusion_core.training.settings import StepReport
from .progress import Progress

logger = logging.getLogger(__name__)

CURVES_SHOWN = 8
TEXT_SECONDS, LOG_SECONDS = 1.0, 15.0
CELL = 256


class TrainingProgress:
    """Both phases of a training on one bar, with text, the loss curve, and preview pictures beside it."""

    def __init__(self, title: str, pictures: int, steps: int, preview_steps: int = 8) -> None:
        self.trainer: Trainer | None = None
        self._bar = Progress(pictures + steps)
        self._title, self._pictures, self._preview_steps = title, pictures, preview_steps
        self._pace, self._previews = Pace(), 0
        self._shown: list[Tensor] = []
        self._texted = self._logged = float("-inf")

    def on_prepare(self, done: int, total: int) -> None:
        """Pictures are encoded."""
        self._bar.at(round(self._pictures * done / max(total, 1)))

    def on_step(self, report: StepReport) -> None:
        """A step is done. Raises the host's exception when the user interrupted."""
        self._pace.note(report.step)
        self._say(report)
        due = report.step % max(report.total // CURVES_SHOWN, 25) == 0
        self._bar.at(self._pictures + report.step, self._picture() if due else None)

    def on_preview(self, report: StepReport) -> None:
        """Preview pictures are due; the model is ready for sampling."""
        if self.trainer is not None:
            self._shown = self.trainer.preview(self._previews, self._preview_steps)
            self._previews += 1
            self._bar.at(self._pictures + report.step, self._picture())

    def _say(self, report: StepReport) -> None:
        now, text = time.monotonic(), f"{self._title}: {self._pace.text(report)}"
        if now - self._texted >= TEXT_SECONDS or report.step == report.total:
            self._texted = now
            self._bar.text(text)
        if now - self._logged >= LOG_SECONDS or report.step == report.total:
            self._logged = now
            logger.info(text)

    def _picture(self) -> Tensor:
        curve = plot_curve(self.trainer.loop.losses if self.trainer else [], self._title)
        return contact_sheet([[*self._shown, curve]], cell=CELL) if self._shown else curve


def told_memory(trainer: Trainer) -> str:
    """The estimate in words, also in the log. Raises InputError when the training cannot fit into what is free."""
    estimate = estimate_memory(trainer.loop)
    check_memory(estimate, int(comfy.model_management.get_free_memory(trainer.loop.denoiser.device)))
    logger.info(estimate.text())
    return estimate.text()


def release() -> None:
    """Give memory of a training back to the system and to the host."""
    gc.collect()
    comfy.model_management.soft_empty_cache()
