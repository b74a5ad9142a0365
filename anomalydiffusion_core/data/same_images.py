"""Images that occur more than once in a data set: files of the same content."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .pairing import NAMES_SHOWN
from .structure import content_mark

GROUPS_SHOWN = 5


def same_images(paths: Iterable[Path], known: Mapping[Path, str]) -> dict[Path, str]:
    """For each file that has the content of another one, a mark that both share. Only files of one size are read.

    known: marks of `content_mark` that need not be made again.
    """
    by_size: dict[int, list[Path]] = {}
    for path in dict.fromkeys(paths):
        by_size.setdefault(path.stat().st_size, []).append(path)
    marks = {
        path: known.get(path) or content_mark(path) for group in by_size.values() if len(group) > 1 for path in group
    }
    counts: dict[str, int] = {}
    for mark in marks.values():
        counts[mark] = counts.get(mark, 0) + 1
    return {path: mark for path, mark in marks.items() if counts[mark] > 1}


def shared_marks(images: Mapping[str, Sequence[Path]], known: Mapping[Path, str]) -> dict[Path, str]:
    """Marks, as of `same_images`, of the images that several types have. images: those of each type."""
    types: dict[str, set[str]] = {}
    marks = same_images((path for paths in images.values() for path in paths), known)
    of_path: dict[Path, set[str]] = {}
    for kind, paths in images.items():
        for path in paths:
            of_path.setdefault(path, set()).add(kind)
            types.setdefault(marks.get(path, str(path)), set()).add(kind)
    return {path: mark for path in of_path if len(types[mark := marks.get(path, str(path))]) > 1}


def duplicate_notices(files: Sequence[tuple[str, Path]], base: Path, known: Mapping[Path, str]) -> list[str]:
    """Identical images in different roles: a defect among the normal images, or a training image in the test set.

    files: (role, image); roles of defect images are ``object/defect train`` or ``object/defect test``. One image of
    two types is no fault as long as both train or both test.
    """
    marks = same_images((path for _, path in files), known)
    groups: dict[str, list[tuple[str, Path]]] = {}
    for role, path in files:
        if path in marks:
            groups.setdefault(marks[path], []).append((role, path))
    texts = []
    for group in groups.values():
        roles = {role for role, _ in group}
        kinds = {role.rpartition(" ")[2] for role in roles if "/" in role}
        if len(roles) > 1 and not (len(kinds) == 1 and all("/" in role for role in roles)):
            names = list(dict.fromkeys(path.relative_to(base).as_posix() for _, path in group))
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            texts.append(f"the same image twice: {' = '.join(names[:NAMES_SHOWN])}{more}")
    if len(texts) > GROUPS_SHOWN:
        texts[GROUPS_SHOWN:] = [f"the same image twice: {len(texts) - GROUPS_SHOWN} more groups of files"]
    return texts
