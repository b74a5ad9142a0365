"""The command ``anomalydiffusion``, put together. A module of commands is imported when one of them runs."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

MODULES = {
    "demo": "comfyui",
    "run": "comfyui",
    "queue": "comfyui",
    "train": "train",
    "adapt": "train",
    "tune": "tune",
    "masks": "masks",
    "mask-report": "mask_tools",
    "foreground": "mask_tools",
    "generate": "generate",
    "baseline": "baseline",
    "refine": "pairs",
    "score-pairs": "pairs",
    "review": "pairs",
    "evaluate": "evaluation",
    "detect": "detectors",
    "gaps": "gaps",
    "classify": "evaluation",
    "score": "evaluation",
    "tables": "evaluation",
    "ablate": "comfyui",
    "enough": "comfyui",
    "convert": "data",
    "check": "data",
    "bundles": "bundles",
    "import-authors": "bundles",
    "merge-bundles": "bundles",
    "save-textual-inversion": "bundles",
    "ui": "comfyui",
    "demo-data": "demo_prior",
    "check-demo-prior": "demo_prior",
    "pretrain-demo-prior": "demo_prior",
}
"""Each command and the module beside this one whose function of that name it is."""


class Commands(TyperGroup):
    """The commands by name; --help reads their docstrings without importing what they need."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names in their order."""
        return list(MODULES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command with the first line of its help only."""
        return TyperCommand(cmd_name, help=_help(cmd_name)) if cmd_name in MODULES else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is to be run, with its options."""
        name, found, rest = super().resolve_command(ctx, args)
        return name, found and _load(str(name)), rest


def _help(name: str) -> str:
    source = Path(__file__).with_name(f"{MODULES[name]}.py").read_text(encoding="utf-8")
    functions = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    own = next(node for node in functions if node.name == name.replace("-", "_"))
    return (ast.get_docstring(own) or "").split("\n\n")[0]


def _load(name: str) -> Any:
    module = import_module(f".{MODULES[name]}", __package__)
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command(name)(getattr(module, name.replace("-", "_")))
    return typer.main.get_command(single)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def anomalydiffusion() -> None:
    """Few-shot anomaly generation: a few defect images in, image and mask pairs and a measured detector out."""
