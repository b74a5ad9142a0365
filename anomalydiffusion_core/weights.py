"""Files of weights read with limits: what a file says about itself is compared before anything is built from it.

Every reader of weights goes through here. A file is opened only when it is a plain one; shapes in it cannot exceed
its size; its metadata are JSON that holds no NaN; its numbers are finite. Files of ``torch.save`` are read by
``restricted_pickle.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import BundleError
from .plain_json import plain_json
from .reading import is_file
from .restricted_pickle import Between, read_restricted, tensors_in

SAFETENSORS = ".safetensors"
LARGEST_RESOLUTION = 8192
"""Pixels. Of the images a bundle may say it was trained at."""
Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Header:
    """What a safetensors file says before its numbers: metadata, and the shape of each tensor by name."""

    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]


def read_header(path: Path) -> Header:
    """The header of a safetensors file; no number is read. Raises BundleError that names the file."""
    with _opened(path) as stored:
        names = list(stored.keys())
        shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in names}
        return Header(dict(stored.metadata() or {}), shapes)


def read_safetensors(path: Path, between: Between = lambda: None) -> dict[str, Tensor]:
    """All tensors of a safetensors file by name, in memory of their own. Raises BundleError that names the file."""
    found = {}
    with _opened(path) as stored:
        for name in list(stored.keys()):
            between()
            found[name] = stored.get_tensor(name).clone()
    return found


def read_weights(path: Path, between: Between = lambda: None) -> Any:
    """What a safetensors file or one of ``torch.save`` holds. Raises BundleError that names the file."""
    if Path(path).suffix.lower() == SAFETENSORS:
        return read_safetensors(path, between)
    return read_restricted(path, between)


def read_state(path: Path, between: Between = lambda: None) -> dict[str, Tensor]:
    """A state dict, alone or below the key ``state_dict``, as finite tensors by name.

    Raises BundleError that names the file, and the first tensor that is not finite.
    """
    stored = read_weights(path, between)
    if isinstance(stored, Mapping) and isinstance(stored.get("state_dict"), Mapping):
        stored = stored["state_dict"]
    if not isinstance(stored, Mapping) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise BundleError(f"file: {Path(path).name} is not a state dict. Give a file of weights.")
    found = tensors_in(stored)
    check_finite(path, found)
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file; whatever its reader raises names the file and says what to do."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not is_file(path):  # a pipe or a device would never end
        raise BundleError(f"file: {path} does not exist. Check the name and the folder.")
    try:
        with safe_open(str(path), framework="pt") as stored:
            yield stored
    except BundleError:
        raise
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise BundleError(f"file: {path.name} is no readable safetensors file ({error}). Use another copy.") from error


def parsed_metadata(path: Path, text: str | None, what: str = "metadata") -> dict[str, Any]:
    """JSON of a file's metadata. Raises BundleError for text that is none, holds NaN, or is no mapping."""
    try:
        found = plain_json(text or "")
    except ValueError as error:
        raise BundleError(f"file: the {what} of {path.name} is damaged ({error}). Use another copy.") from error
    if not isinstance(found, dict):
        raise BundleError(f"file: the {what} of {path.name} is no mapping of names to values. Use another copy.")
    return found


def whole_number(path: Path, name: str, value: Any, least: int, most: int) -> int:
    """A whole number of a file within limits. Raises BundleError that names the file and the entry."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise BundleError(
            f"file: {path.name} says {name} {str(value)[:40]}, a whole number from {least} to {most} is possible. "
            "Use another copy."
        )
    return value


def finite_number(path: Path, name: str, value: Any, above: float = -math.inf) -> float:
    """A number of a file that is finite. Raises BundleError that names the file and the entry."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number) or number <= above:
        wanted = "a finite number" if above == -math.inf else f"a finite number above {above:g}"
        raise BundleError(f"file: {path.name} says {name} {str(value)[:40]!r}, not {wanted}. Use another copy.")
    return number


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise BundleError that names the first tensor with a value that is NaN or infinite."""
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise BundleError(f"file: '{name}' in {Path(path).name} is not finite. Use another copy.")


def check_shapes(path: Path, found: Shapes, expected: Shapes, what: str = "its description") -> None:
    """Raise BundleError that names the first tensor that is missing, superfluous, or of another shape."""
    for name in sorted({*found, *expected}):
        given, wanted = (tuple(of[name]) if name in of else None for of in (found, expected))
        if given != wanted:
            raise BundleError(
                f"file: '{name}' in {Path(path).name} has the shape {given}, by {what} it has {wanted}. Use another "
                "copy."
            )


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor by name."""
    return {name: tuple(value.shape) for name, value in tensors.items()}
