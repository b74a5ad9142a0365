"""The second seam, beside the Denoiser: a text encoder into whose prompt learned token embeddings are put."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor


class PromptEncoder(Protocol):
    """A frozen text encoder with one prompt that has a placeholder for learned tokens.

    Tokens are of the width of the encoder's own token embeddings, the context of the width the model wants.
    """

    template: str
    placeholder: str

    @property
    def width(self) -> int:
        """Width of a token embedding (768 for Stable Diffusion 1.5)."""
        ...

    def check_room(self, count: int) -> None:
        """Raise InputError unless ``count`` tokens fit into the prompt's window."""
        ...

    def contexts(self, rows: Tensor) -> Tensor:
        """Tokens [B, n, width] in place of the placeholder to context [B, L, context width].

        Differentiable with respect to ``rows`` inside ``training_mode``. Each row of the result depends on its own
        tokens only.
        """
        ...

    def columns(self, count: int) -> Tensor:
        """Bool [L], true for the rows of a context that come from its ``count`` tokens."""
        ...

    def training_mode(self) -> AbstractContextManager[None]:
        """As of a Denoiser: gradients flow through the frozen weights, all is as before afterwards."""
        ...

    def fingerprint(self) -> str:
        """Tells one text encoder from another."""
        ...
