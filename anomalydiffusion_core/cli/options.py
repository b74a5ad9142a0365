"""Command line options made of the core's settings classes, so that names, ranges and texts are written once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Annotated, Any

import typer

from ..errors import InputError
from ..options import Declared, build, declared
from .errors import fail


def with_settings(*, panels: dict[str, str] | None = None, leave_out: Collection[str] = (), **classes: type) -> Any:
    """Decorate a command: its parameters named in ``classes`` become the options of these settings classes.

    The command gets an instance for each. leave_out: names of options that keep their defaults, or that the command
    itself declares and sets with ``dataclasses.replace``. panels: parameter -> heading of its options in --help. An
    option that two classes share is given once and serves both.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(command, eval_str=True)
        parameters = {name: one for name, one in own.parameters.items() if name not in classes}
        for parameter, settings in classes.items():
            for name, known in declared(settings).items():
                if name not in leave_out and name not in parameters:
                    parameters[name] = _parameter(known, (panels or {}).get(parameter))

        @functools.wraps(command)
        def run(**values: Any) -> Any:
            made = {}
            try:
                for parameter, settings in classes.items():
                    names = set(declared(settings)) - set(leave_out)
                    made[parameter] = build(settings, {name: values[name] for name in names if name in values})
            except InputError as error:
                fail(str(error))
            shared = {name: value for name, value in values.items() if name in own.parameters}
            return command(**shared, **made)

        run.__signature__ = own.replace(parameters=list(parameters.values()))  # type: ignore[attr-defined]
        run.__annotations__ = {name: one.annotation for name, one in parameters.items()}
        del run.__wrapped__  # typer would read the signature of the command inside
        return run

    return decorate


def _parameter(known: Declared, panel: str | None) -> inspect.Parameter:
    own = known.option
    text = f"{own.help} One of: {', '.join(own.choices)}." if own.choices else own.help
    limits: dict[str, Any] = {"min": own.min, "max": own.max} if known.type in (int, float) else {}
    kind: Any = known.type if known.default is not None else known.type | None
    option = typer.Option(help=text, rich_help_panel=panel, **limits)
    return inspect.Parameter(
        known.name, inspect.Parameter.KEYWORD_ONLY, default=known.default, annotation=Annotated[kind, option]
    )
