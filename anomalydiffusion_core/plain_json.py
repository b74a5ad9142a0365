"""JSON as people and other programs leave it: read with limits, and with an error that names the file.

NaN, infinity and numbers beyond double precision are no JSON here, on the way in and on the way out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import InputError
from .reading import is_file

LARGEST_JSON = 256_000_000
"""Bytes of a JSON file that is read."""


def finite_values(value: Any) -> Any:
    """Plain values with null in the place of NaN and infinity, which JSON does not know."""
    if isinstance(value, Mapping):
        return {key: finite_values(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_values(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError for what is no JSON, NaN and numbers beyond it, and deep nesting."""

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is no number")

    def number(word: str) -> float:
        return float(word) if math.isfinite(float(word)) else refuse(word)

    try:
        return json.loads(text, parse_constant=refuse, parse_float=number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_text(path: Path, name: str, advice: str = "Use another copy.") -> str:
    """The text of a file. Raises InputError, beginning with ``name``, when it is absent, no text, or too large."""
    if not is_file(path):  # a pipe or a device would never end
        raise InputError(f"{name}: {path} is not there. Check the name and the folder.")
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise InputError(f"{name}: {path} has more than {LARGEST_JSON // 1_000_000} MB. {advice}")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: {path} is no text in UTF-8 ({error.reason}). {advice}") from error
    except OSError as error:
        raise InputError(f"{name}: {path} cannot be read ({error.strerror}). Check its permissions.") from error


def read_json(path: Path, name: str, kind: type = dict, advice: str = "Use another copy.") -> Any:
    """The value of a JSON file, of this kind. Raises InputError that begins with ``name`` and says which file."""
    text = read_text(path, name, advice)
    try:
        value = plain_json(text)
    except ValueError as error:
        raise InputError(f"{name}: {path} is no JSON ({str(error)[:200]}). {advice}") from error
    if not isinstance(value, kind):
        raise InputError(f"{name}: {path} holds a {type(value).__name__}, not a {kind.__name__}. {advice}")
    return value
