"""Work killed with signal 9: what was finished stays as it was, the next run finishes the rest, nothing is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import kill_worker
import pytest
from attacks import Campaign


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the worker forks")
@pytest.mark.parametrize("count", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_kills(count: int, tmp_path: Path) -> None:
    campaign = Campaign(f"{count} kills")
    places = [str(Path(kill_worker.__file__).parent), *(path for path in sys.path if path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, kill_worker.__file__, str(tmp_path), str(count)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=1200, check=False
    )
    for line in done.stdout.splitlines():
        told = json.loads(line)
        campaign.tried += 1
        campaign.done += not told["short"]
        for why in told["short"]:
            campaign.fell_short(told["what"], why)
    if done.returncode or campaign.tried < count:
        campaign.fell_short("worker", f"ended with {done.returncode}: {done.stderr[-600:]}")
    campaign.end()
