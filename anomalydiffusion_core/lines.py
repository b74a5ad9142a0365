"""Records that a stopped run resumes from: one JSON value a line, and the plan that they belong to."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import InputError
from .files import check_new, saying_where, write_json
from .plain_json import plain_json, read_json, read_text


def append_lines(path: Path, values: Sequence[Any]) -> None:
    """Append plain values to a file with one JSON value a line; they are on the disk afterwards.

    All or none of them: what a full disk took of them is removed, and the error says which file it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    added = "".join(json.dumps(value, allow_nan=False) + "\n" for value in values).encode()
    with saying_where(path), path.open("ab+", buffering=0) as stream:
        stream.seek(0)
        whole = stream.read()
        end = whole.rfind(b"\n") + 1  # a last line that was cut off goes
        stream.truncate(end)
        try:
            if stream.write(added) != len(added):  # a disk that fills up takes a part
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(stream.fileno())
        except OSError:
            stream.truncate(end)
            raise


def read_lines(path: Path) -> list[Any]:
    """The values of a file with one JSON value a line, but for a last line that was cut off; none without a file."""
    text = read_text(path, "file") if path.is_file() else ""
    try:
        return [plain_json(line) for line in text.split("\n")[:-1] if line.strip()]
    except ValueError as error:
        raise InputError(f"file: {path} has a damaged line ({str(error)[:200]}). Remove it.") from error


def begin_or_resume(path: Path, plan: Mapping[str, Any], folder: Path) -> bool:
    """Write what decides a run's result to ``path`` in ``folder``; True when the same was there, to be resumed.

    Raises InputError, naming the values, when another plan is there, and when ``folder`` holds anything else.
    """
    plain = json.loads(json.dumps(plan, default=str))
    if not path.is_file():
        check_new(folder)
        write_json(path, plain)
        return False
    stored = read_json(path, "out", advice="Remove the folder, or give a new one.")
    differing = sorted(key for key in {*stored, *plain} if stored.get(key) != plain.get(key))
    if differing:
        raise InputError(
            f"out: {folder} was begun with other values of {', '.join(differing)}. Use the same values to resume it, "
            "or give a new folder."
        )
    return True
