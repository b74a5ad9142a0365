"""Progress, and what a terminal shows of it."""

from __future__ import annotations

import pytest

from anomalydiffusion_core.cli.bars import StageBars, TaskBars
from anomalydiffusion_core.progress import Part, Progress, Quiet

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


def test_a_training_that_goes_on_shows_its_small_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with StageBars() as bars:
        bars.interval = 0.0
        bars("seed 1", 0.35, "0.0500")
        bars("seed 1", 0.36, "0.0490")
        bars("seed 1", 0.37, "0.0480")
    shown = capsys.readouterr().err
    assert all(text in shown for text in ("seed 1:  35.0%", "36.0%", "37.0%", "0.0480"))


def test_a_part_advances_the_whole_by_its_amount() -> None:
    whole = Quiet(100)
    whole.step(20)
    part = Part(whole, 50, 8)
    part.step(4)
    assert whole.done == 45
    part.expect(8)
    part.at(16)
    assert whole.done == 70 and part.done == 16
