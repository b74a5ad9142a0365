"""ComfyUI's folders as evaluations see them: weights, finished runs, generated images and results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import folder_paths

from ...anomalydiffusion_core.errors import InputError
from ...anomalydiffusion_core.lazy_imports import later
from ...anomalydiffusion_core.reading import file_stamp, folder_fingerprint, is_file
from . import folders

if TYPE_CHECKING:
    from ...anomalydiffusion_core.evaluation import results
else:
    results = later("...anomalydiffusion_core.evaluation.results", __package__)

RUNS = "anomalydiffusion/evaluation_runs"
"""Folder of finished and unfinished runs inside the output folder."""


def runs_folder() -> Path:
    """Where runs are kept."""
    return folders.output_path(RUNS)


def weights_file(text: str) -> Path:
    """A file of weights: absolute, or relative to models/anomalydiffusion. Raises InputError when there is none."""
    root = Path(folder_paths.get_folder_paths(folders.BUNDLES)[0])
    cleaned = text.strip().strip("\"'")
    candidates = folders.candidates_of(cleaned, "weights", root)
    for path in candidates:
        if is_file(path):
            return path
    raise InputError(
        f"weights: {str(candidates[-1])[:400]} does not exist. Give a file, absolute or relative to {root}."
    )


def check_readable(text: str, name: str) -> None:
    """Raise InputError for a path that the owner of this server does not let anybody read; "" is none."""
    if text.strip():
        folders.candidates_of(text.strip(), name, Path(folder_paths.get_folder_paths(folders.BUNDLES)[0]))


def readable_folder(text: str, name: str = "pairs") -> Path:
    """A folder of pairs: absolute, or relative to ComfyUI's output folder. Raises InputError when there is none."""
    return folders.readable_folder(text, name, folders.output_root())


def readable_folders(text: str, name: str = "pairs") -> list[Path]:
    """The folders of a text with one folder per line, see `readable_folder`."""
    lines = [line for line in text.splitlines() if line.strip()] or [text]
    return [readable_folder(line, name) for line in lines]


def fingerprint(folders_of: Callable[[], Iterable[str]], files_of: Callable[[], Iterable[str]] = lambda: ()) -> str:
    """Changes with the content of folders of pairs and with files of weights; "" while one cannot be read.

    An error belongs into execute, where the user sees it.
    """
    try:
        prints = [folder_fingerprint(readable_folder(text)) for text in folders_of() if text.strip()]
        return "|".join([*prints, *(repr(file_stamp(weights_file(text))) for text in files_of() if text.strip())])
    except InputError:
        return ""


def result_place(prefix: str) -> results.ResultPlace:
    """Numbered folders in ComfyUI's output folder. Raises InputError for a name that leads out of it."""
    return results.ResultPlace(folders.output_path(prefix), number=True)


def writable_folder(text: str, name: str = "pairs") -> Path:
    """A folder of pairs whose manifest may be changed. Raises InputError unless it lies in ComfyUI's output folder."""
    folder = readable_folder(text, name)
    if not folder.resolve().is_relative_to(folders.output_root().resolve()):
        raise InputError(f"{name}: {folder} lies outside of {folders.output_root()}. Nothing is written elsewhere.")
    return folder


def decisions_file(text: str) -> Path:
    """A file of decisions: absolute, or relative to ComfyUI's input folder. Raises InputError when there is none."""
    root = Path(folder_paths.get_input_directory()).absolute()
    cleaned = text.strip().strip("\"'")
    for path in folders.candidates_of(cleaned, "decisions", root):
        if is_file(path):
            return path
    raise InputError(f"decisions: {cleaned[:200]!r} does not exist. Give a file, absolute or relative to {root}.")


def file_state(text: object) -> str:
    """Changes with a file of decisions; "" where it is not known yet or not there."""
    try:
        return repr(file_stamp(decisions_file(text))) if isinstance(text, str) and text.strip() else ""
    except InputError:
        return ""
