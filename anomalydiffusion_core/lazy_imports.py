"""Importing the moment something is needed: heavy libraries, and modules of ours that only running a node needs.

ComfyUI waits at its start for everything that is imported at the top of files.
"""

from __future__ import annotations

import importlib
from typing import Any

ATTEMPTS = 3


class Later:
    """A module of ours that is imported when something of it is used for the first time."""

    def __init__(self, name: str, package: str | None) -> None:
        self._name, self._package = name, package

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name, self._package), attribute)


def later(name: str, package: str | None) -> Any:
    """The module ``name``, relative to ``package`` (a file's ``__package__``), imported when it is used.

    Stands beside an import of the same module for the type checker, under ``if TYPE_CHECKING``.
    """
    return Later(name, package)


def imported(module: str, name: str) -> Any:
    """`name` out of a library's module, tried again where Python itself stumbled.

    scikit-image parses its own stubs while it is imported and when a name is first asked for. When garbage collection
    falls into that moment and a finalizer prints a traceback, Python up to 3.11 parses a second time inside the first
    and raises SystemError: "AST constructor recursion depth mismatch" (python/cpython#106905). It did so in a ComfyUI
    server.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return getattr(importlib.import_module(module), name)
        except SystemError as error:
            if attempt == ATTEMPTS or "recursion depth mismatch" not in str(error):
                raise
    raise AssertionError("unreachable")
