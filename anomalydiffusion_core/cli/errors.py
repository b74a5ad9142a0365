"""How commands end: errors that are meant for the user as one message, and an interrupt cleanly."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import typer

from ..errors import AnomalyDiffusionError


def fail(message: str) -> NoReturn:
    """End the command with a message for the user."""
    # Names of files may hold bytes that are no text.
    shown = message.encode("utf-8", "backslashreplace").decode("utf-8")
    typer.echo(f"error: {shown}", err=True)
    raise typer.Exit(1)


@contextmanager
def plain_errors(*more: type[Exception]) -> Iterator[None]:
    """Show errors that are meant for the user, and ``more``, as one message; end on Ctrl-C and SIGTERM cleanly."""

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    expected: tuple[type[Exception], ...] = (AnomalyDiffusionError, *more)
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except expected as error:
        fail(str(error))
    except OSError as error:  # a full disk, one that is read-only, a folder that went away
        place = f"{error.filename}: " if error.filename else ""
        fail(f"{place}{error.strerror or error}. Free some space, check its permissions, or give another folder.")
    except MemoryError:
        fail("memory: it does not suffice. Lower sizes, batch_size or the number of images.")
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        raise typer.Exit(130) from None
