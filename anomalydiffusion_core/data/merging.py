"""Several objects as one data set, so that one training learns all their defects with one spatial encoder (Eq. 5)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import InputError
from .mvtec import AnomalyDataset


def merge_datasets(datasets: Sequence[AnomalyDataset]) -> AnomalyDataset:
    """One data set with the types and normal images of all; types keep their names, object/defect.

    Raises InputError for fewer than two, for a type that two of them have, for folders without a common parent, and
    for deep images of different depths.
    """
    if len(datasets) < 2:
        raise InputError(f"datasets: {len(datasets)}. Merging requires at least two.")
    keys = [kind.key for one in datasets for kind in one.types]
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        raise InputError(f"datasets: two of them have the type '{twice[0]}'. Merge data sets of different objects.")
    depths = {one.bits for one in datasets if one.bits is not None}
    if len(depths) > 1:
        listed = ", ".join(f"{one.object} {one.bits or 'floating point'}" for one in datasets)
        raise InputError(f"datasets: their images have different depths ({listed}). Merge data sets of one depth.")
    try:
        parent = Path(os.path.commonpath([one.folder for one in datasets]))
    except ValueError as error:
        raise InputError("datasets: they lie on different drives. Put them on one.") from error
    return AnomalyDataset(
        parent,
        " + ".join(dict.fromkeys(one.object for one in datasets)),
        tuple(path for one in datasets for path in one.normals),
        tuple(path for one in datasets for path in one.test_normals),
        tuple(kind for one in datasets for kind in one.types),
        datasets[0].split_rule if len({one.split_rule for one in datasets}) == 1 else "several",
        tuple(f"{one.object}: {notice}" for one in datasets for notice in one.notices),
        next(iter(depths), None),
        datasets[0].split_options if len({str(one.split_options) for one in datasets}) == 1 else {},
        form=", ".join(dict.fromkeys(one.form for one in datasets)),
        place=parent,
        parts=tuple(part for one in datasets for part in one.parts or (one,)),
    )


def objects_of(dataset: AnomalyDataset) -> list[AnomalyDataset]:
    """What belongs to each object of a merged data set, as a data set of its own; else the data set itself."""
    groups: dict[str, list[AnomalyDataset]] = {}
    for part in dataset.parts or (dataset,):
        groups.setdefault(part.object, []).append(part)
    return [group[0] if len(group) == 1 else replace(merge_datasets(group), parts=()) for group in groups.values()]
