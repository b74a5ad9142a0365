"""Prompt templates: the tokens e = [e_a, e_s] in place of a placeholder, at the level of tokens.

The authors feed e through the text encoder inside a short English prompt ("a photo of a *"): the embedding of the
placeholder is replaced by the rows of e, what follows moves to the right. A token here is what text encoders of the
host take, an id or an embedding, with its weight; a window is one padded list of them (77 for CLIP).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

DEFAULT_TEMPLATE = "a photo of a *"
DEFAULT_PLACEHOLDER = "*"
WeightedToken = tuple[Any, float]


@dataclass(frozen=True)
class Template:
    """A tokenized template.

    before, after: its tokens around the placeholder, with start and end; weight: of the placeholder, from emphasis
    around it; room: tokens of a window; padding: the token that fills it up.
    """

    before: tuple[WeightedToken, ...]
    after: tuple[WeightedToken, ...]
    weight: float
    room: int
    padding: int

    def fill(self, rows: Tensor) -> list[WeightedToken]:
        """The window with ``rows`` [n, width] in place of the placeholder, each with its weight.

        Keeps gradients. Raises InputError when that does not fit.
        """
        needed = len(self.before) + len(rows) + len(self.after)
        if needed > self.room:
            raise InputError(
                f"template: with the {len(rows)} tokens of the anomaly it takes {needed} tokens with start and end; "
                f"the text encoder takes at most {self.room}. Shorten it."
            )
        filled = [*self.before, *((row, self.weight) for row in rows), *self.after]
        return filled + [(self.padding, 1.0)] * (self.room - needed)

    def columns(self, count: int) -> Tensor:
        """Bool [room], true where ``fill`` puts its ``count`` rows."""
        places = torch.arange(self.room)
        return (places >= len(self.before)) & (places < len(self.before) + count)


def spaced(template: str, placeholder: str) -> str:
    """The template with the placeholder as a word of its own.

    Raises InputError unless it occurs exactly once.
    """
    count = template.count(placeholder) if placeholder else 0
    if count != 1:
        raise InputError(
            f"template: '{template}' holds the placeholder '{placeholder}' {count} times; it must occur once. "
            f"Write it where the anomaly's tokens belong, as in 'a photo of a {placeholder or DEFAULT_PLACEHOLDER}'."
        )
    return template.replace(placeholder, f" {placeholder} ")


def parse_template(
    text: str, windows: Sequence[Sequence[WeightedToken]], placeholder: Sequence[int], end: int
) -> Template:
    """A template out of what the tokenizer made of ``spaced`` text, the ids of the placeholder and of the end token.

    Raises InputError when there is more than one window, or when the placeholder's ids are not found exactly once.
    """
    if len(windows) != 1:
        raise InputError(
            f"template: '{text}' takes {len(windows)} windows of {len(windows[0])} tokens, possible is 1. Shorten it."
        )
    window = list(windows[0])
    ids = [token if isinstance(token, int) else None for token, _ in window]
    length, wanted = len(placeholder), list(placeholder)
    found = [place for place in range(1, len(ids)) if wanted and ids[place : place + length] == wanted]
    if len(found) != 1:
        raise InputError(
            f"template: the tokens of the placeholder are in '{text}' {len(found)} times; they must occur "
            "once. Use a word for it that occurs nowhere else."
        )
    start, stop = found[0], found[0] + length
    last = ids.index(end, stop) + 1
    return Template(tuple(window[:start]), tuple(window[stop:last]), window[start][1], len(window), window[-1][0])
