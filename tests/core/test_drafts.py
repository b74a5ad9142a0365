"""Numbers taken by several writers at once, and drafts that processes left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.files import (
    OLD_DRAFT,
    check_writable,
    draft_of,
    find_keyed_folder,
    is_left_behind,
    new_folder,
    new_numbered_folder,
    owner_tag,
    sweep,
    write_new,
)
from anomalydiffusion_core.store import FolderStore, save_numbered

pytestmark = pytest.mark.core


def gone() -> str:
    """The tag of a process of this machine that has ended."""
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    return owner_tag().replace(f"-{os.getpid()}-", f"-{int(ended.stdout)}-")


def test_folders_that_are_finished_at_the_same_time_get_numbers_of_their_own(tmp_path: Path) -> None:
    everybody = threading.Barrier(8)

    def write(number: int) -> Path:
        with new_numbered_folder(tmp_path, "set") as made:
            (made.path / "x").write_text(str(number))
            everybody.wait()
        assert (made.final / "x").read_text() == str(number)
        return made.final

    with ThreadPoolExecutor(8) as pool:
        finals = list(pool.map(write, range(8)))
    assert sorted(path.name for path in finals) == [f"set_{n:05d}" for n in range(1, 9)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in finals)


def test_files_that_are_written_at_the_same_time_get_numbers_of_their_own(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda n: save_numbered(store, "a/file", bytes([n]) * 1000), range(24)))
    assert sorted(path.name for path in paths) == [f"file_{n:05d}.safetensors" for n in range(1, 25)]
    assert {path.read_bytes() for path in paths} == {bytes([n]) * 1000 for n in range(24)}
    assert not list(tmp_path.rglob(".*"))


def test_a_file_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    write_new(tmp_path / "a", b"first")
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first" and len(list(tmp_path.iterdir())) == 1


def test_a_result_is_found_by_its_content(tmp_path: Path) -> None:
    for key in ("one", "two"):
        with new_numbered_folder(tmp_path, "set [x]", key) as made:
            (made.path / "x").write_text(key)
    assert find_keyed_folder(tmp_path, "set [x]", "one") == tmp_path / "set [x]_00001"
    assert find_keyed_folder(tmp_path, "set [x]", "two") == tmp_path / "set [x]_00002"
    assert find_keyed_folder(tmp_path, "set [x]", "three") is None
    assert find_keyed_folder(tmp_path / "nowhere", "set", "one") is None


def test_drafts_of_processes_that_are_gone_are_swept(tmp_path: Path) -> None:
    dead = tmp_path / f".set.{gone()}.0badcafe.partial"
    dead.mkdir()
    (dead / "half").write_text("x")
    file = tmp_path / f".a.safetensors.{gone()}.0badcafe.partial"
    file.write_text("half")
    alive = draft_of(tmp_path / "other")
    alive.mkdir()
    elsewhere = tmp_path / ".set.abcdef-1-1.0badcafe.partial"  # of another machine, which nobody here can ask
    elsewhere.mkdir()
    old = tmp_path / ".set.fedcba-1-1.0badcafe.partial"
    old.mkdir()
    os.utime(old, (time.time() - OLD_DRAFT - 60,) * 2)
    recycled = tmp_path / f".set.{owner_tag().rsplit('-', 1)[0]}-1000.0badcafe.partial"  # our number, an older process
    recycled.mkdir()
    plain = tmp_path / "set.partial"  # a user's own file
    plain.write_text("x")
    assert sorted(sweep(tmp_path)) == sorted([dead, file, old, recycled])
    assert not is_left_behind(alive)
    assert sorted(tmp_path.iterdir()) == sorted([alive, elsewhere, plain])


def test_the_next_folder_sweeps_what_is_left(tmp_path: Path) -> None:
    left = tmp_path / f".set.{gone()}.0badcafe.partial"
    left.mkdir()
    with new_folder(tmp_path / "set"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_replacing_keeps_the_old_folder_until_the_new_one_is_whole(tmp_path: Path) -> None:
    final = tmp_path / "demo"
    for text in ("old", "new"):
        with new_folder(final, replace=True) as draft:
            (draft / "x").write_text(text)
            assert not final.exists() or (final / "x").read_text() == "old"
    assert (final / "x").read_text() == "new" and len(list(tmp_path.iterdir())) == 1


def test_names_of_drafts_fit_however_long_the_name_is(tmp_path: Path) -> None:
    with new_folder(tmp_path / ("é" * 60)) as draft:
        assert len(draft.name.encode()) < 120


def test_a_place_that_cannot_be_written_to_is_said_before(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file" / "a", Path("/proc/nothing")):
        with pytest.raises(InputError, match="^out: cannot write to "):
            check_writable(place, "out")
        with pytest.raises(InputError, match="^folder: nothing can be written to "):
            with new_numbered_folder(place, "set"):
                pass
    check_writable(tmp_path / "new" / "deep", "out")
    assert not (tmp_path / "new").exists()
