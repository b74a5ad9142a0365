"""Which of the defect pictures are learned from and which are kept for testing."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from ..errors import InputError

SPLIT_RULES = ("lowest third", "first n", "random")


def natural_key(name: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sort key that puts 2.png before 10.png and does not mind mixed names, letter case or missing numbers."""
    parts = re.split(r"([0-9]+)", name)
    ordered = tuple((0, int(part), "") if part.isdigit() else (1, 0, part.casefold()) for part in parts if part)
    return ordered, name


def split_names(
    names: Sequence[str], rule: str = "lowest third", count: int = 6, seed: int = 0
) -> tuple[list[str], list[str]]:
    """Divide names into (training, testing): disjoint, together complete, both in natural order.

    Args:
        names: distinct names.
        rule: "lowest third" takes the first len // 3 (the split of the AnomalyDiffusion experiments; the
            authors' code takes one more, which it also tests on). "first n" takes the first `count`, "random"
            `count` drawn with `seed`. More than there are means all, and nothing is left for testing.

    Raises:
        InputError: unknown rule, `count` below 1, or a name given twice.
    """
    if rule not in SPLIT_RULES:
        raise InputError(f"split: unknown rule '{rule}'. Use one of {', '.join(SPLIT_RULES)}.")
    if len(set(names)) != len(names):
        repeated = sorted({name for name in names if list(names).count(name) > 1})
        raise InputError(f"names: {', '.join(repeated)} given twice. Give every name once.")
    ordered = sorted(names, key=natural_key)
    if rule == "lowest third":
        chosen = set(ordered[: len(ordered) // 3])
    else:
        if count < 1:
            raise InputError(f"train_count: {count}. Give at least 1 training pair.")
        if rule == "first n":
            chosen = set(ordered[:count])
        else:
            chosen = set(random.Random(seed).sample(ordered, min(count, len(ordered))))
    return [name for name in ordered if name in chosen], [name for name in ordered if name not in chosen]
