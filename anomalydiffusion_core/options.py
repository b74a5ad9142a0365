"""Settings that are declared once: default, range and help text of a value serve nodes, commands and checks alike.

A settings class is a frozen dataclass on :class:`Settings` whose fields are made by :func:`option`::

    @dataclass(frozen=True)
    class LoopSettings(Settings):
        steps: int = option(300, "Optimizer steps.", min=1, max=1_000_000)

``nodes/inputs.py`` makes node inputs of such a class, ``cli/options.py`` makes command line options of it, and
creating an instance checks every value.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from .errors import InputError

KEY = "anomalydiffusion_option"
LARGEST_SEED = 2**63 - 1
"""Leaves room for seed + i."""


@dataclass(frozen=True)
class Option:
    """What is known about a value: help text, inclusive range, step of a widget, allowed texts.

    above: smallest value that is itself refused. exact: widgets must not round to the step. multiline: a text of
    several lines. rare: belongs among the advanced inputs.
    """

    help: str
    min: float | None = None
    max: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()
    above: float | None = None
    exact: bool = False
    multiline: bool = False
    rare: bool = False


def option(default: Any, help: str, *, choices: Sequence[str] = (), **more: Any) -> Any:
    """A field of a settings class; ``more`` as in :class:`Option`."""
    return dataclasses.field(default=default, metadata={KEY: Option(help, choices=tuple(choices), **more)})


class Settings:
    """Base of settings classes: an instance with a value that cannot work is never made."""

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class Declared:
    """One option of a settings class: its name, its type without None, its default and what else is known."""

    name: str
    type: type
    default: Any
    option: Option


def declared(settings: type) -> dict[str, Declared]:
    """The options of a settings class by name, in their order, those of nested settings classes in their place."""
    hints = get_type_hints(settings)
    found: dict[str, Declared] = {}
    for field in dataclasses.fields(settings):
        kind = _plain(hints[field.name])
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            found |= declared(kind)
        elif KEY in field.metadata:
            found[field.name] = Declared(field.name, kind, field.default, field.metadata[KEY])
    return found


def build(settings: type, values: dict[str, Any]) -> Any:
    """An instance of ``settings`` from flat values, which are taken out of ``values``; nested settings are built too.

    Raises InputError for a value that cannot work.
    """
    hints = get_type_hints(settings)
    own: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        kind = _plain(hints[field.name])
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and field.name not in values:
            own[field.name] = build(kind, values)
        elif field.name in values:
            own[field.name] = values.pop(field.name)
    return settings(**own)


def check_options(settings: Any) -> None:
    """Raise InputError that names the first value of another type, not finite, out of range, or unknown."""
    for name, known in declared(type(settings)).items():
        if not hasattr(settings, name):  # an option of nested settings, which checked themselves
            continue
        value = getattr(settings, name)
        if value is None and known.default is None:
            continue
        problem = _problem(value, known)
        if problem:
            raise InputError(f"{name}: {problem}")


def check_order(settings: Any, low: str, high: str) -> None:
    """Raise InputError when the option ``low`` is greater than the option ``high``."""
    if getattr(settings, low) > getattr(settings, high):
        raise InputError(f"{low}: {getattr(settings, low)} is above {high} {getattr(settings, high)}. Lower it.")


def chosen_name(name: str, text: str, known: Sequence[str]) -> str:
    """``text`` without blanks, or the only ``known`` one when it is empty. Raises InputError when there are several.

    Whether a given text is known is for the caller to check.
    """
    if not text.strip() and len(known) != 1:
        raise InputError(f"{name}: is empty. Choose one of: {', '.join(known) or 'none is known'}.")
    return text.strip() or known[0]


def _plain(hint: Any) -> Any:
    """A type hint without ``| None``."""
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    return parts[0] if len(parts) == 1 and typing.get_origin(hint) is not None else hint


def _problem(value: Any, known: Declared) -> str:
    """What is wrong with a value and what to give; "" when nothing is."""
    own = known.option
    if own.choices:
        return "" if value in own.choices else f"unknown value {value!r}. Choose one of: {', '.join(own.choices)}."
    if known.type is bool:
        return "" if isinstance(value, bool) else f"{value!r} is not true or false."
    if known.type is int:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            return f"{value!r} is not a whole number."
    elif known.type is float:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return f"{value!r} is not a number."
        if math.isnan(value) or (math.isinf(value) and own.max != math.inf):
            return f"{value} is not finite."
    else:
        return "" if isinstance(value, (str, Path)) or known.type not in (str, Path) else f"{value!r} is not a text."
    if own.above is not None and not value > own.above:
        return f"{value} must be greater than {own.above:g}."
    if own.min is not None and value < own.min:
        return f"{value} is below the minimum {own.min:g}."
    if own.max is not None and value > own.max:
        return f"{value} is above the maximum {own.max:g}."
    return ""
