"""Files and folders: written whole or not at all, numbered, kept inside a root, and told apart by their content."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import InputError
from .reading import is_file

OLD_DRAFT = 7 * 86400.0
"""Age in seconds of a draft that counts as left behind when its process cannot be asked about."""
_REFUSALS = (errno.ENOSPC, errno.EROFS, errno.EFBIG, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC))
MOST_FOLDERS = 16
"""Folders inside one another that a name may ask for."""


def owner_tag() -> str:
    """Tells this process from all others that write to the same disk: machine, number and start of the process."""
    import psutil

    machine = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
    return f"{machine}-{os.getpid()}-{int(psutil.Process().create_time())}"


def is_left_behind(path: Path) -> bool:
    """Whether the process that a draft's name tells of is gone; of another machine's drafts, whether it is old."""
    import psutil

    found = re.search(r"\.([0-9a-f]{6})-(\d+)-(\d+)\.", path.name)
    if found is None or found[1] != owner_tag().split("-")[0]:
        with suppress(OSError):
            return time.time() - path.lstat().st_mtime > OLD_DRAFT
        return False
    try:
        return abs(psutil.Process(int(found[2])).create_time() - int(found[3])) > 2
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def draft_of(path: Path) -> Path:
    """A name beside ``path`` for what will become it: hidden, short however long that is, with its owner in it."""
    return path.with_name(f".{path.name[:20]}.{owner_tag()}.{uuid.uuid4().hex[:8]}.partial")


def sweep(folder: Path) -> list[Path]:
    """Remove the drafts that processes which are gone left in a folder; returns what was removed."""
    removed = []
    with suppress(OSError):
        for path in sorted(folder.glob(".*.partial")):
            if is_left_behind(path):
                remove(path)
                removed.append(path)
    return removed


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it; nothing happens when it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


LONGEST_NAME = 120
"""Bytes of a name: numbers and endings follow it, and file systems take 255."""
_FORBIDDEN = frozenset('/\\:*?"<>|')
_RESERVED = frozenset({"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))})


@contextmanager
def saying_where(path: Path) -> Iterator[None]:
    """Name the file in the error of a disk that is full or read-only, which does not say itself where it is."""
    try:
        yield
    except OSError as error:
        if error.errno in _REFUSALS and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to: it takes its place when the block ends well, and is removed when it does not.

    Creates the folder, and replaces an existing file. The new file is on the disk before it gets its name, so that a
    power cut does not leave an empty one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = draft_of(path)
    try:
        with saying_where(path):
            yield partial
            _to_disk(partial)
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_new(path: Path, content: bytes) -> None:
    """Write a file that must not exist yet, whole or not at all. Raises FileExistsError, and OSError of the disk."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent)) from error
    sweep(path.parent)
    partial = draft_of(path)
    try:
        with saying_where(path):
            partial.write_bytes(content)
            _to_disk(partial)
        try:
            os.link(partial, path)  # unlike a renaming, it never replaces what another process wrote meanwhile
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            path.open("xb").close()
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


@contextmanager
def new_folder(final: Path, replace: bool = False) -> Iterator[Path]:
    """A draft folder to fill: it becomes ``final`` when the block ends well; after an exception nothing is left.

    Raises InputError when ``final`` holds something, unless it may be replaced at the end, and when nothing can be
    written there.
    """
    if not replace:
        check_new(final)
    draft = _draft_folder(final)
    try:
        yield draft
        if replace and final.exists():
            before = draft_of(final)
            final.rename(before)
            draft.rename(final)
            remove(before)
        else:
            try:
                _rename_new(draft, final)
            except FileExistsError:
                check_new(final)
                raise
    except OSError as error:
        _check_disk(error, final)
        raise
    finally:
        remove(draft)


@dataclass
class NumberedDraft:
    """A folder that is being written: ``path`` now, ``final`` once it is finished."""

    path: Path
    final: Path


@contextmanager
def new_numbered_folder(parent: Path, stem: str, content_key: str = "") -> Iterator[NumberedDraft]:
    """A draft folder to fill: it becomes the next free ``<stem>_00001`` at the end, after an exception nothing.

    The number shows at the end: several processes may write here. content_key: what ``find_keyed_folder`` finds it by.
    Raises InputError when nothing can be written there.
    """
    made = NumberedDraft(_draft_folder(parent / stem), numbered(parent, stem))
    try:
        yield made
        if content_key:
            (made.path / KEY_FILE).write_text(content_key + "\n", encoding="ascii")
        while True:
            made.final = numbered(parent, stem)
            try:
                _rename_new(made.path, made.final)
                return
            except FileExistsError:
                continue
    except OSError as error:
        _check_disk(error, parent)
        raise
    finally:
        remove(made.path)


