"""The rows of a table: what defects each detector is trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...data.pairs import OURS as OUR_COLUMN
from ...errors import InputError
from ..settings import BOTH, BOTH_OURS, FEW_REAL, GENERATED, NONE, TRAINING_SETS
from ..tables.records import NORMAL_IMAGES, REAL_AND_GENERATED
from .detectors import Detector
from .sources import PairSource, pairs_folder

WITHOUT = "without"
WITH = "with"
OURS = "ours"
RESERVED = {*TRAINING_SETS, WITHOUT, WITH}


@dataclass(frozen=True)
class Row:
    """One row: `key` names it in files, `label` in tables, `method` says whose pairs it is trained on.

    real: whether it is trained on the few real pairs; pairs: those of the method; weights: a trained network, which is
    only tested; more: further sets of pairs that the method made independently, for a spread that holds for it.
    count: generated pairs of each type, 0 for all there are.
    detector: what is trained on the normal images instead of our network.
    """

    key: str
    label: str
    method: str
    real: bool = False
    pairs: PairSource | None = None
    weights: Path | None = None
    more: tuple[PairSource, ...] = ()
    count: int = 0
    detector: Detector | None = None

    @property
    def trained(self) -> bool:
        """Whether our network is trained for it, in steps."""
        return self.weights is None and self.detector is None

    @property
    def sets(self) -> tuple[PairSource, ...]:
        """Its generated sets, made independently of each other."""
        return () if self.pairs is None else (self.pairs, *self.more)

    def repetition(self, number: int) -> Row:
        """The row on its generated set of this number."""
        return replace(self, pairs=self.sets[number], more=()) if self.sets else self

    @property
    def maker(self) -> str:
        """What made the pairs, named like the columns of Results Table; empty without pairs.

        Pairs under test are "Ours" only where their manifest says so, or where they come from memory.
        """
        if self.pairs is None:
            return ""
        own = self.method.removeprefix(f"{FEW_REAL} + ")
        return own if own != OURS else self.pairs.method or OUR_COLUMN

    @property
    def record_column(self) -> tuple[str, str] | None:
        """(method, training set) of its record for Results Table; None for a row without a column there."""
        if self.method == NONE or self.weights is not None:
            return None
        if self.detector is not None:
            return self.method, NORMAL_IMAGES
        if self.method == FEW_REAL:
            return "", FEW_REAL
        joined = self.method.startswith(f"{FEW_REAL} + ")
        return self.maker, REAL_AND_GENERATED if joined else GENERATED

    def as_seen(self, generated_share: float) -> Row:
        """The row as its network saw it: with a generated share of 1 it saw no real defect."""
        if not (self.real and self.pairs and generated_share == 1):
            return self
        own = self.method.removeprefix(f"{FEW_REAL} + ")
        return replace(self, label=f"{'generated pairs' if own == OURS else own} alone", method=own)


def rows_of(
    training_sets: Sequence[str],
    methods: Mapping[str, PairSource | Sequence[PairSource]],
    weights: Mapping[str, Path] | None = None,
) -> list[Row]:
    """Rows for every training set; for `generated` and `both` one for each method, the rows of a method together.

    `few real + ours` is the row of `both` for the pairs under test alone.

    `methods`: name -> its pairs, or several sets of them that were made independently, as many for each method; the
    name `ours` stands for the generated pairs under test.

    Raises:
        InputError: sets of different number, an unknown or repeated training set, a name that is taken, missing
            pairs, or no rows.
    """
    unknown = [name for name in training_sets if name not in TRAINING_SETS]
    if unknown or len(set(training_sets)) < len(training_sets):
        listed = ", ".join(training_sets)
        raise InputError(f"training_sets: '{listed}'. Give each of these at most once: {', '.join(TRAINING_SETS)}.")
    weights = weights or {}
    clashing = [name for name in (*methods, *weights) if name in RESERVED or (name in methods and name in weights)]
    if clashing or OURS in weights:
        raise InputError(f"methods: the name '{(clashing or [OURS])[0]}' is taken. Choose another.")
    every_method = {GENERATED, BOTH} & set(training_sets)
    if not methods and every_method:
        raise InputError("pairs: none. Give a folder of pairs, or leave 'generated' and 'both' out of training_sets.")
    if BOTH_OURS in training_sets and OURS not in methods:
        raise InputError(f"pairs: none under test. Give a folder of pairs, or leave '{BOTH_OURS}' out.")
    others = [name for name in methods if name != OURS]
    if others and not every_method:
        raise InputError(f"methods: nothing is trained on the pairs of '{others[0]}'. Add 'generated' or 'both'.")
    listed_sets = {name: [own] if isinstance(own, PairSource) else list(own) for name, own in methods.items()}
    counts = {name: len(own) for name, own in listed_sets.items()}
    if len(set(counts.values())) > 1:
        text = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(f"pairs: different numbers of generated sets ({text}). Give as many for each method.")
    rows = []
    if NONE in training_sets:
        rows.append(Row(NONE, "no defects, normals only", NONE))
    if FEW_REAL in training_sets:
        rows.append(Row(WITHOUT, "few real pairs", FEW_REAL, True))
    for name, (pairs, *further) in listed_sets.items():
        more = tuple(further)
        ours = name == OURS
        if GENERATED in training_sets:
            rows.append(
                Row(GENERATED if ours else name, "generated pairs" if ours else name, name, False, pairs, None, more)
            )
        if BOTH in training_sets or (ours and BOTH_OURS in training_sets):
            label = "few real + generated pairs" if ours else f"few real + {name}"
            rows.append(Row(WITH if ours else label, label, f"{FEW_REAL} + {name}", True, pairs, None, more))
    rows += [Row(name, f"{name} (weights given)", name, weights=path) for name, path in weights.items()]
    keys = [row.key for row in rows]
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        raise InputError(f"methods: two rows would be called '{twice[0]}'. Choose other names.")
    if not rows:
        raise InputError(f"training_sets: empty. Give one or more of: {', '.join(TRAINING_SETS)}.")
    return rows


def methods_of(
    own: Sequence[PairSource], text: str, folder: Callable[[str, str], Path], what: str
) -> dict[str, list[PairSource]]:
    """The sets of pairs under test, if any, and those of other methods, for `rows_of`.

    Args:
        text: a line NAME=FOLDER for each other method; a name with several lines has so many independent sets.
        folder: the folder that a text means; called with the text and a name for messages.
        what: name of the input, for messages.

    Raises InputError for a name that is taken or a folder without pairs.
    """
    sources = {OURS: list(own)} if own else {}
    for name, places in repeated_values(text, what).items():
        if name in sources:
            raise InputError(f"{what}: the name '{name}' is reserved for the pairs under test. Choose another.")
        sources[name] = [pairs_folder(folder(where, f"{what}, {name}")) for where in places]
    return sources


def named_values(text: str, what: str, form: str = "NAME=FOLDER") -> dict[str, str]:
    """`NAME=VALUE` lines as a dictionary; empty lines are skipped.

    Raises InputError, which names `what`, for a line of another form or a name given twice.
    """
    several = repeated_values(text, what, form)
    twice = next((name for name, values in several.items() if len(values) > 1), None)
    if twice is not None:
        raise InputError(f"{what}: '{twice}' is given twice. Give each its own name.")
    return {name: value for name, (value,) in several.items()}


def repeated_values(text: str, what: str, form: str = "NAME=FOLDER") -> dict[str, list[str]]:
    """`NAME=VALUE` lines as a dictionary of all values of a name; empty lines are skipped.

    Raises InputError, which names `what`, for a line of another form.
    """
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, sign, value = (part.strip() for part in line.partition("="))
        if not line.strip():
            continue
        if not sign or not name or not value:
            raise InputError(f"{what}: '{line.strip()}' is not of the form {form}. Give one per line.")
        found.setdefault(name, []).append(value)
    return found
