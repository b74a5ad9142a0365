"""What is shown of a running training: one bar for both phases, text, the loss curve and preview images."""

from __future__ import annotations

import logging
import time
from collections import deque

from torch import Tensor

from ..figures import contact_sheet, plot_curve
from ..progress import Progress, duration
from .run import Trainer
from .settings import StepReport

logger = logging.getLogger(__name__)

CURVES_SHOWN = 8
TEXT_SECONDS, LOG_SECONDS = 1.0, 15.0
CELL = 256


class Pace:
    """Says how far a training is and how long it will still take, from the speed of the latest steps."""

    def __init__(self, window: int = 50) -> None:
        self._times: deque[tuple[int, float]] = deque(maxlen=window + 1)

    def note(self, step: int) -> None:
        """A step has ended now."""
        self._times.append((step, time.monotonic()))

    @property
    def seconds_per_step(self) -> float | None:
        """Mean over the latest steps; None before the second."""
        if len(self._times) < 2:
            return None
        (first, begin), (last, end) = self._times[0], self._times[-1]
        return (end - begin) / (last - first) if last > first else None

    def text(self, report: StepReport) -> str:
        """``step 120 of 300, loss 0.0123, 0.42 s/step, 1 min 16 s left``."""
        text = f"step {report.step} of {report.total}, loss {report.loss:.4g}"
        pace = self.seconds_per_step
        if pace is None:
            return text
        return f"{text}, {pace:.3g} s/step, {duration(pace * (report.total - report.step))} left"


class Watch:
    """Moves a progress of ``images`` + steps. Any of its calls may raise what the progress raises to interrupt."""

    def __init__(self, progress: Progress, title: str, images: int, preview_steps: int = 8) -> None:
        self.trainer: Trainer | None = None
        self._progress, self._title, self._images, self._preview_steps = progress, title, images, preview_steps
        self._pace, self._previews, self._start = Pace(), 0, progress.done
        self._shown: list[Tensor] = []
        self._texted = self._logged = float("-inf")

    def on_prepare(self, done: int, total: int) -> None:
        """Images are encoded."""
        self._progress.at(self._start + round(self._images * done / max(total, 1)))

    def on_step(self, report: StepReport) -> None:
        """A step has ended."""
        self._pace.note(report.step)
        self._say(report)
        due = report.step % max(report.total // CURVES_SHOWN, 25) == 0
        self._progress.at(self._start + self._images + report.step, self._image() if due else None)

    def on_preview(self, report: StepReport) -> None:
        """Preview images are due; the model is ready for sampling."""
        if self.trainer is not None:
            self._shown = self.trainer.preview(self._previews, self._preview_steps)
            self._previews += 1
            self._progress.at(self._start + self._images + report.step, self._image())

    def _say(self, report: StepReport) -> None:
        now, text = time.monotonic(), f"{self._title}: {self._pace.text(report)}"
        if now - self._texted >= TEXT_SECONDS or report.step == report.total:
            self._texted = now
            self._progress.text(text)
        if now - self._logged >= LOG_SECONDS or report.step == report.total:
            self._logged = now
            logger.info(text)

    def _image(self) -> Tensor:
        curve = plot_curve(self.trainer.loop.losses if self.trainer else [], self._title)
        return contact_sheet([[*self._shown, curve]], cell=CELL) if self._shown else curve
