"""Which form a folder has, decided by its content in a fixed order."""

from __future__ import annotations

from pathlib import Path

from .described import Described
from .mvtec_family import describe_mvtec


def describe(folder: Path) -> Described:
    """The images and labels of one category in any known form."""
    return describe_mvtec(folder)
