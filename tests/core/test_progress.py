"""What a terminal shows of a long training."""

from __future__ import annotations

import pytest

from anomalydiffusion_core.cli.bars import StageBars

pytestmark = pytest.mark.core


def test_a_training_that_goes_on_shows_its_small_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with StageBars() as bars:
        bars.interval = 0.0
        bars("seed 1", 0.35, "0.0500")
        bars("seed 1", 0.36, "0.0490")
        bars("seed 1", 0.37, "0.0480")
    shown = capsys.readouterr().err
    assert all(text in shown for text in ("seed 1:  35.0%", "36.0%", "37.0%", "0.0480"))
