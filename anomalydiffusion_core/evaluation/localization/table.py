"""Evaluate Localization as a whole, from a data set and rows to a report: what node, command and benchmark call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...data.mvtec import AnomalyDataset
from .comparison import Pictures, compare_rows
from .report import MAPS_KEPT, Report, make_report
from .rows import Row
from .settings import LocalizerSettings
from .sources import PairSource, held_out_pictures, normal_pictures, real_pairs
from .store import RunStore
from .summary import Comparison, ComparisonStep


class LocalizationTable:
    """One table: detectors trained on each row, with each seed, and tested on the defects kept for testing.

    Attributes:
        tests: the pictures to test on.
        pictures: those that all rows share.
        comparison: the numbers, once `run` has ended.
    """

    comparison: Comparison

    def __init__(
        self,
        dataset: AnomalyDataset,
        rows: Sequence[Row],
        settings: LocalizerSettings,
        seeds: Sequence[int],
        own: PairSource | None = None,
    ) -> None:
        """`own`: the pairs under test, which the contact sheet shows.

        Raises InputError for bad settings, or when no defect was kept for testing.
        """
        settings.check()
        self.dataset, self.rows, self.settings, self.seeds, self.own = dataset, rows, settings, seeds, own
        self.tests = held_out_pictures(dataset)
        self.pictures = Pictures(real_pairs(dataset), normal_pictures(dataset), self.tests)
        self._kept = self.tests.shown(MAPS_KEPT)
        self._labels = {row.key: row.label for row in rows}

    def label(self, key: str) -> str:
        """Name of a row."""
        return self._labels[key]

    def preview_picture(self) -> tuple[Tensor, Tensor]:
        """A test picture [3,s,s] and its mask [1,s,s], to look at while it runs; it chooses nothing."""
        return self.tests.picture(self._kept[0], self.settings.size)

    def run(
        self,
        store: RunStore,
        on_step: Callable[[ComparisonStep], None] | None = None,
        on_test: Callable[[], None] | None = None,
        device: torch.device | str = "cpu",
        **more: Any,
    ) -> Report:
        """Take what is known from the store, train and test the rest, and report; see `compare_rows`.

        `more`: further entries of the report's figures.
        """
        self.comparison = compare_rows(
            self.rows, self.pictures, self.settings, self.seeds, self._kept, store, on_step, on_test, device
        )
        return make_report(self.comparison, self.tests, self._kept, self.dataset, self.own, **more)
