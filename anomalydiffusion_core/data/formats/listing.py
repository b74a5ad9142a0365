"""All files of a folder, read once: images by name, label files by what is in them, and a summary for messages."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from ...errors import DatasetError
from ..pairing import IMAGE_SUFFIXES
from ..splits import natural_key

MOST_FILES = 200_000
SHOWN_FOLDERS = 12


class Listing:
    """The visible files below a folder in natural order; links to folders are followed once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = _walk(folder)
        self._parsed: dict[Path, Any] = {}

    @cached_property
    def images(self) -> list[Path]:
        """All image files."""
        return self.of(*IMAGE_SUFFIXES)

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in self.images:
            for name in {path.name.casefold(), path.stem.casefold()}:
                found.setdefault(name, []).append(path)
        return found

    def of(self, *suffixes: str) -> list[Path]:
        """Files with one of these endings."""
        return [path for path in self.files if path.suffix.lower() in suffixes]

    def relative(self, path: Path) -> str:
        """A path for messages: from the folder, with "/"."""
        return path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else path.as_posix()

    def json(self, path: Path) -> Any:
        """The content of a JSON file, kept for a second reader. Raises DatasetError for a damaged one."""
        if path not in self._parsed:
            try:
                self._parsed[path] = json.loads(path.read_text(encoding="utf-8-sig"))
            except (OSError, ValueError, RecursionError) as error:
                raise DatasetError(f"{path}: not a readable JSON file ({error}). Export it again.") from error
        return self._parsed[path]

    def lines(self, path: Path) -> list[str]:
        """The lines of a text file without blanks around them. Raises DatasetError for one that is no text."""
        try:
            return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"{path}: not a readable text file ({error}). Export it again.") from error

    def find_image(self, name: str, near: Sequence[Path]) -> Path | None:
        """The image that a label file means by ``name``: beside it, or where most of its path agrees.

        Other machines' folders in front of the name do not matter, nor does another suffix. near: folders to look in
        first. None when there is no such image below the folder, or several that fit equally well.
        """
        parts = PurePosixPath(name.strip().replace("\\", "/")).parts
        if not parts:
            return None
        same = self._by_name.get(parts[-1].casefold()) or self._by_name.get(
            PurePosixPath(parts[-1]).stem.casefold(), []
        )
        for folder in near:
            wanted = Path(os.path.normpath(folder.joinpath(*parts)))
            if wanted in same:
                return wanted
        fitting = [_agreement(path, parts) for path in same]
        best = [path for path, fit in zip(same, fitting, strict=True) if fit == max(fitting)]
        return best[0] if len(best) == 1 else None

    def summary(self) -> str:
        """Which folders hold how many files of which kind, for a message about a layout that is not known."""
        counts: dict[str, dict[str, int]] = {}
        for path in self.files:
            own = counts.setdefault(self.relative(path.parent) + "/", {})
            suffix = path.suffix.lower() or "no suffix"
            own[suffix] = own.get(suffix, 0) + 1
        listed = [
            f"{'the folder itself' if name == './' else name} ({', '.join(f'{n} {kind}' for kind, n in own.items())})"
            for name, own in sorted(counts.items(), key=lambda entry: natural_key(entry[0]))
        ]
        more = f" and {len(listed) - SHOWN_FOLDERS} more folders" if len(listed) > SHOWN_FOLDERS else ""
        return "; ".join(listed[:SHOWN_FOLDERS]) + more or "no files"


def _agreement(path: Path, parts: Sequence[str]) -> int:
    own = [part.casefold() for part in path.parts]
    wanted = [part.casefold() for part in parts]
    fit = 0
    while fit < min(len(own), len(wanted)) and own[-1 - fit] == wanted[-1 - fit]:
        fit += 1
    return fit


def _walk(folder: Path) -> list[Path]:
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted((name for name in folders if not name.startswith((".", "__"))), key=natural_key)
        found += [Path(place, name) for name in sorted(files, key=natural_key) if not name.startswith(".")]
        if len(found) > MOST_FILES:
            raise DatasetError(
                f"folder: {folder} holds more than {MOST_FILES} files. Give the folder of one category alone."
            )
    return found
