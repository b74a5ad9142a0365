"""Rules that hold for the whole source tree."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("anomalydiffusion_core", "nodes", "tools")
SOURCES = [ROOT / "__init__.py", *(path for name in FOLDERS for path in sorted((ROOT / name).rglob("*.py")))]
HOST_MODULES = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes", "execution", "server", "latent_preview"}


def tracked(*patterns: str) -> list[str]:
    """Names of the tracked files that match, sorted."""
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return listed.stdout.splitlines()


def imported_modules(path: Path) -> set[str]:
    """Top-level names of the absolute imports anywhere in a file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def named(paths: Iterable[Path]) -> list[str]:
    """How a failure lists files."""
    return [path.relative_to(ROOT).as_posix() for path in paths]


def test_sources_are_portable() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in SOURCES}
    assert not named(path for path, text in texts.items() if not text.isascii())
    assert not named(path for path, text in texts.items() if re.search(r"\.cuda\(|\.to\(['\"]cuda", text))


def test_imports_inside_the_extension_are_relative_and_the_core_never_imports_the_host() -> None:
    modules = {path: imported_modules(path) for path in SOURCES}
    assert not named(path for path, found in modules.items() if "anomalydiffusion_core" in found)
    core = {path: found for path, found in modules.items() if "anomalydiffusion_core" in path.parts}
    assert len(core) > 200 and not named(path for path, found in core.items() if found & HOST_MODULES)


def test_only_the_core_is_importable() -> None:
    assert importlib.util.find_spec("anomalydiffusion_core") is not None
    assert importlib.util.find_spec("nodes") is None


def test_both_lists_of_requirements_agree_and_leave_torch_alone() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    assert project["dependencies"] == listed
    names = {re.split(r"[<>=~ ]", line)[0] for line in listed}
    assert not names & {"torch", "torchvision", "torchaudio"}


def test_every_requirement_has_a_tested_version() -> None:
    tools = ROOT / "tools"
    pinned = {
        re.split(r"==", line)[0]
        for line in (tools / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    }
    for source in (ROOT / "requirements.txt", tools / "requirements-host.txt"):
        for line in source.read_text(encoding="utf-8").splitlines():
            name = re.split(r"[<>=~ ]", line)[0].lower()
            if name and name[0].isalpha():
                assert name in pinned, f"{source.name}: {name}"


def test_only_images_that_are_meant_to_ship_are_tracked() -> None:
    # Sheets of test data lie about while one works; data of others must never be committed.
    images = [name for name in tracked() if re.search(r"\.(png|jpe?g|bmp|tiff?|webp)$", name, re.I)]
    ours = ("workflows/", "web/docs/images/")
    assert images and all(name.startswith(ours) for name in images), images
    assert sum((ROOT / name).stat().st_size for name in images) < 3e6, "they are part of every installation"


def test_what_set_up_makes_is_not_tracked() -> None:
    # A link .comfy that is tracked replaces the folder of that name wherever the commit is checked out.
    listed = subprocess.run(["git", "ls-files", ".comfy", ".venv", "output"], cwd=ROOT, capture_output=True, text=True)
    assert not listed.stdout, "git rm --cached .comfy, then commit --amend"


# Saved in workflows, bundles, results and commands, where names never change.
SAVED_PICTURES = re.compile(
    r"(good|training|test|fewest|most)_pictures|whole picture|([\"'`.]|--|types, )pictures\b"
    r"|\bpictures: (int|every image)"
)
ABOUT_THE_WORD = {"CONTRIBUTING.md", "anomalydiffusion_core/backends/bert_words.py", "tests/core/test_conventions.py"}


def test_an_image_is_called_an_image() -> None:
    found = [
        f"{name}:{number}: {line.strip()}"
        for name in tracked(
            "*.py", "*.md", ":!*zh.md", "*.js", "locales/en", "anomalydiffusion_core/*.json", "Makefile"
        )
        if name not in ABOUT_THE_WORD
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1)
        if "picture" in SAVED_PICTURES.sub("", line).lower()
    ]
    assert not found, "\n".join(found)


LONGEST_EXECUTE = 32
"""Lines of code of a node's execute, with its inputs."""


def lines_of_code(part: ast.AST, source: str) -> int:
    """Without blank lines, comments and docstrings."""
    docs = {
        line
        for node in ast.walk(part)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    assert isinstance(part, ast.stmt)
    lines = source.splitlines()[part.lineno - 1 : part.end_lineno]
    numbered = enumerate(lines, part.lineno)
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and number not in docs for number, line in numbered
    )


def test_nodes_are_a_schema_and_a_call() -> None:
    lengths = {
        f"nodes/{path.name}: {cls.name}": lines_of_code(member, source)
        for path in sorted((ROOT / "nodes").glob("*.py"))
        for source in [path.read_text(encoding="utf-8")]
        for cls in ast.walk(ast.parse(source))
        if isinstance(cls, ast.ClassDef)
        for member in cls.body
        if isinstance(member, ast.FunctionDef) and member.name == "execute"
    }
    assert len(lengths) > 25
    long = {name: count for name, count in lengths.items() if count > LONGEST_EXECUTE}
    assert not long, "what they do belongs into the core or nodes/host"
