"""Which module may import which: rooms downwards only, no circle, ComfyUI in its own folder."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.core
ROOT = Path(__file__).resolve().parents[2]
CORE = "anomalydiffusion_core"

# From the bottom up: a room may import those on the lines above it. "root" are the files directly in the core.
LAYERS = (
    ("root",),
    ("conditioning", "data", "synthetic"),
    ("sampling",),
    ("bundles",),
    ("masks",),
    ("backends", "training", "evaluation", "baselines"),
    ("demo_prior",),
    ("server",),
    ("cli",),
    ("nodes/host",),
    ("nodes",),
)
MOST_ROOMS = 14
# Libraries that take long to import or may be absent.
HEAVY = set(
    "torch torchvision torch_fidelity diffusers transformers safetensors lpips sklearn skimage scipy matplotlib "
    "psutil requests websocket tqdm tokenizers ray anomalib lightning timm".split()
)
HOST = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes", "execution", "server", "latent_preview"}


@dataclass(frozen=True)
class Import:
    """One imported module. inside: in a function."""

    target: str
    inside: bool


def _modules() -> dict[str, Path]:
    """Name of each module of the core and the nodes -> its file."""
    found = {}
    for path in (*(ROOT / CORE).rglob("*.py"), *(ROOT / "nodes").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _is_later(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "later"


@cache
def _imports(module: str) -> list[Import]:
    """What a module imports, but for type checking."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def deferred(call: ast.AST) -> Import:
        name = call.args[0].value  # type: ignore[attr-defined]
        target = importlib.util.resolve_name(name, f"root.{package}").removeprefix("root.")
        assert target in MODULES, f"{module}: later('{name}') is no module"
        return Import(target, False)

    def visit(node: ast.AST, inside: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                # At run time `lazy_imports.py:later` stands in its place, which is an import like any other.
                yield from (deferred(call) for call in ast.walk(child) if _is_later(call))
                continue
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                parts = package.split(".")[: len(package.split(".")) - child.level + 1] if child.level else []
                base = ".".join([*parts, *([child.module] if child.module else [])])
                for alias in child.names:
                    name = f"{base}.{alias.name}"
                    yield Import(name if child.level and name in MODULES else base, inside)
            yield from visit(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    return list(visit(ast.parse(path.read_text(encoding="utf-8")), False))


def _room(module: str) -> str:
    parts = module.split(".")
    if parts[0] == "nodes":
        return "nodes/host" if parts[1:2] == ["host"] else "nodes"
    return parts[1] if len(parts) > 1 and (ROOT / CORE / parts[1]).is_dir() else "root"


def _own(module: str) -> set[str]:
    return {one.target for one in _imports(module) if one.target in MODULES}


def _reachable(module: str) -> set[str]:
    found: set[str] = set()
    waiting = [module]
    while waiting:
        new = _own(waiting.pop()) - found
        found |= new
        waiting += new
    return found


def test_there_is_no_import_circle() -> None:
    reachable = {module: _reachable(module) for module in MODULES}
    circles = {
        (module, target)
        for module in MODULES
        for target in _own(module)
        if target != module and module in reachable[target]
    }
    assert not circles


def test_rooms_import_downwards_only() -> None:
    rank = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
    upwards = {
        (module, target)
        for module in MODULES
        for target in _own(module)
        if _room(module) != _room(target) and rank[_room(target)] >= rank[_room(module)]
    }
    assert not upwards


def test_the_core_has_few_rooms() -> None:
    rooms = {_room(module) for module in MODULES} - {"nodes", "nodes/host"}
    assert len(rooms) <= MOST_ROOMS, sorted(rooms)


def test_comfyui_is_imported_in_its_folder_only() -> None:
    wrong = set()
    for module in MODULES:
        room = _room(module)
        allowed = HOST if room == "nodes/host" else {"comfy_api"} if room == "nodes" else set()
        found = {
            one.target for one in _imports(module) if one.target.split(".")[0] in HOST and one.target not in MODULES
        }
        wrong |= {(module, target) for target in found if target.split(".")[0] not in allowed}
    assert not wrong


def test_only_heavy_libraries_are_imported_inside_functions() -> None:
    wrong = {
        (module, one.target)
        for module in MODULES
        if _room(module) != "cli"
        for one in _imports(module)
        if one.inside and one.target.split(".")[0] not in HEAVY
    }
    assert not wrong
