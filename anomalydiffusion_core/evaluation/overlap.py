"""A test image that something was learned from makes a figure worthless: refused, or marked where it is wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..data.mvtec import AnomalyDataset
from ..data.provenance import Marks, Overlap, overlaps
from ..errors import InputError

MARK = "LEAK"
"""What every table says beside figures of a row that was learned from test images."""


def found_overlaps(learned: Mapping[str, Marks], tests: Marks, allowed: bool) -> dict[str, list[Overlap]]:
    """Test images among what rows were learned from, for the rows where there are any.

    learned: label of a row to the marks of all that it was learned from. Raises InputError that lists the files unless
    ``allowed``.
    """
    found = {label: same for label, marks in learned.items() if (same := overlaps(marks, tests))}
    if not found or allowed:
        return found
    lines = []
    for label, same in found.items():
        kinds = ", ".join(f"{sum(one.how == how for one in same)} {how}" for how in dict.fromkeys(o.how for o in same))
        lines.append(f"{label}: learned from {len(same)} of the {len(tests)} test images ({kinds})")
        lines += [f"  {one.describe()}" for one in same]
    raise InputError(
        "pairs: something was learned from images of the test set, so its figures would mean nothing. Use the split "
        "that it was made with, or make it anew; allow_overlap measures anyway and marks every table.\n"
        + "\n".join(lines)
    )


def leak_text(same: Sequence[Overlap], tests: int) -> str:
    """What a table says about a row."""
    return f"{MARK}: learned from {len(same)} of {tests} test images"


def check_types(dataset: AnomalyDataset, keys: Sequence[str], label: str, objects: bool = True) -> None:
    """Raise InputError for pairs of another object, or of a type that the data set does not have.

    keys: ``object/defect`` of the pairs. objects: whether their object is known; folders of other methods often leave
    it out.
    """
    known = {kind.defect for kind in dataset.types}
    wrong = {
        key
        for key in keys
        if (objects and key.partition("/")[0] != dataset.object) or key.partition("/")[2] not in known
    }
    if wrong:
        types = ", ".join(kind.key for kind in dataset.types) or f"{dataset.object} without defects"
        raise InputError(
            f"pairs: {label} holds {sum(key in wrong for key in keys)} pairs of {', '.join(sorted(wrong))}; the data "
            f"set has {types}. Give pairs of these types, or the data set that they belong to."
        )
