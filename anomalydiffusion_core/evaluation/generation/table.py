"""Evaluate Generation as a whole: from a data set and folders of generated images to a result folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.generated import GeneratedImage, load_folders
from ...data.images import read_image, resize_image
from ...data.mask_files import read_mask
from ...data.mask_resizing import resize_mask
from ...data.mvtec import AnomalyDataset, DefectType, load_pairs
from ...devices import check_images_fit
from ...errors import InputError
from ...figures import contact_sheet, to_bytes
from ...files import content_key
from ...progress import MakeProgress
from ...reading import folder_fingerprint
from ...sampling.effect import effect_score
from ..overlap import check_types
from ..results import Evaluation, Measured
from ..settings import STAND_IN, GenerationSettings
from .evaluation import METRICS, GeneratedSet, Generation, evaluate_generation
from .trunks import as_floats, load_inception, load_perceptual

_PLANES = 2
"""Values of a pixel of a generated image: bytes of the image and of its mask, and copies while they are read."""
ROWS_SHOWN = 8


class GenerationTable(Evaluation):
    """Inception Score, IC-LPIPS, effect score, and how near generated defects are to the training defects."""

    kind = "generation"
    image = "nearest.png"

    def __init__(
        self,
        dataset: AnomalyDataset,
        folders: Sequence[Path],
        settings: GenerationSettings,
        device: torch.device | str = "cpu",
    ) -> None:
        """`folders`: of generated images, used together.

        Raises InputError for a folder without images, or where the weights of a network do not exist.
        """
        self.dataset, self.settings = dataset, settings
        self._inception = load_inception(settings.trunk, settings.inception_weights, device)
        self._perceptual = load_perceptual(settings.trunk, settings.lpips_weights, device)
        self.folders = list(folders)
        self._generated, self.method = load_folders(self.folders, dataset.object, settings.method)
        self.budget = {name: getattr(settings, name) for name in ("size", "splits", "most_pictures")}
        self.key = content_key(
            "generation 2",
            dataset.fingerprint(),
            [folder_fingerprint(path) for path in self.folders],
            [self._inception.name, self._perceptual.name, self.budget, settings.seed, self.method],
        )

    def measure(self, progress: MakeProgress, device: torch.device | str) -> Measured:
        """Read all images and measure each type; the length of the progress is an estimate."""
        settings, dataset = self.settings, self.dataset
        count = min(len(self._generated), settings.most_pictures * len(dataset.types))
        check_images_fit("size", count, (settings.size, settings.size), _PLANES)
        sets = self._sets()
        bar = progress(sum(3 * len(part.images) for part in sets.values()))
        networks = self._inception, self._perceptual
        result = evaluate_generation(sets, *networks, settings.splits, settings.seed, bar.step)
        figures = {
            **result.as_dict(),
            "object": dataset.object,
            "method": self.method,
            "seeds": [settings.seed],
            "budget": self.budget,
            "stand_in": settings.trunk == STAND_IN,
        }
        lines = [[dataset.object, self.method, kind, *(row[name] for name in METRICS)] for kind, row in _rows(figures)]
        record = None  # stand-ins are never shown beside published numbers
        if settings.trunk != STAND_IN:
            record = result.to_record(dataset, self.method, settings.seed, self.budget)
        return Measured(figures, [["object", "method", "defect", *METRICS], *lines], _sheet(sets, result), record)

    def table(self, figures: dict[str, Any]) -> str:
        """A row for each metric, a column for each type and one for their mean."""
        kinds = _rows(figures)
        lines = [f"| {figures['object']}, {figures['method']} | " + " | ".join(kind for kind, _ in kinds) + " |"]
        lines.append("|---" * (len(kinds) + 1) + "|")
        for name, heading in METRICS.items():
            lines.append(f"| {heading} | " + " | ".join(_cell(row[name]) for _, row in kinds) + " |")
        trunks, budget = figures["trunks"], figures["budget"]
        lines += [
            "",
            f"IS of all types together {_cell(figures['metrics']['is_pooled'])}. Measured at {budget['size']} px, IS "
            f"in {budget['splits']} parts. Inception: {trunks['inception']}. LPIPS: {trunks['lpips']}. Effect and "
            "distance are 0 to 255.",
        ]
        if figures["stand_in"]:
            lines.append("The networks are stand-ins: IS and IC-LPIPS cannot be compared with published numbers.")
        return "\n".join(lines)

    def _sets(self) -> dict[str, GeneratedSet]:
        """Generated images by type, of the types of the data set. Raises InputError that names both sides."""
        sets = {}
        keys = [f"{one.object}/{one.defect}" for one in self._generated]
        check_types(self.dataset, keys, self.method, any(one.record for one in self._generated))
        for kind in self.dataset.types:
            chosen = [image for image in self._generated if image.defect == kind.defect]
            if chosen:
                sets[kind.defect] = _set(kind, chosen[: self.settings.most_pictures], self.settings.size)
        if not sets:
            there = ", ".join(sorted({image.defect for image in self._generated}))
            known = ", ".join(kind.defect for kind in self.dataset.types) or "none"
            raise InputError(f"pairs: images of {there}, but the data set has the types {known}. Choose what fits.")
        return sets


def _set(kind: DefectType, generated: Sequence[GeneratedImage], size: int) -> GeneratedSet:
    images, masks, effects, fills = [], [], [], []
    for one in generated:
        image = read_image(one.image, one.bits)[None]
        images.append(torch.from_numpy(to_bytes(resize_image(image, size))))
        if one.mask is None:
            continue
        mask = read_mask(one.mask)[None]
        masks.append(resize_mask(mask, size))
        effect, fill = (one.record.get(name) for name in ("effect_score", "fill_share"))
        if (effect is None or fill is None) and one.normal is not None:
            normal = read_image(one.normal, one.bits)[None]
            measured = effect_score(image, normal, normal, mask)
            effect, fill = float(measured.effect), float(measured.fill_share)
        if effect is not None and fill is not None:
            effects.append(float(effect))
            fills.append(float(fill))
    references = load_pairs(kind.train, size)
    stacked = torch.cat(masks) if len(masks) == len(images) else None
    return GeneratedSet(torch.cat(images), stacked, *references, tuple(effects), tuple(fills))


def _sheet(sets: dict[str, GeneratedSet], result: Generation) -> Tensor:
    """The most similar pairs of all types, or the first images where no method gave masks."""
    near = sorted(
        (float(distance), kind, place)
        for kind, found in result.nearest.items()
        for place, distance in enumerate(found.distance)
    )
    rows: list[list[Tensor | None]] = []
    titles = []
    for distance, kind, place in near[:ROWS_SHOWN]:
        part, owner = sets[kind], int(result.nearest[kind].index[place])
        rows.append([as_floats(part.images[place]), part.references[owner]])
        titles.append(f"{kind} {distance:.1f}")
    if not rows:
        rows = [[as_floats(part.images[0]), part.references[0]] for part in sets.values()]
        titles = [f"{kind} (no masks)" for kind in sets]
    return contact_sheet(rows, ["generated", "nearest training defect"], titles)


def _rows(figures: dict[str, Any]) -> list[tuple[str, dict[str, float | None]]]:
    return [*figures["by_type"].items(), ("mean of types", figures["metrics"])]


def _cell(value: float | None) -> str:
    return "undefined" if value is None or math.isnan(value) else f"{value:.3f}"
