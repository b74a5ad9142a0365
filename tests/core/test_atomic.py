"""A file is there whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.files import check_name, replacing
from anomalydiffusion_core.lines import append_lines, read_lines

pytestmark = pytest.mark.core


def test_the_file_appears_at_the_end_and_nothing_else_is_left(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    for text in ("first", "second"):
        with replacing(target) as partial:
            partial.write_text(text)
            before = target.read_text() if target.exists() else None
            assert before == (None if text == "first" else "first")
        assert target.read_text() == text
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_fails_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error), replacing(target) as partial:
        partial.write_text("half")
        raise error
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a.txt"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("part: A", "holds :"),
        ("crack?", r"holds \?"),
        ("a/b", "holds /"),
        ("a\\b", r"holds \\"),
        ("a\0b", r"holds \\x00"),
        ("..", "hidden"),
        (".hidden", "hidden"),
        ("", "empty"),
        ("  ", "empty"),
        ("end ", "blank"),
        ("end.", "dot"),
        ("n" * 200, "200 bytes"),
        ("\u00e9" * 100, "200 bytes"),
        ("nul", "device"),
        ("COM1.x", "device"),
    ],
)
def test_a_name_that_some_system_cannot_store_is_refused(name: str, why: str) -> None:
    with pytest.raises(InputError, match=f"defect: .*cannot be a name, it .*{why}"):
        check_name(name, "defect")


@pytest.mark.parametrize("name", ["crack", "broken large", "v1.2", "\u5212\u75d5", "e\u0301clat", "a-b_c (2)"])
def test_ordinary_names_pass(name: str) -> None:
    assert check_name(name, "defect") == name


def test_lines_that_a_full_disk_took_a_part_of_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines.jsonl"
    append_lines(path, [1, 2])
    with path.open("ab") as stream:
        stream.write(b"[3,")  # cut off by a kill
    append_lines(path, [4])
    assert path.read_bytes() == b"1\n2\n4\n" and read_lines(path) == [1, 2, 4]

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="lines.jsonl"):
        append_lines(path, [5, 6])
    assert path.read_bytes() == b"1\n2\n4\n"
