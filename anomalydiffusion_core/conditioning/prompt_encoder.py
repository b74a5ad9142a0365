"""The second seam, beside the Denoiser: a text encoder, and a prompt whose placeholder learned tokens replace."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from .template import DEFAULT_PLACEHOLDER, DEFAULT_TEMPLATE, Template


class TextEncoder(Protocol):
    """A frozen text encoder: ComfyUI's CLIP, or the one of a diffusers folder."""

    @property
    def width(self) -> int:
        """Width of a token embedding, and of the context (768 for Stable Diffusion 1.5)."""
        ...

    def parse(self, template: str, placeholder: str) -> Template:
        """A prompt with the placeholder once. Raises InputError that says what is wrong."""
        ...

    def words(self, text: str) -> Tensor:
        """The encoder's own token embeddings [n, width] of a text. Raises InputError for a text without words."""
        ...

    def contexts(self, template: Template, rows: Tensor) -> Tensor:
        """Context [B, room, width] of ``rows`` [B, n, width], each in place of the template's placeholder.

        Differentiable with respect to ``rows`` inside ``training_mode``. Each row of the result depends on its own
        tokens only. Raises InputError when they do not fit.
        """
        ...

    def training_mode(self) -> AbstractContextManager[None]:
        """As of a Denoiser: gradients flow through the frozen weights, all is as before afterwards."""
        ...

    def fingerprint(self, like: str = "") -> str:
        """Tells one text encoder from another; the same for every host and number format."""
        ...

    def adaptation(self) -> str:
        """Tells what a LoRA adds to it, "" for nothing."""
        ...


class Prompt:
    """One prompt of a text encoder, whose placeholder learned tokens replace.

    Raises InputError on creation for a template that cannot be used.
    """

    def __init__(
        self, encoder: TextEncoder, template: str = DEFAULT_TEMPLATE, placeholder: str = DEFAULT_PLACEHOLDER
    ) -> None:
        self.encoder, self.template, self.placeholder = encoder, template, placeholder
        self._parsed = encoder.parse(template, placeholder)

    def check_room(self, count: int) -> None:
        """Raise InputError unless ``count`` tokens fit into the prompt's window."""
        self._parsed.fill(torch.zeros(count, self.encoder.width))

    def contexts(self, rows: Tensor) -> Tensor:
        """Tokens [B, n, width] in place of the placeholder to context [B, room, width], on the device of ``rows``."""
        return self.encoder.contexts(self._parsed, rows).to(rows.device)

    def columns(self, count: int) -> Tensor:
        """Bool [room], true for the rows of a context that come from its ``count`` tokens."""
        return self._parsed.columns(count)
