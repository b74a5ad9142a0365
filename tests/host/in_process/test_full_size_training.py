"""A Stable Diffusion 1.5 of full size and random weights trains within the memory of a small machine."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
def test_full_size_trains_in_less_than_8_gb(extension: Any, tmp_path: Path) -> None:
    import full_training
    import random_checkpoint

    random_checkpoint.write_full(tmp_path / "models" / "checkpoints" / "full.safetensors")
    command = [sys.executable, full_training.__file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["peak"] < 8_000_000_000
    assert len(figures["losses"]) == 2 and all(math.isfinite(loss) for loss in figures["losses"])
    # The estimate is of the right size: what the steps add is not more, and not a small part of it.
    added = figures["steps_peak"] - figures["before"]
    assert 0.3 * figures["estimate"] < added < 1.2 * figures["estimate"]
