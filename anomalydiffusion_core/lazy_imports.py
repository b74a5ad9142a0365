"""Importing a heavy library the moment it is needed, in a process where other threads work too."""

from __future__ import annotations

import importlib
from typing import Any

ATTEMPTS = 3


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
