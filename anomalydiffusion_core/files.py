"""Files and folders: written whole or not at all, numbered, kept inside a root, and told apart by their content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import InputError

LONGEST_NAME = 120
"""Bytes of a name: numbers and endings follow it, and file systems take 255."""
_FORBIDDEN = frozenset('/\\:*?"<>|')
_RESERVED = frozenset({"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))})


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to: it takes its place when the block ends well, and is removed when it does not.

    Creates the folder, and replaces an existing file. The new file is on the disk before it gets its name, so that a
    power cut does not leave an empty one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_folder(final: Path, replace: bool = False) -> Iterator[Path]:
    """A draft folder to fill: it becomes ``final`` when the block ends well; after an exception nothing is left.

    Raises InputError when ``final`` holds something, unless it may be replaced at the end.
    """
    if not replace:
        check_new(final)
    draft = final.with_name(f".{final.name}.{os.getpid()}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        if final.exists():
            shutil.rmtree(final) if replace else final.rmdir()
        draft.rename(final)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_new(out: Path, name: str = "out") -> None:
    """Raise InputError when a folder for results already holds something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{name}: {out} is not empty, and nothing is overwritten. Give a new folder.")


def contained(root: Path, relative: str, name: str) -> Path:
    """``root / relative`` where that really lies inside ``root``, links followed.

    Raises InputError for an empty or absolute path and for one that leads out.
    """
    text = relative.strip().replace("\\", "/")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    inside = bool(parts) and not text.startswith("/") and ":" not in parts[0] and ".." not in parts
    path = root.joinpath(*parts) if inside else root
    if not inside or not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{name}: '{relative}' is not inside {root}. Give a name like 'anomalydiffusion/run'.")
    return path


def check_name(text: str, name: str) -> str:
    """``text`` where it can name a file or a folder on every system.

    Names of objects, defects, files and prefixes all end as such. Raises InputError that says what is wrong.
    """
    wrong = sorted(set(text) & _FORBIDDEN) + [f"\\x{ord(c):02x}" for c in text if ord(c) < 32 or ord(c) == 127]
    problem = ""
    if not text.strip():
        problem = "is empty"
    elif wrong:
        problem = f"holds {' '.join(dict.fromkeys(wrong))}"
    elif text.startswith("."):
        problem = "is hidden, since it begins with a dot"
    elif text.strip() != text or text.endswith("."):
        problem = "begins or ends with a blank, or ends with a dot"
    elif len(text.encode()) > LONGEST_NAME:
        problem = f"is {len(text.encode())} bytes long, more than {LONGEST_NAME}"
    elif text.split(".")[0].upper() in _RESERVED:
        problem = "is a device on Windows"
    if problem:
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        raise InputError(f"{name}: '{shown}' cannot be a name, it {problem}. Use letters, digits, spaces, - and _.")
    return text


def highest_number(folder: Path, prefix: str = "", suffix: str = "") -> int:
    """The highest N of files called ``<prefix>N<suffix>``, whatever follows a dot; -1 when there are none."""
    numbers = [-1]
    for path in folder.iterdir() if folder.is_dir() else ():
        name = path.name.split(".")[0]
        digits = name.removeprefix(prefix).removesuffix(suffix)
        if name.startswith(prefix) and digits.isdecimal():
            numbers.append(int(digits))
    return max(numbers)


def numbered(parent: Path, stem: str, suffix: str = "") -> Path:
    """The first free ``<stem>_00001<suffix>``, one above the highest number in use."""
    return parent / f"{stem}_{max(highest_number(parent, f'{stem}_'), 0) + 1:05d}{suffix}"


def write_json(path: Path, values: Any) -> None:
    """Write plain values in one step. NaN is refused: it is not JSON."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8", newline="\n")


def append_lines(path: Path, values: Sequence[Any]) -> None:
    """Append plain values to a file with one JSON value a line; they are on the disk afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as stream:
        stream.seek(0)
        whole = stream.read()
        stream.truncate(whole.rfind(b"\n") + 1)  # a last line that was cut off
        stream.write("".join(json.dumps(value, allow_nan=False) + "\n" for value in values).encode())
        stream.flush()
        os.fsync(stream.fileno())


def read_lines(path: Path) -> list[Any]:
    """The values of a file with one JSON value a line, but for a last line that was cut off; none without a file."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.split("\n")[:-1] if line.strip()]


def begin_or_resume(path: Path, plan: Mapping[str, Any], folder: Path) -> bool:
    """Write what decides a run's result to ``path`` in ``folder``; True when the same was there, to be resumed.

    Raises InputError, naming the values, when another plan is there, and when ``folder`` holds anything else.
    """
    plain = json.loads(json.dumps(plan, default=str))
    if not path.is_file():
        check_new(folder)
        write_json(path, plain)
        return False
    stored = json.loads(path.read_text(encoding="utf-8"))
    differing = sorted(key for key in {*stored, *plain} if stored.get(key) != plain.get(key))
    if differing:
        raise InputError(
            f"out: {folder} was begun with other values of {', '.join(differing)}. Use the same values to resume it, "
            "or give a new folder."
        )
    return True


def content_key(*parts: Any) -> str:
    """A hash of plain values (24 hexadecimal digits), the same for the same content."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content. Raises InputError when it does not exist."""
    if not path.is_file():
        raise InputError(f"file: {path} does not exist. Check the name and the folder.")
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def tensor_digest(*values: Tensor | None) -> str:
    """SHA-256 of the shapes and float32 values of tensors."""
    digest = hashlib.sha256()
    for value in values:
        if value is None:
            digest.update(b"none")
        else:
            digest.update(f"{tuple(value.shape)}".encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def folder_fingerprint(folder: Path) -> str:
    """Changes when a file below ``folder`` is added, removed or rewritten; no file is read."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            stat = path.stat()
            digest.update(f"{path.relative_to(folder).as_posix()}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def file_stamp(path: Path | None) -> list[Any]:
    """Changes when a file is replaced: name, size and time; empty for no file."""
    if path is None or not path.is_file():
        return []
    stat = path.stat()
    return [path.name, stat.st_size, stat.st_mtime_ns]
