"""Mutated images and masks, read in a process of its own: a crash of the decoder would end that one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import image_worker
import pytest
from attacks import Campaign


def read_all(campaign: Campaign, count: int, folder: Path) -> None:
    places = [str(Path(image_worker.__file__).parent), *(path for path in sys.path if path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    first = 0
    while first < count:
        command = [sys.executable, image_worker.__file__, str(folder), str(first), str(count)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=folder, timeout=900, check=False
        )
        for line in done.stdout.splitlines():
            number, _, said = line.partition(" ")
            first = int(number) + 1
            campaign.tried += 1
            campaign.refused += said.count("refused") > 0
            campaign.done += said.count("refused") == 0
            if set(said.split("|")) - {"read", "refused"}:
                campaign.fell_short(number, said)
        if done.returncode:
            campaign.tried += 1
            campaign.fell_short(str(first), f"ended with {done.returncode}: {done.stderr[-300:]}")
            first += 1


@pytest.mark.parametrize("count", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_mutated_images(count: int, tmp_path: Path) -> None:
    campaign = Campaign(f"{count} mutated images")
    read_all(campaign, count, tmp_path)
    campaign.end()
