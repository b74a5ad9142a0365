"""Where trainings keep their files: the protocol that ComfyUI's model folders and a plain folder implement."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol

from .errors import BundleError, InputError
from .files import check_writable, contained, numbered, write_new
from .reading import files_below
from .weights import parsed_metadata, read_header

logger = logging.getLogger(__name__)
METADATA_KEY = "anomalydiffusion"
"""Entry of a safetensors file's metadata that holds our JSON."""


class Store(Protocol):
    """Numbered ``.safetensors`` files with a content key in their metadata, and states of unfinished trainings."""

    def new_path(self, name: str) -> Path:
        """``<name>_00001.safetensors``, not in use yet. Raises InputError for a name that leads out of the store."""
        ...

    def find(self, content_key: str) -> Path | None:
        """The file that a training of the same content wrote."""
        ...

    def state_path(self, identity: str) -> Path:
        """Where the training of this identity keeps its state until it is finished; hidden from lists of files."""
        ...

    def written(self, path: Path) -> None:
        """Called after a file was written."""
        ...


class FolderStore:
    """A store in one folder. Raises InputError on creation when the folder cannot be written to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"out: cannot write to {folder} ({error.strerror}). Give another folder.") from error
        check_writable(folder, "out")

    def new_path(self, name: str) -> Path:
        """The first free ``<name>_00001.safetensors`` of the folder."""
        path = contained(self.folder, name, "name")
        return numbered(path.parent, path.name, ".safetensors")

    def find(self, content_key: str) -> Path | None:
        """The file below the folder with this content key; damaged files are passed over."""
        return find_by_key(files_below(self.folder, "out", ".safetensors"), content_key)

    def state_path(self, identity: str) -> Path:
        """A file in the hidden folder ``.training``."""
        return self.folder / ".training" / f"{identity}.pt"

    def written(self, path: Path) -> None:
        """Nothing is cached."""


def save_numbered(store: Store, name: str, content: bytes) -> Path:
    """Write a file under the first free number, also when other processes take numbers at the same time.

    Raises InputError for a bad name, and when the disk refuses.
    """
    while True:
        path = store.new_path(name)
        try:
            write_new(path, content)
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(
                f"name: {path} cannot be written ({error.strerror}). Check the folder and the free space."
            ) from error
        store.written(path)
        return path


def find_by_key(paths: list[Path], content_key: str) -> Path | None:
    """The first of some safetensors files whose metadata holds this content key. Damaged files are passed over."""
    return next((path for path in paths if stored_metadata(path).get("content_key") == content_key), None)


def stored_metadata(path: Path) -> dict[str, Any]:
    """Our metadata of a safetensors file; empty for a damaged file, a file of another program, and no file at all."""
    try:
        return parsed_metadata(path, read_header(path).metadata.get(METADATA_KEY, "{}"))
    except BundleError as error:
        logger.warning("passed over: %s", error)
        return {}
