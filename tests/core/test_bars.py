"""Bars in the terminal."""

from __future__ import annotations

import pytest

from anomalydiffusion_core.cli.bars import TaskBars
from anomalydiffusion_core.progress import Progress

pytestmark = pytest.mark.core


def test_a_task_moves_its_bar_and_the_next_task_has_a_bar_of_its_own() -> None:
    with TaskBars() as bars:
        first = bars.of("masks")(8)
        assert isinstance(first, Progress)
        bar = bars.bar
        first.step(2)
        first.text("2 kept")
        assert bar is not None and (bar.desc, bar.n, bar.postfix) == ("masks", 0.25, "2 kept")
        first.expect(2)
        first.at(20)
        assert bar.n == 1 and first.done == first.total == 10
        bars.of("pairs")(4)
        assert bars.bar is not bar and bars.bar is not None and bars.bar.n == 0
    assert bars.bar is None
