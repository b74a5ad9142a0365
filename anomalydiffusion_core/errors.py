"""Errors that are meant to be read by the person who uses the extension.

Every message reads ``<input>: <problem with its value>. <what to do>.`` ComfyUI shows it unchanged in the node.
"""

from __future__ import annotations

from collections.abc import Sequence

PROJECT = "anomalydiffusion"
"""What the classes below call their module: ComfyUI shows it before every message, and an extension's own module name
is the path of its folder."""


class AnomalyDiffusionError(ValueError):
    """Base of all errors this package raises on purpose."""

    __module__ = PROJECT

    def __init_subclass__(cls) -> None:
        cls.__module__ = PROJECT


class InputError(AnomalyDiffusionError):
    """A value given to a function or a node cannot be used."""


class DatasetError(AnomalyDiffusionError):
    """A folder of images and masks is not what it should be. ``problems`` lists every fault that was found."""

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems: tuple[str, ...] = tuple(problems)


class BundleError(AnomalyDiffusionError):
    """A file of embeddings is damaged, of another kind, or made for another model."""


class TrainingError(AnomalyDiffusionError):
    """A training run cannot start or cannot go on."""
