"""The data set of a command, with what was found in it: every command says the same of it as the node."""

from __future__ import annotations

from pathlib import Path

import typer

from ..data.mvtec import AnomalyDataset, load_dataset
from ..data.splits import SplitSettings


def load_and_show(data: Path, category: str, splitting: SplitSettings) -> AnomalyDataset:
    """A checked category; its split and notices go to the error stream. Raises as `load_dataset`."""
    dataset = load_dataset(data, category, splitting)
    typer.echo(dataset.describe(), err=True)
    return dataset
