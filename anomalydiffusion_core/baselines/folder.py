"""Pairs of a baseline as a folder: every type of a data set, on its normal images, a few images at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.export import Exported, ExportSettings, PairBatch, export_batch, write_also, write_recipe
from ..data.image_form import form_of
from ..data.mvtec import AnomalyDataset, DefectType, load_images
from ..data.provenance import plain_marks, training_marks
from ..data.selection import NormalSettings, picked_normals
from ..errors import InputError
from ..files import new_folder
from ..masks.foreground import WHOLE, ForegroundSettings, estimate_foreground
from ..options import build, declared
from ..progress import Progress
from .crop_paste import CropPaste
from .cutpaste import CutPaste
from .draem import Draem
from .making import Method, make_pairs
from .moving import training_sources
from .poisson import PoissonBlending
from .prn import Prn
from .textures import FolderTextures, ProceduralTextures

METHODS: dict[str, type] = {
    "crop-and-paste": CropPaste,
    "cutpaste": CutPaste,
    "draem": Draem,
    "prn": Prn,
    "poisson": PoissonBlending,
}
SIMULATED = "simulated"
"""Defect type of methods that use no real defect."""
_AT_ONCE = 8


@dataclass(frozen=True)
class BaselinePlan:
    """What is made. Raises InputError for an unknown method or option.

    Attributes:
        method: one of METHODS.
        normals: how many normal images of each type, from which seed, at which size.
        options: of the method, by name.
        textures: folder of texture images for methods that take them; None renders procedural surfaces.
        on_object: anomalies lie on the object, where one stands out from a plain background.
    """

    method: str
    normals: NormalSettings = field(default_factory=NormalSettings)
    options: Mapping[str, Any] = field(default_factory=dict)
    textures: Path | None = None
    on_object: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"method: unknown method '{self.method}'. Choose one of: {', '.join(METHODS)}.")
        known = declared(METHODS[self.method])
        for name in self.options:
            if name not in known:
                listed = ", ".join(known) or "none"
                raise InputError(f"{name}: unknown option of {self.method}. It has: {listed}.")
        if self.textures is not None and not self.takes("textures"):
            raise InputError(f"textures: {self.method} uses none. Leave it out.")

    def takes(self, name: str) -> bool:
        """Whether the method has a field of this name, such as sources or textures."""
        return name in {one.name for one in fields(METHODS[self.method])}

    def types(self, dataset: AnomalyDataset, wanted: Sequence[str] = ()) -> list[str]:
        """The types that are made: those of the data set, or one simulated type where no real defect is used."""
        if not self.takes("sources"):
            return list(wanted) or [f"{dataset.object}/{SIMULATED}"]
        return [dataset.defect_type(key).key for key in wanted] or [kind.key for kind in dataset.types]

    def made(self, kind: DefectType | None, size: tuple[int, int]) -> Method:
        """The method with its options; ``kind`` gives the defects, at the (height, width) of the normal images."""
        values = dict(self.options)
        if kind is not None:
            values["sources"] = training_sources(kind, size)
        if self.takes("textures"):
            values["textures"] = ProceduralTextures() if self.textures is None else FolderTextures(self.textures)
        method: Method = build(METHODS[self.method], values)
        return method


def write_pairs(
    folder: Path,
    dataset: AnomalyDataset,
    plan: BaselinePlan,
    export: ExportSettings,
    progress: Progress,
    wanted: Sequence[str] = (),
) -> Exported:
    """Make the pairs of all types and export them to a new folder, which exists when all are done.

    The same pairs as of the nodes with the same seed. ``progress`` advances once for each pair.
    Raises InputError as ``make_pairs`` does, for unknown types, and for a folder that is not empty.
    """
    keys = plan.types(dataset, wanted)
    lines: list[Mapping[str, Any]] = []
    with new_folder(folder) as draft:
        for key in keys:
            paths = picked_normals(dataset, plan.normals, key)
            for start in range(0, len(paths), _AT_ONCE):
                batch = _batch(dataset, plan, key, paths[start : start + _AT_ONCE], start)
                lines += export_batch(draft, batch, export)
                for _ in batch.images:
                    progress.step()
        write_also(draft, export)
        write_recipe(draft, method=plan.method, options=dict(plan.options), normals=vars(plan.normals))
    return Exported(lines, keys)


def _batch(dataset: AnomalyDataset, plan: BaselinePlan, key: str, paths: Sequence[Path], start: int) -> PairBatch:
    normals = load_images(paths, plan.normals.size or None, dataset.bits)
    size = (normals.shape[2], normals.shape[3])
    kind = dataset.defect_type(key) if plan.takes("sources") else None
    learned = None if kind is None else plain_marks(training_marks(dataset, [kind.key]))
    ground: Tensor | None = None
    if plan.on_object:
        ground = estimate_foreground(normals, ForegroundSettings(unclear=WHOLE))
    made = make_pairs(plan.made(kind, size), normals, plan.normals.seed + start, key, ground, None, learned)
    return PairBatch(key, made.images, made.masks, normals, made.records, form_of(dataset))
