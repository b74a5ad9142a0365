"""A file is there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.files import check_name, replacing

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