KEY_FILE = ".content_key"


def find_keyed_folder(parent: Path, stem: str, content_key: str) -> Path | None:
    """The newest ``<stem>_00001`` that was written for the same content."""
    folders = sorted(parent.glob(f"{glob.escape(stem)}_*"), reverse=True) if parent.is_dir() else []
    for folder in folders:
        with suppress(OSError, ValueError):
            path = folder / KEY_FILE
            if path.is_file() and path.read_text(encoding="ascii").strip() == content_key:
                return folder
    return None


def _draft_folder(final: Path) -> Path:
    draft = draft_of(final)
    try:
        draft.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"folder: nothing can be written to {final.parent} ({error.strerror}). Give another folder."
        ) from error
    sweep(final.parent)
    return draft


def _check_disk(error: OSError, place: Path) -> None:
    """Raise InputError, which says where, for an error of a disk that is full or read-only."""
    if error.errno in _REFUSALS:
        raise InputError(f"folder: {place} cannot be written ({error.strerror}). Free some space.") from error


def _rename_new(draft: Path, final: Path) -> None:
    """Rename a folder to one that is absent or empty. Raises FileExistsError when another process was faster."""
    try:
        if os.name == "nt" and final.is_dir():
            final.rmdir()
        draft.rename(final)
    except OSError as error:
        if final.exists():
            raise FileExistsError(error.errno, "appeared meanwhile", str(final)) from error
        raise


def check_writable(folder: Path, name: str) -> None:
    """Raise InputError, beginning with ``name``, when no file can be made in a folder, or where it will be made."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    try:
        with tempfile.TemporaryFile(dir=there) as stream:
            stream.write(b"0")
    except OSError as error:
        raise InputError(f"{name}: cannot write to {folder} ({error.strerror}). Give another folder.") from error


def check_new(out: Path, name: str = "out") -> None:
    """Raise InputError when a folder for results already holds something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{name}: {out} is not empty, and nothing is overwritten. Give a new folder.")


def contained(root: Path, relative: str, name: str) -> Path:
    """``root / relative`` where that really lies inside ``root``, links followed, and every part is a usable name.

    Raises InputError for an empty or absolute path, for one that leads out, and as ``check_name``.
    """
    text = relative.strip().replace("\\", "/")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    shown = relative if len(relative) <= 60 else f"{relative[:60]}..."
    inside = bool(parts) and not text.startswith("/") and ":" not in parts[0] and ".." not in parts
    if not inside:
        raise InputError(f"{name}: {shown!r} is not inside {root}. Give a name like 'anomalydiffusion/run'.")
    if len(parts) > MOST_FOLDERS:
        raise InputError(f"{name}: {len(parts)} folders inside one another. Give at most {MOST_FOLDERS}.")
    for part in parts:
        check_name(part, name)
    path = root.joinpath(*parts)
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError) as error:  # links in a circle, a path that is too long
        raise InputError(f"{name}: {shown!r} cannot be used ({error}). Give a shorter name.") from error
    if not inside:
        raise InputError(f"{name}: {shown!r} is not inside {root}. Give a name like 'anomalydiffusion/run'.")
    return path


def check_name(text: str, name: str) -> str:
    """``text`` where it can name a file or a folder on every system.

    Names of objects, defects, files and prefixes all end as such. Raises InputError that says what is wrong.
    """
    wrong = sorted(set(text) & _FORBIDDEN) + [f"\\x{ord(c):02x}" for c in text if ord(c) < 32 or ord(c) == 127]
    problem, size = "", len(text.encode("utf-8", "surrogatepass"))
    if not text.strip():
        problem = "is empty"
    elif wrong:
        problem = f"holds {' '.join(dict.fromkeys(wrong))}"
    elif text.startswith("."):
        problem = "is hidden, since it begins with a dot"
    elif text.strip() != text or text.endswith("."):
        problem = "begins or ends with a blank, or ends with a dot"
    elif any("\ud800" <= character <= "\udfff" for character in text):
        problem = "holds half a character"
    elif size > LONGEST_NAME:
        problem = f"is {size} bytes long, more than {LONGEST_NAME}"
    elif text.split(".")[0].upper() in _RESERVED:
        problem = "is a device on Windows"
    if problem:
        shown = ascii(text) if "half" in problem else f"'{text}'" if len(text) <= 60 else f"'{text[:57]}...'"
        raise InputError(f"{name}: {shown} cannot be a name, it {problem}. Use letters, digits, spaces, - and _.")
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


def content_key(*parts: Any) -> str:
    """A hash of plain values (24 hexadecimal digits), the same for the same content."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content. Raises InputError when it does not exist."""
    if not is_file(path):
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
