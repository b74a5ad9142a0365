"""What differs between the supported versions of ComfyUI, 0.3.75 to 0.33, in one place."""

from __future__ import annotations

import dataclasses
from typing import Any

from comfy_api.latest import io

KNOWN = {field.name for field in dataclasses.fields(io.Schema)}
"""What the schema of a node may say in this ComfyUI: 0.3.75 has no search_aliases, for example."""


def schema(**parts: Any) -> io.Schema:
    """An io.Schema without the parts that this ComfyUI does not know; all of them are for the page alone."""
    return io.Schema(**{name: value for name, value in parts.items() if name in KNOWN})


def as_advanced(made: io.Input) -> io.Input:
    """Move a widget behind "show advanced". Its id, its place and its value in saved workflows stay."""
    if hasattr(made, "advanced"):
        made.advanced = True
    else:  # 0.3.75 has no such argument, but its page knows the word
        made.extra_dict = {**made.extra_dict, "advanced": True}
    return made
