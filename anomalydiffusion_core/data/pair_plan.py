"""A plan of pairs to generate: for each one its type, its normal image and its mask. A folder that people can edit.

`plan.json` lists the pairs in order, the masks lie below `masks/<object>/<defect>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..files import contained, new_folder, write_json
from ..plain_json import read_json
from .images import write_mask
from .mask_files import read_mask
from .mvtec import AnomalyDataset

PLAN_FILE = "plan.json"
FORMAT, VERSION = "anomalydiffusion pair plan", 1


@dataclass(frozen=True)
class PlannedPair:
    """One pair to generate: type as object/defect, file of the normal image, mask [1,H,W] of {0,1}, and why."""

    key: str
    normal: Path
    mask: Tensor
    why: Mapping[str, Any]


@dataclass(frozen=True)
class PairPlan:
    """Pairs to generate, in the order in which they are."""

    pairs: Sequence[PlannedPair]

    @property
    def keys(self) -> list[str]:
        """The types, each once, in the order of their first pair."""
        return list(dict.fromkeys(pair.key for pair in self.pairs))

    def normals(self, key: str) -> list[Path]:
        """The normal images of a type's pairs."""
        return [pair.normal for pair in self.pairs if pair.key == key]

    def masks(self, key: str) -> tuple[Tensor, str]:
        """The masks [n,1,H,W] of a type's pairs, and how they came about."""
        masks = [pair.mask for pair in self.pairs if pair.key == key]
        return torch.stack(masks), f"{key}: {len(masks)} masks of the plan"

    def write(self, folder: Path, dataset: AnomalyDataset, more: Mapping[str, Any], report: str) -> None:
        """Write a new folder, whole or not at all: plan.json, masks and gaps.md."""
        with new_folder(folder) as draft:
            entries, numbers = [], dict.fromkeys(self.keys, 0)
            for pair in self.pairs:
                name = f"masks/{pair.key}/{numbers[pair.key]:03d}.png"
                numbers[pair.key] += 1
                write_mask(draft / name, pair.mask)
                normal = pair.normal.relative_to(dataset.folder or dataset.root).as_posix()
                entries.append({"type": pair.key, "normal": normal, "mask": name, **pair.why})
            write_json(draft / PLAN_FILE, {"format": FORMAT, "version": VERSION, **more, "pairs": entries})
            (draft / "gaps.md").write_text(report + "\n", encoding="utf-8", newline="\n")


def read_plan(folder: Path, dataset: AnomalyDataset) -> PairPlan:
    """The plan in a folder, for the data set it was made of.

    Raises InputError for another file, another data set, a normal image or mask that is not there, and no pairs.
    """
    stored = read_json(folder / PLAN_FILE, "plan", advice="Give the folder that the command gaps wrote.")
    if stored.get("format") != FORMAT or stored.get("version") != VERSION:
        raise InputError(f"plan: {folder / PLAN_FILE} is not '{FORMAT} {VERSION}'. Give a folder of the command gaps.")
    base = dataset.folder or dataset.root
    known = {path.relative_to(base).as_posix(): path for path in dataset.normals}
    pairs = []
    try:
        for entry in stored["pairs"]:
            key, name = str(entry["type"]), str(entry["normal"])
            if name not in known:
                raise InputError(f"plan: the normal image {name} is not in {base}. Make the plan anew.")
            mask = read_mask(contained(folder, str(entry["mask"]), "plan"))
            if not bool(mask.any()):
                raise InputError(f"plan: {entry['mask']} is empty. Remove its line, or draw it.")
            why = {name: value for name, value in entry.items() if name not in ("type", "normal", "mask")}
            pairs.append(PlannedPair(key, known[name], mask, why))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"plan: {folder / PLAN_FILE} lacks {error} of a pair. Make the plan anew.") from error
    if not pairs:
        raise InputError(f"plan: {folder / PLAN_FILE} has no pairs. Make the plan anew.")
    sizes = {tuple(pair.mask.shape) for pair in pairs}
    if len(sizes) > 1:
        raise InputError(f"plan: masks of several sizes {sorted(sizes)}. Draw them at one size.")
    return PairPlan(pairs)
