"""What CONTRIBUTING.md names is there: files, folders, functions, classes, methods, commands of make."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`([\w./]+\.py(?::[\w.]+)?)`", TEXT)))
FOLDERS = sorted(set(re.findall(r"`([\w./]+/)`", TEXT)))


def _found(relative: str) -> Path | None:
    """Paths are written from the repository, or from the core."""
    places = (ROOT / relative, ROOT / "anomalydiffusion_core" / relative)
    return next((path for path in places if path.exists()), None)


def _members(body: list[ast.stmt]) -> dict[str, list[ast.stmt]]:
    """Names that statements define, each with its own body."""
    found: dict[str, list[ast.stmt]] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node.body
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = []
        elif isinstance(node, ast.Assign):
            found |= {target.id: [] for target in node.targets if isinstance(target, ast.Name)}
    return found


@cache
def _body(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_text(encoding="utf-8")).body


def _exists(name: str) -> bool:
    relative, _, dotted = name.partition(":")
    path = _found(relative)
    if path is None:
        return False
    body = _body(path)
    for part in dotted.split(".") if dotted else ():
        members = _members(body)
        if part not in members:
            return False
        body = members[part]
    return True


def test_named_files_and_functions_exist() -> None:
    assert len(NAMES) > 100
    assert not [name for name in NAMES if not _exists(name)], "CONTRIBUTING.md names what is not there"


def test_named_folders_exist() -> None:
    found = {name: _found(name) for name in FOLDERS}
    missing = [name for name, path in found.items() if path is None or not path.is_dir()]
    assert len(FOLDERS) > 20 and not missing, "CONTRIBUTING.md names what is not there"


def test_every_room_of_the_core_is_described() -> None:
    rooms = {path.parent.name for path in (ROOT / "anomalydiffusion_core").glob("*/__init__.py")}
    assert {f"{room}/" for room in rooms} <= set(FOLDERS)


def test_each_walk_names_functions_in_three_files_at_least() -> None:
    walks = re.split(r"^### ", TEXT.partition("\n## Three walks\n")[2].partition("\n## ")[0], flags=re.MULTILINE)[1:]
    assert len(walks) == 3
    for walk in walks:
        assert len(set(re.findall(r"`([\w./]+\.py):", walk))) >= 3, walk.splitlines()[0]


def test_named_targets_of_make_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"`make (\w+)", TEXT)) <= targets
