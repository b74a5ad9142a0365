"""Refined labels for a folder of pairs: written beside the drawn masks, named in the manifest, and undone by `keep`.

``<object>/drawn/<defect>/000_mask.png`` is the drawn mask, ``ground_truth/<defect>/000_mask.png`` the label, as every
reader of the MVTec layout expects it. A folder can be refined again: it always starts from the drawn masks.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.export import ExportSettings, write_also
from ..data.images import read_image
from ..data.mask_files import read_mask
from ..data.mvtec import AnomalyDataset
from ..data.pairs import LEFT_OUT, ExportedPair, load_exported, update_manifest
from ..errors import DatasetError, InputError
from ..files import content_key, replacing
from ..progress import MakeProgress, Progress, Quiet
from .change import Box, Pixels, Reconstruct, measure_change, unchanged
from .label_choice import LabelFit, RealLabels, choice_of, fit_of, middle
from .refine import AUTO, KEEP, NOTHING_SHOWS, RULES, RefineSettings, check_refining, label_of

DRAWN_FOLDER = "drawn"
DRAWN, REFINED, SHARE, LABEL = "drawn_mask", "refined_mask", "share_kept", "label"
"""Entries of a line of the manifest: both masks, the share of the drawn one that is kept, and how it was done."""


@dataclass(frozen=True)
class Relabelled:
    """What was done: the mode of each type, the share of the drawn mask kept by each pair, and a report."""

    modes: dict[str, str]
    shares: list[float]
    report: str


@dataclass(frozen=True)
class _Pair:
    """A pair and its label in each mode that may be chosen; only the part of the image around the mask is held."""

    pair: ExportedPair
    drawn: Path
    size: tuple[int, int]
    area: int
    box: Box
    threshold: float
    labels: dict[str, Pixels]
    fits: dict[str, LabelFit]


def relabel(
    folder: Path,
    settings: RefineSettings,
    reconstruct: Reconstruct | None = None,
    dataset: AnomalyDataset | None = None,
    progress: Progress | None = None,
) -> Relabelled:
    """Make the labels of all pairs of a folder anew, from their drawn masks, and write both to its manifest.

    reconstruct: the autoencoder of the model that the pairs were made with; only a fixed threshold does without, and
    then pixels count that differ from the normal image. dataset: for auto. ``progress`` advances once for each pair.
    Interrupted, it can be run again. A pair in which nothing shows keeps its drawn mask and is left out of
    evaluations; a review can accept it. Raises InputError for a folder without manifest or normal images, and where
    something that the settings need is missing.
    """
    pairs = load_exported(folder, every=True)
    _check(folder, pairs, settings, reconstruct, dataset)
    real = RealLabels(dataset) if dataset is not None and settings.refine == AUTO else None
    modes = RULES if settings.refine == AUTO else (settings.refine,)
    kinds: dict[str, list[_Pair]] = {}
    for pair in pairs:
        found = _measured(folder, pair, settings, modes, reconstruct or unchanged)
        kinds.setdefault(pair.key, []).append(found)
        (progress or Quiet()).step()
    chosen, shares, lines = dict[str, str](), list[float](), list[str]()
    changes: dict[str, dict[str, Any]] = {}
    for key, members in kinds.items():
        mode = settings.refine
        if real is not None:
            fits = {name: middle([one.fits[name] for one in members]) for name in RULES}
            choice = choice_of(fits, real.fit(key, float(np.median([one.threshold for one in members]))))
            mode = choice.mode
            lines.append(choice.text(key))
        chosen[key] = mode
        own = {one.pair.record["image"]: _write(folder, one, mode, settings) for one in members}
        shares += [entry[SHARE] for entry in own.values()]
        hidden = sum(LEFT_OUT in entry and entry[LEFT_OUT] == NOTHING_SHOWS for entry in own.values())
        middle_share = float(np.median([entry[SHARE] for entry in own.values()]))
        text = f"{key}: {len(own)} labels by {mode} keep {middle_share:.2f} of their drawn masks"
        lines.append(text + (f"; {hidden} left out, {NOTHING_SHOWS}" if hidden else ""))
        changes |= own
    update_manifest(folder, changes)
    return Relabelled(chosen, shares, "\n".join(lines))


def finish_labels(
    folder: Path,
    settings: RefineSettings,
    files: ExportSettings,
    reconstruct: Callable[[], Reconstruct | None],
    dataset: AnomalyDataset | None,
    bar: MakeProgress,
) -> list[str]:
    """What an export ends with: labels other than drawn masks, then other label files; a text for each that was done.

    reconstruct: see ``relabel``; called when labels are needed. bar: makes the progress of so many pairs.
    """
    done = []
    if needs_labels(folder, settings):
        progress = bar(len(load_exported(folder, every=True)))
        done.append(relabel(folder, settings, reconstruct(), dataset, progress).report)
    return done + [text for text in [write_also(folder, files)] if text]


def label_key(pairs: str, settings: RefineSettings, dataset: AnomalyDataset | None, autoencoder: str) -> str:
    """The content key of pairs with such labels, by that of the pairs alone; with `keep` there is no difference."""
    if settings.refine == KEEP:
        return pairs
    compared = dataset.fingerprint() if dataset is not None and settings.refine == AUTO else ""
    return content_key(pairs, asdict(settings), compared, autoencoder)


def needs_labels(folder: Path, settings: RefineSettings) -> bool:
    """Whether the pairs of a folder have other labels than these settings make; drawn masks alone are kept ones."""
    made = [pair.record.get(LABEL) or {} for pair in load_exported(folder, every=True)]
    if settings.refine == KEEP:
        return any(entry.get("mode", KEEP) != KEEP for entry in made)
    return any(entry.get("settings") != asdict(settings) for entry in made)


def _check(
    folder: Path,
    pairs: Sequence[ExportedPair],
    settings: RefineSettings,
    reconstruct: Reconstruct | None,
    dataset: AnomalyDataset | None,
) -> None:
    without = [pair.image.name for pair in pairs if pair.normal is None or not pair.record]
    if without:
        raise InputError(
            f"pairs: {len(without)} of {len(pairs)} in {folder} have no normal image or no line in a manifest. Give a "
            "folder that Export Pairs, generate or a baseline wrote."
        )
    check_refining(settings, reconstruct is not None, dataset is not None)


def _measured(
    folder: Path, pair: ExportedPair, settings: RefineSettings, modes: Sequence[str], reconstruct: Reconstruct
) -> _Pair:
    drawn = folder / pair.object / DRAWN_FOLDER / pair.defect / pair.mask.name
    mask = read_mask(drawn if drawn.is_file() else pair.mask)
    assert pair.normal is not None  # see _check
    if not bool(mask.any()):
        raise DatasetError(f"{pair.mask}: the mask is empty. Remove the pair.")
    only_kept = tuple(modes) == (KEEP,)
    change = measure_change(
        read_image(pair.image, pair.bits),
        read_image(pair.normal, pair.bits),
        mask,
        unchanged if only_kept else reconstruct,
    )
    return _Pair(
        pair,
        drawn,
        (mask.shape[1], mask.shape[2]),
        int(mask.sum()),
        change.box,
        settings.threshold(change),
        {mode: label_of(change, mode, settings) for mode in modes},
        {mode: fit_of(change, mode, settings) for mode in modes},
    )


def _write(folder: Path, one: _Pair, mode: str, settings: RefineSettings) -> dict[str, Any]:
    """Write the label of a pair, with the drawn mask beside it first; what its line of the manifest then says."""
    pixels = one.labels[mode]
    shows = bool(pixels.any())
    if not one.drawn.is_file():
        with replacing(one.drawn) as partial:
            shutil.copyfile(one.pair.mask, partial)
    if mode == KEEP or not shows:
        with replacing(one.pair.mask) as partial:
            shutil.copyfile(one.drawn, partial)
    else:
        label = torch.zeros(one.size)
        one.box.of(label).copy_(torch.from_numpy(pixels.astype(np.float32)))
        _replace_mask(one.pair.mask, label)
    fill = one.fits[mode].fill
    left_out = one.pair.record.get(LEFT_OUT)
    if left_out == NOTHING_SHOWS:
        left_out = None
    return {
        "mask": one.pair.record["mask"],  # the file is another now, and so is its hash
        DRAWN: one.drawn.relative_to(folder).as_posix(),
        REFINED: one.pair.mask.relative_to(folder).as_posix(),
        SHARE: round(int(pixels.sum()) / one.area, 4) if shows else 1.0,
        LABEL: {
            "mode": mode,
            "threshold": round(one.threshold, 3),
            "fill": round(fill, 4),
            "settings": asdict(settings),
        },
        LEFT_OUT: left_out if shows else NOTHING_SHOWS,
    }


def _replace_mask(path: Path, mask: Tensor) -> None:
    with replacing(path) as partial:
        Image.fromarray((mask > 0.5).numpy().astype(np.uint8) * 255).save(partial, format="PNG")
