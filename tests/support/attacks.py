"""What the campaign's attacks share: how they are counted, and how files and values are mutated."""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anomalydiffusion_core.errors import AnomalyDiffusionError

SECONDS = 20.0
"""Time of the processor that no single attempt may take."""
ODD_VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1.5,
        math.nan,
        math.inf,
        -math.inf,
        10**30,
        1e308,
        "",
        "abc",
        "\x00",
        "../x",
        "\ud800",
    ),
    *([], {}, [1], ["a", "b", "c"], {"a": 1}, [[[[[]]]]], "9" * 5000, "x" * 70_000, ["1", "0"], [None, 0]),
]


class Campaign:
    """Counts attempts; prints what fell short at the end, and fails then."""

    def __init__(self, title: str, seed: int = 0) -> None:
        self.title, self.random = title, random.Random(f"{title}|{seed}")
        self.tried, self.short, self.done, self.refused = 0, list[str](), 0, 0
        self.last = ""

    def attempt(self, what: str, act: Callable[[], Any], names: str = "") -> Any:
        """Run one attack: it may succeed, or end with an error of this project that holds ``names``.

        Returns what it returned, None after an error.
        """
        self.tried += 1
        started = time.process_time()
        found = None
        try:
            found = act()
            self.done += 1
        except AnomalyDiffusionError as error:
            self.refused += 1
            self.last = text = str(error)
            if names and names not in text:
                self.fell_short(what, f"does not say {names!r}: {text[:300]}")
            if "weights_only" in text or "Traceback" in text or len(text) > 20_000:
                self.fell_short(what, f"is no message: {text[:300]}")
        except Exception as error:
            self.fell_short(what, f"{type(error).__name__}: {str(error)[:300]}")
        if time.process_time() - started > SECONDS:
            self.fell_short(what, f"took {time.process_time() - started:.0f} s")
        return found

    def require(self, what: str, act: Callable[[], Any]) -> Any:
        """Run what has to succeed; returns what it returned, None where it fell short."""
        before = self.refused
        found = self.attempt(what, act)
        if self.refused > before:
            self.fell_short(what, f"was refused: {self.last[:300]}")
        return found

    def fell_short(self, what: str, why: str) -> None:
        """Note a fault."""
        self.short.append(f"{what}: {why}")

    def end(self) -> None:
        """Print the figures; raise AssertionError when anything fell short."""
        print(  # noqa: T201 - these figures are what the campaign is for
            f"\n{self.title}: {self.tried} tried, {self.done} done, {self.refused} refused, "
            f"{len(self.short)} fell short"
        )
        for line in self.short[:40]:
            print(f"  {line[:300]!a}")  # noqa: T201
        assert not self.short, f"{len(self.short)} of {self.tried} fell short, first {self.short[0]!a}"


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes of a file after one to four accidents: bits turned, parts cut out, doubled, exchanged, or filled."""
    made = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        # Headers are small and decide most: half of the accidents happen there.
        place = rng.randrange(max(1, min(len(made), 4096) if rng.random() < 0.5 else len(made)))
        length = rng.choice([1, 1, 2, 4, 8, 64, 1024])
        kind = rng.randrange(7)
        if kind == 0 and made:
            made[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            made[place : place + length] = rng.randbytes(length)
        elif kind == 2:
            del made[place : place + length]
        elif kind == 3:
            made[place:place] = made[place : place + length]
        elif kind == 4:
            del made[place:]
        elif kind == 5:
            made[place : place + length] = rng.choice([b"\x00", b"\xff", b"[", b"9"]) * length
        else:
            made[place:place] = rng.randbytes(length)
    return bytes(made)


def changed(value: Any, rng: random.Random) -> Any:
    """Plain values of which one to three entries, at any depth, became odd, went away, or were doubled."""
    made = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        place, inside = made, None
        while isinstance(place, (dict, list)) and place and (inside is None or rng.random() < 0.8):
            key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
            inside, place = (place, key), place[key]
        if inside is None:
            return copy.deepcopy(rng.choice(ODD_VALUES))
        parent, key = inside
        if rng.random() < 0.2:
            del parent[key]
        elif isinstance(parent, dict) and rng.random() < 0.1:
            parent[rng.choice(["", "x", "\x00", "class_type", "inputs"])] = parent.pop(key)
        else:
            parent[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    return made


def files_of(folder: Path) -> dict[str, bytes]:
    """Relative path and content of every file below a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def drafts_in(*folders: Path) -> list[str]:
    """Names of everything half written below folders."""
    return [str(path) for folder in folders for path in folder.rglob(".*.partial")]
