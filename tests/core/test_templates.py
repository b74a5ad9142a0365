"""The anomaly's tokens inside a prompt, with a tokenizer of three kinds of words."""

from __future__ import annotations

import pytest
import torch

from anomalydiffusion_core.conditioning.template import Template, parse_template, spaced
from anomalydiffusion_core.errors import InputError

START, END, PLACEHOLDER = 100, 101, 7


def window(*tokens: int | tuple[int, float], room: int = 12, padding: int = END) -> list[tuple[int, float]]:
    inner = [token if isinstance(token, tuple) else (token, 1.0) for token in tokens]
    return [(START, 1.0), *inner, (END, 1.0)] + [(padding, 1.0)] * (room - 2 - len(inner))


def parsed(*tokens: int | tuple[int, float], **more: int) -> Template:
    return parse_template("text", [window(*tokens, **more)], [PLACEHOLDER], END)


@pytest.mark.parametrize("padding", [END, 0])
def test_tokens_stand_in_place_of_the_placeholder(padding: int) -> None:
    template = parsed((1, 1.3), 2, (PLACEHOLDER, 0.8), 3, padding=padding)
    rows = torch.rand(4, 5)
    filled = template.fill(rows)
    assert len(filled) == 12
    assert filled[:3] == [(START, 1.0), (1, 1.3), (2, 1.0)]
    assert all(
        torch.equal(token, row) and weight == 0.8 for (token, weight), row in zip(filled[3:7], rows, strict=True)
    )
    assert filled[7:] == [(3, 1.0), (END, 1.0)] + [(padding, 1.0)] * 3
    assert template.columns(4).tolist() == [3 <= place < 7 for place in range(12)]


def test_gradients_pass_through() -> None:
    rows = torch.rand(2, 5, requires_grad=True)
    filled = parsed(PLACEHOLDER).fill(rows)
    torch.stack([token for token, _ in filled[1:3]]).sum().backward()
    assert rows.grad is not None and bool((rows.grad == 1).all())


def test_room_is_used_to_the_last_token_and_not_beyond() -> None:
    template = parsed(1, 2, PLACEHOLDER)
    # Start, two words and the end leave 8 of 12 places.
    assert template.fill(torch.rand(8, 5))[-1] == (END, 1.0)
    with pytest.raises(InputError, match="with the 9 tokens of the anomaly it takes 13 tokens.*12"):
        template.fill(torch.rand(9, 5))


@pytest.mark.parametrize(("text", "times"), [("a photo", 0), ("a * and a *", 2), ("", 0)])
def test_the_placeholder_must_occur_once(text: str, times: int) -> None:
    with pytest.raises(InputError, match=f"holds the placeholder '\\*' {times} times"):
        spaced(text, "*")


def test_the_placeholder_becomes_a_word_of_its_own() -> None:
    assert spaced("a (*:1.2), old", "*") == "a ( * :1.2), old"


def test_windows_and_tokens_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="takes 2 windows of 12 tokens"):
        parse_template("long", [window(1), window(PLACEHOLDER)], [PLACEHOLDER], END)
    for tokens, times in (((1, 2), 0), ((PLACEHOLDER, PLACEHOLDER), 2)):
        with pytest.raises(InputError, match=f"{times} times"):
            parsed(*tokens)
