"""Which of the defect pictures are learned from and which are kept for testing."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ..errors import InputError

SPLIT_RULES = ("lowest third", "first n", "random", "lowest rate", "random rate", "list")
RATES = (1, 99)


def natural_key(name: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sort key that puts 2.png before 10.png and does not mind mixed names, letter case or missing numbers."""
    parts = re.split(r"([0-9]+)", name)
    ordered = tuple((0, int(part), "") if part.isdigit() else (1, 0, part.casefold()) for part in parts if part)
    return ordered, name


def split_names(
    names: Sequence[str],
    rule: str = "lowest third",
    count: int = 6,
    seed: int = 0,
    rate: int = 30,
    listed: Collection[str] = (),
) -> tuple[list[str], list[str]]:
    """Divide names into (training, testing): disjoint, together complete, both in natural order.

    Args:
        names: distinct names.
        rule: "lowest third" takes the first len // 3 (the split of the AnomalyDiffusion experiments; the
            authors' code takes one more, which it also tests on). "first n" takes the first `count`, "random"
            `count` drawn with `seed`. More than there are means all, and nothing is left for testing. "lowest rate"
            takes the first `rate` percent, rounded down (Table 7: 10 to 50), "random rate" as many drawn with `seed`.
            "list" takes those that are in `listed`.

    Raises:
        InputError: unknown rule, `count` below 1, a rate outside 1 to 99, or a name given twice.
    """
    if rule not in SPLIT_RULES:
        raise InputError(f"split: unknown rule '{rule}'. Use one of {', '.join(SPLIT_RULES)}.")
    if len(set(names)) != len(names):
        repeated = sorted({name for name in names if list(names).count(name) > 1})
        raise InputError(f"names: {', '.join(repeated)} given twice. Give every name once.")
    if rule in ("first n", "random") and count < 1:
        raise InputError(f"train_count: {count}. Give at least 1 training pair.")
    if rule.endswith("rate") and not RATES[0] <= rate <= RATES[1]:
        raise InputError(f"train_rate: {rate} percent. Give {RATES[0]} to {RATES[1]}, for example 30.")
    ordered = sorted(names, key=natural_key)
    size = {"lowest third": len(ordered) // 3, "lowest rate": len(ordered) * rate // 100}
    size |= {"random rate": size["lowest rate"], "first n": count, "random": count}
    if rule == "list":
        chosen = set(ordered) & set(listed)
    elif rule.startswith("random"):
        chosen = set(random.Random(seed).sample(ordered, min(size[rule], len(ordered))))
    else:
        chosen = set(ordered[: size[rule]])
    return [name for name in ordered if name in chosen], [name for name in ordered if name not in chosen]


def runs_text(chosen: Sequence[str], ordered: Sequence[str]) -> str:
    """Names as runs of neighbours among all names in order: ``000 to 006, 009``; "none" when there are none."""
    wanted, runs = set(chosen), list[list[str]]()
    for before, name in zip([None, *ordered], ordered, strict=False):
        if name in wanted:
            if before in wanted and runs:
                runs[-1].append(name)
            else:
                runs.append([name])
    texts = [run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return ", ".join(texts) or "none"


@dataclass(frozen=True)
class SplitRule:
    """How every defect type is divided; the arguments of `load_dataset`."""

    name: str
    count: int
    seed: int
    rate: int
    listed: tuple[str, ...]

    @property
    def options(self) -> dict[str, int]:
        """Those arguments that the rule looks at."""
        used = {"first n": ("count",), "random": ("count", "seed"), "lowest rate": ("rate",)}
        used["random rate"] = ("rate", "seed")
        return {option: getattr(self, option) for option in used.get(self.name, ())}

    def divide(self, defect: str, names: Sequence[str]) -> tuple[list[str], list[str]]:
        """See `split_names`."""
        listed = [name.removeprefix(f"{defect}/") for name in self.listed]
        return split_names(names, self.name, self.count, self.seed, self.rate, listed)

    def unknown(self, names: Mapping[str, Sequence[str]]) -> list[str]:
        """Problems with listed names that no defect type has."""
        if self.name != "list":
            return []
        if not self.listed:
            return ["train_list: is empty. Name the training pairs, separated by commas, like crack/000, crack/003."]
        known = {text for defect, own in names.items() for name in own for text in (name, f"{defect}/{name}")}
        wrong = [name for name in self.listed if name not in known]
        if not wrong:
            return []
        return [f"train_list: there is no pair {', '.join(wrong)}. There are {', '.join(sorted(known)[:20])}."]
