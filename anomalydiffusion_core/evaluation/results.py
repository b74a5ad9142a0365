"""Evaluations whose result is one folder: written once, and read again when the same is asked for."""

from __future__ import annotations

import csv
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..data.images import write_image
from ..errors import InputError
from ..files import NumberedDraft, check_new, check_writable, new_folder, new_numbered_folder, write_json
from ..plain_json import read_json
from ..progress import MakeProgress, Quiet
from .tables.records import FILE_NAME, ResultRecord, write_records

logger = logging.getLogger(__name__)
CONTENT_KEY = "content_key"
TABLE = "table.md"


@dataclass(frozen=True)
class ResultPlace:
    """Where results are written: the folder ``path`` itself, or with ``number`` the next ``path_00001``."""

    path: Path
    number: bool = False

    def find(self, name: str, key: str) -> tuple[Path, dict[str, Any]] | None:
        """The newest folder here whose JSON file ``name`` holds this content key, and its values."""
        folders = [self.path]
        if self.number:
            there = self.path.parent.glob(f"{self.path.name}_*") if self.path.parent.is_dir() else ()
            folders = sorted((path for path in there if path.is_dir()), reverse=True)
        for folder in folders:
            try:
                stored = read_json(folder / name, "folder")
            except InputError:
                continue  # another kind of folder, or one that somebody changed
            if stored.get(CONTENT_KEY) == key:
                return folder, stored
        return None

    def check(self) -> None:
        """Raise InputError when results could not be written here."""
        if not self.number:
            check_new(self.path)
        check_writable(self.path.parent, "folder")

    @contextmanager
    def new(self) -> Iterator[NumberedDraft]:
        """A draft folder to fill, and what it becomes when the block ends well; after an exception nothing is left."""
        if self.number:
            with new_numbered_folder(self.path.parent, self.path.name) as numbered:
                yield numbered
        else:
            with new_folder(self.path) as draft:
                yield NumberedDraft(draft, self.path)


@dataclass(frozen=True)
class Measured:
    """What an evaluation found.

    figures: plain values for JSON. lines: those of its CSV, the first is the head. image: [3, H, W]. record: for
    Results Table; None where the numbers do not belong there. more: further records.
    """

    figures: dict[str, Any]
    lines: Sequence[Sequence[Any]]
    image: Tensor
    record: ResultRecord | None
    more: Sequence[ResultRecord | None] = ()


@dataclass(frozen=True)
class Result:
    """A written result; ``again``: it was there before and was read again."""

    folder: Path
    figures: dict[str, Any]
    table: str
    image: Path
    again: bool = False


class Evaluation(ABC):
    """An evaluation that writes ``<kind>.json``, ``<kind>.csv``, ``table.md``, an image and ``results.json``.

    Attributes:
        kind: what is evaluated.
        image: name of the image's file.
        key: changes with everything the result depends on.
    """

    kind: ClassVar[str]
    image: ClassVar[str]
    key: str

    @abstractmethod
    def measure(self, progress: MakeProgress, device: torch.device | str) -> Measured:
        """Compute everything. Interrupting it from ``progress`` leaves nothing behind."""

    @abstractmethod
    def table(self, figures: dict[str, Any]) -> str:
        """The result as Markdown."""

    def result(
        self, place: ResultPlace, progress: MakeProgress = Quiet, device: torch.device | str = "cpu", **more: Any
    ) -> Result:
        """The result of this evaluation from an earlier run at this place, or computed and written there.

        ``more``: further entries of the figures. Raises InputError for a place in use, and what `measure` refuses.
        """
        found = place.find(f"{self.kind}.json", self.key)
        if found is not None:
            try:
                return self._result(*found, again=True)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                logger.warning("%s was changed and is not used (%r); the evaluation is made again", found[0], error)
        place.check()
        measured = self.measure(progress, device)
        figures = {**measured.figures, **more, CONTENT_KEY: self.key}
        with place.new() as made:
            draft = made.path
            write_json(draft / f"{self.kind}.json", figures)
            (draft / TABLE).write_text(self.table(figures) + "\n", encoding="utf-8", newline="\n")
            with (draft / f"{self.kind}.csv").open("w", encoding="utf-8", newline="") as stream:
                csv.writer(stream, lineterminator="\n").writerows(measured.lines)
            write_image(draft / self.image, measured.image)
            records = [record for record in (measured.record, *measured.more) if record is not None]
            if records:
                write_records(draft / FILE_NAME, records)
        return self._result(made.final, figures)

    def _result(self, folder: Path, figures: dict[str, Any], again: bool = False) -> Result:
        return Result(folder, figures, self.table(figures), folder / self.image, again)
