"""How long work tells how far it is: the protocol that ComfyUI's bar and the terminal's implement."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """A bar of ``total`` steps. Any call may raise to interrupt the work, which must then leave nothing half done."""

    total: int
    done: int

    def step(self, amount: int = 1, preview: Any = None) -> None:
        """Advance by ``amount`` steps. preview: an image [3, H, W] in [0, 1], or what the host's previewers make."""
        ...

    def at(self, done: int, preview: Any = None) -> None:
        """Set the number of finished steps."""
        ...

    def expect(self, amount: int) -> None:
        """Add ``amount`` steps to the total."""
        ...

    def text(self, text: str) -> None:
        """Show one line of text beside the bar."""
        ...


class Quiet:
    """A progress that shows nothing."""

    def __init__(self, total: int = 0) -> None:
        self.total, self.done = total, 0

    def step(self, amount: int = 1, preview: Any = None) -> None:
        """Advance by ``amount`` steps."""
        self.at(self.done + amount, preview)

    def at(self, done: int, preview: Any = None) -> None:
        """Set the number of finished steps, at most the total."""
        self.done = min(done, self.total) if self.total else done

    def expect(self, amount: int) -> None:
        """Add ``amount`` steps to the total."""
        self.total += amount

    def text(self, text: str) -> None:
        """Nothing is shown."""


class Part(Quiet):
    """A progress of ``total`` steps of its own that advances a larger one by ``amount`` steps in all."""

    def __init__(self, whole: Progress, amount: int, total: int) -> None:
        super().__init__(total)
        self._whole, self._start, self._amount = whole, whole.done, amount

    def at(self, done: int, preview: Any = None) -> None:
        """As of a Progress."""
        super().at(done)
        self._whole.at(self._start + round(self._amount * self.done / max(self.total, 1)), preview)

    def text(self, text: str) -> None:
        """As of a Progress."""
        self._whole.text(text)


MakeProgress = Callable[[int], Progress]
"""Makes a progress of so many steps: for work that knows its length only after it has begun."""


class TimeLeft:
    """Estimates the time left from the speed so far."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._first: int | None = None

    def seconds(self, done: int, total: int) -> float | None:
        """Seconds left after ``done`` of ``total`` steps, None before two calls. Resumed steps do not count."""
        if self._first is None:
            self._first, self._started = done, time.monotonic()
            return None
        made = done - self._first
        return (time.monotonic() - self._started) / made * (total - done) if made > 0 else None


def duration(seconds: float) -> str:
    """``45 s``, ``1 min 16 s``, ``3 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"
