"""A disk that is full or read-only: what fits is kept, what does not is said by name, nothing is left half written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacks import Campaign, drafts_in

WORK = """
import logging, sys
from pathlib import Path
import kill_worker
from anomalydiffusion_core.errors import AnomalyDiffusionError
logging.basicConfig(level=logging.WARNING)
try:
    getattr(kill_worker, sys.argv[1])(Path(sys.argv[2]))
except (AnomalyDiffusionError, OSError) as error:
    print(f"{type(error).__name__}: {error}")
    sys.exit(3)
"""
"""Does one of the works of the kills, and says in one line what it ended with."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with 24 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    made = subprocess.run(command, capture_output=True, check=False)
    if made.returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def work(name: str, place: Path) -> subprocess.CompletedProcess[str]:
    places = [str(Path(__file__).parents[1] / "support"), *(path for path in sys.path if path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORK, name, str(place)]
    folder = next(path for path in place.parents if path.is_dir())
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, timeout=600, check=False
    )


def fill(filler: Path, free: int) -> None:
    """Leave so many bytes of a disk."""
    with filler.open("wb") as stream:
        for _ in range(max(0, shutil.disk_usage(filler.parent).free - free) // 4096):
            stream.write(bytes(4096))


@pytest.mark.parametrize("rooms", [(10,), pytest.param((0, 1, 10, 100), marks=pytest.mark.slow)])
def test_full_and_read_only_disk(small_disk: Path, rooms: tuple[int, ...]) -> None:
    """rooms: kB that are free; with several of them the trainings and the read-only disk are tried too."""
    campaign = Campaign(f"full disk, {len(rooms)} sizes")
    filler = small_disk / "filler"

    def look(what: str, done: subprocess.CompletedProcess[str], code: int, word: str) -> None:
        campaign.tried += 1
        campaign.done += done.returncode == 0
        campaign.refused += done.returncode == 3
        if done.returncode != code or word not in done.stdout + done.stderr:
            campaign.fell_short(what, f"ended with {done.returncode}: {(done.stdout + done.stderr)[-400:]}")
        for left in drafts_in(small_disk):
            campaign.fell_short(what, f"left {left}")

    for free in rooms:  # not even the beginning fits
        fill(filler, free * 1024)
        for name in ("export", "save_files"):
            place = small_disk / name
            look(f"{name} with {free} kB", work(name, place), 3, str(place))
            for path in place.rglob("*") if place.is_dir() else ():
                if path.is_file() and path.name.startswith("file_") and path.stat().st_size != 100_000:
                    campaign.fell_short(name, f"{path.name} is half written")
        if list((small_disk / "export").glob("pairs_*")):
            campaign.fell_short("export", "half an export is there")
        filler.unlink()
        for place in small_disk.iterdir():
            subprocess.run(["rm", "-rf", str(place)], check=True)
    if len(rooms) == 1:
        campaign.end()
        return
    # The bundle fits, the state of the training, which is three times as large, does not.
    look("train with room", work("train", small_disk / "whole"), 0, "")
    size = next((small_disk / "whole").glob("bundle_*.safetensors")).stat().st_size
    subprocess.run(["rm", "-rf", str(small_disk / "whole")], check=True)
    fill(filler, int(1.5 * size))
    place = small_disk / "train"
    look("train", work("train", place), 0, "cannot be written")
    if len(list(place.glob("bundle_*.safetensors"))) != 1:
        campaign.fell_short("train", "its bundle, which fits, was not saved")
    filler.unlink()
    subprocess.run(["rm", "-rf", str(place)], check=True)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for name in ("train", "export", "save_files"):
        look(f"{name} on a read-only disk", work(name, small_disk / name), 3, str(small_disk))
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    campaign.end()


def test_a_folder_that_cannot_be_written_to_is_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    done = work("train", tmp_path / "file" / "models")
    assert done.returncode == 3 and "cannot write to" in done.stdout, done.stdout + done.stderr
