"""Rules that hold for the whole source tree."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
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


def imported_modules(path: Path) -> set[str]:
    """Top-level names of the absolute imports anywhere in a file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_source_is_portable(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.isascii()
    assert not re.search(r"\.cuda\(|\.to\(['\"]cuda", text)
    assert "anomalydiffusion_core" not in imported_modules(path), "imports inside the extension are relative"


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if "anomalydiffusion_core" in path.parts], ids=lambda path: path.stem
)
def test_core_never_imports_the_host(path: Path) -> None:
    assert not imported_modules(path) & HOST_MODULES


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
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    images = [name for name in listed.stdout.splitlines() if re.search(r"\.(png|jpe?g|bmp|tiff?|webp)$", name, re.I)]
    ours = ("workflows/", "web/docs/images/")
    assert images and all(name.startswith(ours) for name in images), images
    assert sum((ROOT / name).stat().st_size for name in images) < 3e6, "they are part of every installation"


def test_what_set_up_makes_is_not_tracked() -> None:
    # A link .comfy that is tracked replaces the folder of that name wherever the commit is checked out.
    listed = subprocess.run(["git", "ls-files", ".comfy", ".venv", "output"], cwd=ROOT, capture_output=True, text=True)
    assert not listed.stdout, "git rm --cached .comfy, then commit --amend"
