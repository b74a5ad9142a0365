"""How many are enough: average precision over the number of generated pairs, and of real ones.

The rows of a table with counts are trained on the first so many pairs of each type, so that a larger set holds a
smaller one. Numbers of real pairs differ in everything that is learned from them, so each is a run of its own; see
``server/amounts.py``, which puts the tables of many runs together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from ...errors import InputError
from ...figures import figure_tensor, new_figure
from .rows import WITHOUT, Row
from .summary import Comparison

METRIC = "pixel_ap"
AMOUNTS = "amounts.png"
Points = Mapping[int, tuple[float, float]]
"""Number of generated pairs of each type -> mean and spread."""


def listed_counts(text: str) -> list[int]:
    """Whole numbers separated by commas, ascending and each once. InputError for anything else."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and len(part) < 7 for part in parts):
        raise InputError(f"pair_counts: '{text}'. Give whole numbers separated by commas, such as 0, 10, 30.")
    return sorted({int(part) for part in parts})


def with_counts(rows: Sequence[Row], counts: Sequence[int]) -> list[Row]:
    """The rows, each that is trained on generated pairs once for every count above 0; 0 stands for the few real pairs.

    The row of the largest count keeps its key. Raises InputError where a set has fewer pairs of a type, or for 0
    without a row of the few real pairs alone.
    """
    wanted = [count for count in counts if count]
    if not counts:
        return list(rows)
    if not wanted or not any(row.pairs for row in rows):
        raise InputError(f"pair_counts: {', '.join(map(str, counts))}. Give a number above 0, and generated pairs.")
    if 0 in counts and not any(row.key == WITHOUT for row in rows):
        raise InputError("pair_counts: 0 means the few real pairs alone. Add 'few real' to training_sets.")
    made = []
    for row in rows:
        if row.pairs is None:
            made.append(row)
            continue
        for count in wanted:
            sets = [one.first(count) for one in row.sets]
            key = row.key if count == wanted[-1] else f"{row.key} {count}"
            label = f"{row.label}, {count} of each type"
            made.append(replace(row, key=key, label=label, pairs=sets[0], more=tuple(sets[1:]), count=count))
    return made


def curves_of(comparison: Comparison) -> dict[str, Points]:
    """Lines of the plot by name, of a comparison whose rows have counts; none where no row has one.

    A line of few real and generated pairs begins with the few real pairs alone, at 0.
    """
    lines: dict[str, dict[int, tuple[float, float]]] = {}
    start = next((result for result in comparison.rows if result.row.key == WITHOUT), None)
    for result in comparison.rows:
        if result.row.count:
            name = result.row.label.rpartition(", ")[0]
            line = lines.setdefault(name, {})
            if start is not None and result.row.real and 0 not in line:
                line[0] = (start.mean(METRIC), start.spread(METRIC))
            line[result.row.count] = (result.mean(METRIC), result.spread(METRIC))
    return dict(lines)


def plot_amounts(lines: Mapping[str, Points], title: str, spread: str, size: tuple[int, int] = (900, 560)) -> Tensor:
    """AP of the test set over the number of generated pairs, one line for each name; [3, H, W] in [0, 1].

    spread: what the bars are. Numbers stand at equal distances, since they grow by factors.
    """
    figure = new_figure(size)
    axes = figure.subplots()
    counts = sorted({count for line in lines.values() for count in line})
    for number, (name, line) in enumerate(lines.items()):
        places = [counts.index(count) + 0.04 * (number - len(lines) / 2) for count in line]
        means, spreads = zip(*line.values(), strict=True)
        known = [0.0 if one != one else one for one in spreads]
        axes.errorbar(places, means, yerr=known, marker="o", capsize=3, label=name)
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    axes.set(title=title, xlabel="generated pairs of each type", ylabel=f"pixel AP of the test set ({spread})")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure_tensor(figure)
