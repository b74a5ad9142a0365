"""Which defect images are learned from and which are kept for testing."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..errors import InputError
from ..options import Settings, option

MASK_ROTATIONS = ("auto", "as displayed", "as stored")
SPLIT_RULES = ("lowest third", "first n", "random", "lowest rate", "random rate", "list", "own")
T = TypeVar("T")
OWN = SPLIT_RULES[-1]
"""The division that the data set itself makes, such as files for train and val."""


def natural_key(name: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sort key that puts 2.png before 10.png and does not mind mixed names, letter case or missing numbers."""
    parts = re.split(r"([0-9]+)", name)
    ordered = tuple((0, int(part), "") if part.isdigit() else (1, 0, part.casefold()) for part in parts if part)
    return ordered, name


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
class SplitSettings(Settings):
    """Which defect types of a data set are used, and which of their pairs train; the others test."""

    split: str = option(
        SPLIT_RULES[0],
        "Which defect images are learned from; the others are kept for testing. The lowest third by name is the rule "
        "of the paper; own is the division of the data set itself, as COCO, YOLO, VOC and CVAT can have one.",
        choices=SPLIT_RULES,
    )
    train_count: int = option(
        6, "Training pairs of each defect type for the splits 'first n' and 'random'.", min=1, max=10000
    )
    split_seed: int = option(
        0, "Seed of the splits 'random' and 'random rate'. Other splits ignore it.", min=0, max=2**31 - 1
    )
    defects: str = option("", "Names of the defect types to use, separated by commas. Empty uses all.")
    train_rate: int = option(
        30, "Percent of each type for the splits 'lowest rate' and 'random rate', rounded down.", min=1, max=99
    )
    train_list: str = option(
        "", "For the split 'list': training pairs by name, such as crack/000, crack/003. All others test."
    )
    mask_values: str = option(
        "",
        "Which values of a class map are which defect type, such as crack=1, hole=2 or hole=#ff0000. Empty: whatever "
        "is not background is the defect of the folder.",
    )
    mask_rotation: str = option(
        MASK_ROTATIONS[0],
        "How masks lie on images with a rotation tag (EXIF): drawn on the image as displayed, or on the pixels as "
        "stored. 'auto' decides by their sizes.",
        choices=MASK_ROTATIONS,
    )
    test_rate: int = option(
        0,
        "Percent of each type, the last by name, that test, rounded up: the same test set for any number of training "
        "pairs. 0 tests on all pairs that do not train.",
        min=0,
        max=99,
    )
    validation_rate: int = option(
        0,
        "Choose settings without looking at the test set: this percent of the training pairs of each type and of the "
        "normal images, the last by name, rounded up, test in place of the test set, which is left out. 0 tests on "
        "the test set.",
        min=0,
        max=90,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.classes

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Defect type -> values of its pixels, of ``mask_values``. Raises InputError for an entry without both."""
        found: dict[str, tuple[str, ...]] = {}
        for entry in listed_names(self.mask_values):
            name, _, value = (part.strip() for part in entry.partition("="))
            if not name or not value:
                raise InputError(f"mask_values: '{entry}' is not of the form type=value. Write crack=1, hole=2.")
            found[name] = (*found.get(name, ()), value.lower())
        return found

    @property
    def mask_options(self) -> str:
        """What masks were read with, for records; "" for the defaults."""
        return f"{self.mask_values}|{self.mask_rotation}" if self.mask_values or self.mask_rotation != "auto" else ""

    @property
    def listed(self) -> list[str]:
        """The names in ``train_list``."""
        return listed_names(self.train_list)

    @property
    def options(self) -> dict[str, int]:
        """What the rule depends on, for records."""
        known = {"count": self.train_count, "seed": self.split_seed, "rate": self.train_rate}
        used = {"first n": ("count",), "random": ("count", "seed"), "lowest rate": ("rate",)}
        used["random rate"] = ("rate", "seed")
        own = {name: known[name] for name in used.get(self.split, ())}
        rates = {"test_rate": self.test_rate, "validation_rate": self.validation_rate}
        return own | {name: rate for name, rate in rates.items() if rate}

    def divide(
        self, names: Sequence[str], defect: str = "", trained: Collection[str] = ()
    ) -> tuple[list[str], list[str]]:
        """Divide the distinct names of one type into (train, test): disjoint and in natural order.

        Together they are complete, but for ``test_rate``: then only the last by name test; and for
        ``validation_rate``: then the last of the training names test, at least one stays, and no other is used.

        "lowest third" takes the first len // 3 (the split of the AnomalyDiffusion experiments; the authors' code
        takes one more, which it also tests on). "first n" takes the first ``train_count``, "random" as many drawn
        with the seed; more than there are means all. "lowest rate" takes the first ``train_rate`` percent, rounded
        down (Table 7: 10 to 50), "random rate" as many drawn with the seed. "list" takes the listed ones, each
        ``name`` (of any type) or ``defect/name``. "own" takes those that are ``trained`` in the data set itself.
        """
        ordered = sorted(names, key=natural_key)
        share = len(ordered) * self.train_rate // 100
        size = {"lowest third": len(ordered) // 3, "lowest rate": share, "random rate": share}.get(
            self.split, self.train_count
        )
        if self.split == "list":
            chosen = set(ordered) & {name.removeprefix(f"{defect}/") for name in self.listed}
        elif self.split == OWN:
            chosen = set(trained)
        elif self.split.startswith("random"):
            chosen = set(random.Random(self.split_seed).sample(ordered, min(size, len(ordered))))
        else:
            chosen = set(ordered[:size])
        tests = (
            set(ordered[len(ordered) - -(-len(ordered) * self.test_rate // 100) :]) if self.test_rate else set(ordered)
        )
        train = [name for name in ordered if name in chosen]
        if self.validation_rate:
            return self.held_out(train)
        return train, [name for name in ordered if name in tests - chosen]

    def held_out(self, ordered: Sequence[T]) -> tuple[list[T], list[T]]:
        """What trains and what of it is held out by ``validation_rate``: the last, at least one stays."""
        count = min(-(-len(ordered) * self.validation_rate // 100), max(len(ordered) - 1, 0))
        return list(ordered[: len(ordered) - count]), list(ordered[len(ordered) - count :])

    def unknown(self, names: Mapping[str, Sequence[str]]) -> list[str]:
        """Problems with listed names that no defect type has. names: those of each type."""
        if self.split != "list":
            return []
        if not self.listed:
            return ["train_list: is empty. Name the training pairs, separated by commas, like crack/000, crack/003."]
        known = {text for defect, own in names.items() for name in own for text in (name, f"{defect}/{name}")}
        wrong = [name for name in self.listed if name not in known]
        if not wrong:
            return []
        return [f"train_list: unknown pair {', '.join(wrong)}. Choose from: {', '.join(sorted(known)[:20])}."]


def listed_names(text: str) -> list[str]:
    """Names separated by commas or line breaks."""
    return [name.strip().replace("\\", "/") for name in text.replace("\n", ",").split(",") if name.strip()]
