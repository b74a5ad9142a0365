"""What lies on the disk, looked at within limits: a name that somebody typed may mean the whole disk, or nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .errors import InputError

MOST_FILES = 200_000
"""Files and folders that are looked at below one folder."""


def is_folder(path: Path) -> bool:
    """Whether a folder is there; False for every name that cannot be one (too long, with a NUL, a circle of links)."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Whether a plain file is there, not a pipe or a device; False for every name that cannot be one."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def files_below(folder: Path, name: str, *endings: str) -> list[Path]:
    """The plain files below a folder whose names end so, all for no ending, in the order of their paths.

    Links to folders are not followed. Raises InputError, beginning with ``name``, when there is more below the folder
    than anybody means.
    """
    found = [path for path in walk_below(folder, name) if not endings or path.name.endswith(endings)]
    return sorted(path for path in found if is_file(path))


def walk_below(folder: Path, name: str = "") -> Iterator[Path]:
    """All that is no folder below one, links to folders not followed.

    With a name more than MOST_FILES are an error, without one the rest is left out.
    """
    seen = 0
    for base, inner, files in os.walk(folder):
        inner.sort()
        seen += len(inner) + len(files)
        if seen > MOST_FILES:
            if name:
                raise InputError(f"{name}: {folder} holds more than {MOST_FILES} files. Give a folder further inside.")
            return
        yield from (Path(base, file) for file in sorted(files))


def folder_fingerprint(folder: Path) -> str:
    """Changes when a file below ``folder`` is added, removed or rewritten; no file is read.

    Of a folder with more than MOST_FILES only the first count: an execution will refuse it by name.
    """
    digest = hashlib.sha256()
    for path in sorted(walk_below(folder)):
        try:
            stat = path.stat()
        except (OSError, ValueError):
            continue  # a link to nothing, or gone meanwhile
        if is_file(path):
            digest.update(f"{path.relative_to(folder).as_posix()}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def file_stamp(path: Path | None) -> list[Any]:
    """Changes when a file is replaced: name, size and time; empty for no file."""
    if path is None or not is_file(path):
        return []
    stat = path.stat()
    return [path.name, stat.st_size, stat.st_mtime_ns]


def confined(path: Path, roots: Sequence[Path] | None, name: str) -> Path:
    """``path`` where it lies below one of the roots, links followed; any path for None.

    Raises InputError that says the same whether or not there is something.
    """
    if roots is None:
        return path
    try:
        real = path.resolve()
        inside = any(real.is_relative_to(root.resolve()) for root in roots)
    except (OSError, ValueError, RuntimeError):
        inside = False
    if not inside:
        raise InputError(
            f"{name}: lies outside of the folders that this server reads. Use its input or output folder, or ask its "
            "owner."
        )
    return path
