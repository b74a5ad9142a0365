"""A library that is imported while Python stumbles over itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from anomalydiffusion_core.lazy_imports import ATTEMPTS, imported, later


def stumbling(folder: Path, name: str, times: int, message: str) -> None:
    """A module that raises SystemError the first few times it is imported."""
    (folder / f"{name}.py").write_text(
        "from pathlib import Path\n"
        "count = Path(__file__).with_suffix('.count')\n"
        "seen = int(count.read_text()) if count.exists() else 0\n"
        "count.write_text(str(seen + 1))\n"
        f"if seen < {times}:\n"
        f"    raise SystemError({message!r})\n"
        "value = 7\n"
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_known_fault_of_python_is_survived(folder: Path) -> None:
    stumbling(folder, "stumbles_once", 1, "AST constructor recursion depth mismatch (before=183, after=246)")
    assert imported("stumbles_once", "value") == 7


def test_names_that_a_library_makes_when_asked_are_asked_for_again(folder: Path) -> None:
    (folder / "makes_names.py").write_text(
        "asked = []\n"
        "def __getattr__(name):\n"
        "    if name.startswith('_'):\n"
        "        raise AttributeError(name)\n"
        "    asked.append(name)\n"
        "    if len(asked) == 1:\n"
        "        raise SystemError('AST constructor recursion depth mismatch (before=1, after=2)')\n"
        "    return name\n"
    )
    assert imported("makes_names", "label") == "label"


@pytest.mark.parametrize(
    ("times", "message", "tries"),
    [(99, "AST constructor recursion depth mismatch", ATTEMPTS), (1, "another fault", 1)],
)
def test_other_faults_and_lasting_ones_are_raised(folder: Path, times: int, message: str, tries: int) -> None:
    name = f"stumbles_{tries}"
    stumbling(folder, name, times, message)
    with pytest.raises(SystemError, match=message):
        imported(name, "value")
    assert (folder / f"{name}.count").read_text() == str(tries)


def test_a_module_is_imported_when_it_is_used_and_not_before(folder: Path) -> None:
    stumbling(folder, "awaited", 0, "")
    module = later("awaited", None)
    assert "awaited" not in sys.modules
    assert module.value == 7 and "awaited" in sys.modules
    with pytest.raises(AttributeError, match="nothing_of_it"):
        _ = module.nothing_of_it
