"""The data set of a command, with what was found in it: every command says the same of it as the node."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from ..data.merging import merge_datasets
from ..data.mvtec import AnomalyDataset, load_dataset
from ..data.splits import SplitSettings
from ..data.training import scale_lines


def load_and_show(data: Path, category: str | Sequence[str], splitting: SplitSettings) -> AnomalyDataset:
    """A checked category, or several as one data set; splits and notices go to the error stream.

    Raises as `load_dataset` and `merge_datasets`.
    """
    names = [category] if isinstance(category, str) else category
    found = [load_dataset(data, name, splitting) for name in names]
    dataset = found[0] if len(found) == 1 else merge_datasets(found)
    typer.echo("\n".join([dataset.describe(), *scale_lines(dataset)]), err=True)
    return dataset
