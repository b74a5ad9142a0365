"""Progress in the terminal: one tqdm bar at a time, for a node of a running workflow or a stage of some work."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from ..progress import MakeProgress, Quiet
from ..server.client import Progress

if TYPE_CHECKING:
    from ..server.batch import BatchState

TITLE_WIDTH = 28
Self = TypeVar("Self", bound="_Bars")


class _Bars:
    """One open tqdm bar at a time; a context manager that closes the last one."""

    def __init__(self) -> None:
        self.bar: tqdm[None] | None = None
        # Without a terminal every refresh is a line of its own in a log.
        self.interval = 0.1 if sys.stderr.isatty() else 15.0

    def open(self, description: str, bar_format: str) -> None:
        """Close the bar that is open and begin another."""
        self.close()
        # Left to itself, tqdm waits after one large step (a resumed training) for another as large.
        self.bar = tqdm(
            total=1.0, desc=description, bar_format=bar_format, mininterval=self.interval, miniters=0, leave=True
        )

    def close(self) -> None:
        """Close the bar that is open."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class ProgressBars(_Bars):
    """Callable for `queue_workflow`'s `on_progress`."""

    def __init__(self) -> None:
        super().__init__()
        self.node = ""

    def __call__(self, step: Progress) -> None:
        """Show how far a node is."""
        if self.bar is None or step.node_id != self.node:
            title = f"[{step.done + 1:2d}/{step.total}] {step.title[:TITLE_WIDTH]:<{TITLE_WIDTH}}"
            self.open(title, "{desc} {percentage:3.0f}%|{bar:24}| {n:.0f}/{total:.0f} [{elapsed}]")
            self.node = step.node_id
        if self.bar is None:
            return
        if step.ended:
            self.bar.update(self.bar.total - self.bar.n)
            self.close()
            self.node = ""
        elif step.maximum > 0:
            self.bar.total = step.maximum
            # A node that works through a list counts from 0 again for each entry.
            self.bar.update(step.value - self.bar.n)


class StageBars(_Bars):
    """Callable for trainings that report (stage, share done in 0..1, text of the latest figures)."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = ""

    def __call__(self, stage: str, share: float, text: str) -> None:
        """Show how far a stage is (``share`` of 0 to 1)."""
        if self.bar is None or stage != self.stage:
            self.open(stage, "{desc}: {percentage:5.1f}%|{bar:24}| [{elapsed}{postfix}]")
            self.stage = stage
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(share - self.bar.n)


class BatchBar(_Bars):
    """Callable for a batch of prompts: one bar over all of them, with what each server does."""

    def __call__(self, state: BatchState) -> None:
        """Show how far the batch is."""
        if self.bar is None:
            self.open("prompts", "{desc} {n:.1f}/{total:.0f}|{bar:24}| [{elapsed}<{remaining}{postfix}]")
        if self.bar is None:
            return
        self.bar.total = state.total
        parts = [f"{server}: {job} {part:.0%}" for server, (job, part) in sorted(state.running.items())]
        parts += [f"{server}: away" for server in sorted(state.away)]
        self.bar.set_postfix_str("; ".join(parts), refresh=False)
        self.bar.update(state.share - self.bar.n)


class TaskBars(_Bars):
    """Makes the core's progress: ``bars.of("masks")`` is a MakeProgress whose bars have this title."""

    def of(self, title: str) -> MakeProgress:
        """What makes a bar; it closes the one before."""

        def make(total: int) -> _Task:
            self.open(title, "{desc}: {percentage:5.1f}%|{bar:24}| [{elapsed}<{remaining}{postfix}]")
            return _Task(self, total)

        return make


class _Task(Quiet):
    """A progress that moves the open bar of ``TaskBars``."""

    def __init__(self, bars: TaskBars, total: int) -> None:
        super().__init__(total)
        self._bars = bars

    def at(self, done: int, preview: Any = None) -> None:
        super().at(done)
        if self._bars.bar is not None and self.total:
            self._bars.bar.update(self.done / self.total - self._bars.bar.n)

    def text(self, text: str) -> None:
        if self._bars.bar is not None:
            self._bars.bar.set_postfix_str(text, refresh=False)
