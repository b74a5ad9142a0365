"""Pairs of a data set's types, generated block by block into a folder: resumable, and nothing is generated twice."""

from __future__ import annotations

import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..data.export import Exported, ExportSettings, PairBatch, export_batch, remove_unlisted, write_recipe
from ..data.image_form import form_of
from ..data.images import image_size
from ..data.mvtec import AnomalyDataset, load_images
from ..data.pairs import MANIFEST
from ..data.provenance import SOURCES
from ..data.selection import NormalSettings, picked_normals
from ..errors import InputError
from ..files import content_key, replacing, sweep
from ..lines import append_lines, begin_or_resume, read_lines
from ..progress import MakeProgress, Part, Progress, Quiet
from ..restricted_pickle import read_restricted
from .blocks import Block, Blocks
from .records import report_lines
from .run import Blended, BlendedSampling, BlendingSettings
from .sampler import Conditioning, Sampler

STATE = ".generation"
"""Folder, inside that of the pairs, of what a generation needs to resume."""
PLAN, SAMPLES = "plan.json", "samples.jsonl"
BLOCK_PIXELS = 2**22
"""Pixels of all images that are in memory at once, where they have their own size; one image may have more."""
UNITS = 100
"""Steps of a progress bar for each sample."""


class OnImage(Protocol):
    """A mask that is put on an image when it is needed."""

    def on(self, size: tuple[int, int]) -> Tensor:
        """[1, 1, H, W] of {0, 1} for an image of this (height, width)."""
        ...


Masks = Tensor | Sequence[OnImage]


def on_images(masks: Masks, start: int, images: Tensor) -> Tensor:
    """The masks [N, 1, H, W] from number ``start`` on for images [N, 3, H, W]."""
    if isinstance(masks, Tensor):
        return masks[start : start + len(images)]
    size = (int(images.shape[-2]), int(images.shape[-1]))
    return torch.cat([mask.on(size) for mask in masks[start : start + len(images)]])


class GenerationState:
    """The plan of a generation, its masks, and the samples that were generated so far."""

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        """Begin in a new folder, or resume. Raises InputError for a folder that holds anything else."""
        self.folder, self._state = folder, folder / STATE
        sweep(folder)
        sweep(self._state)
        if not (self._state / PLAN).is_file():
            shutil.rmtree(self._state, ignore_errors=True)
        begin_or_resume(self._state / PLAN, plan, folder)
        self.samples: list[dict[str, Any]] = self._exported_samples()
        remove_unlisted(folder)

    def masks(self, key: str, make: Callable[[], tuple[Masks, str]]) -> tuple[Masks, str]:
        """The masks of a type and how they were made, made once where they are tensors; others are cheap to make."""
        path = self._state / f"masks_{content_key(key)}.pt"
        if not path.is_file():
            masks, report = make()
            if not isinstance(masks, Tensor):
                return masks, report
            with replacing(path) as draft:
                torch.save({"masks": masks.bool(), "report": report}, draft)
        stored = read_restricted(path)
        return stored["masks"].float(), stored["report"]

    def add(self, key: str, made: Blended, kept: int) -> None:
        """Write down samples of a type, before their pairs are exported together: ``kept`` of them will be."""
        block = 1 + max((line["block"] for line in self.samples), default=-1)
        own = {"block": block, "size": len(made.records), "kept": kept, "type": key, "notices": made.notices}
        plain = [{name: value for name, value in one.items() if name != SOURCES} for one in made.records]
        lines = [{**own, "record": record} for record in plain]
        append_lines(self._state / SAMPLES, lines)
        self.samples += lines

    def done(self, key: str) -> int:
        """How many samples of a type are finished."""
        return sum(line["type"] == key for line in self.samples)

    def _exported_samples(self) -> list[dict[str, Any]]:
        """Samples that were written down with all of their block, and whose pairs are in the manifest."""
        path = self._state / SAMPLES
        lines = read_lines(path)
        sizes = Counter(line["block"] for line in lines)
        lines = [line for line in lines if sizes[line["block"]] == line["size"]]
        exported = len(read_lines(self.folder / MANIFEST))
        last = max((line["block"] for line in lines), default=-1)
        if _kept(lines) > exported:  # it ended before the last block was exported
            lines = [line for line in lines if line["block"] < last]
        if _kept(lines) != exported:
            raise InputError(
                f"out: {MANIFEST} in {self.folder} has {exported} pairs, but {_kept(lines)} were generated. Give a "
                "new folder."
            )
        path.unlink(missing_ok=True)
        append_lines(path, lines)
        return lines


def _kept(lines: Sequence[Mapping[str, Any]]) -> int:
    return sum({line["block"]: int(line["kept"]) for line in lines}.values())


def _noted(blocks: Iterator[Block], sent: deque[Block]) -> Iterator[Block]:
    for block in blocks:
        sent.append(block)
        yield block


@dataclass(frozen=True)
class Generated:
    """What a generation left: the pairs of all types, all samples by type (also those left out), and a report."""

    exported: Exported
    samples: Mapping[str, list[dict[str, Any]]]
    report: str


@dataclass(frozen=True)
class PairGeneration:
    """Generates ``normals.count`` samples of each type and writes those with enough effect.

    keys: types as object/defect. masks: a type to its masks, and how they were made: [count, 1, H, W] of {0, 1}, or
    masks of images of any size that are put on the images one at a time (`OnImage`). positive: a type and masks to
    their conditioning, one row each. learned_from: marks of the images that the masks were learned from; those of the
    conditioning join them. planned: the normal images of each type's samples; picked by ``normals`` where it is None.
    place: moves masks [N, 1, H, W] on their images [N, 3, H, W], by the seed of the first of them.
    """

    sampler: Sampler
    dataset: AnomalyDataset
    keys: Sequence[str]
    masks: Callable[[str], tuple[Masks, str]]
    positive: Callable[[str, Tensor], Conditioning]
    negative: Conditioning | None = None
    control: Conditioning | None = None
    learned_from: Mapping[str, Any] = field(default_factory=dict)
    normals: NormalSettings = field(default_factory=NormalSettings)
    sampling: BlendingSettings = field(default_factory=BlendingSettings)
    export: ExportSettings = field(default_factory=ExportSettings)
    planned: Mapping[str, Sequence[Path]] | None = None
    place: Callable[[Tensor, Tensor, int], Tensor] | None = None

    def _normals_of(self, key: str) -> Sequence[Path]:
        """The normal image of each sample of a type."""
        return picked_normals(self.dataset, self.normals, key) if self.planned is None else self.planned[key]

    def run(
        self,
        folder: Path,
        plan: Mapping[str, Any],
        make_progress: MakeProgress = Quiet,
        elsewhere: Blocks | None = None,
    ) -> Generated:
        """Generate into ``folder``, or resume there.

        elsewhere: makes the blocks, by ``make_block`` of an equal generation in other processes; this one writes.
        plan: plain values, by name, of what decides the result beside the settings and the images: a folder that was
        begun with others is an error. Raises InputError as ``BlendedSampling.run`` and ``export_batch``, and when no
        pair has enough effect.
        """
        state = GenerationState(folder, {**plan, **self._plan()})
        write_recipe(folder, command="generate", plan={**plan, **self._plan()})
        counts = {key: len(self._normals_of(key)) for key in self.keys}
        masks, reports = {}, {}
        for key in self.keys:
            masks[key], reports[key] = state.masks(key, partial(self.masks, key))
            if len(masks[key]) != counts[key]:
                raise InputError(
                    f"masks: {len(masks[key])} of {key} for {counts[key]} samples. Give one for each sample."
                )
        progress = make_progress(UNITS * sum(counts.values()))
        progress.step(UNITS * sum(state.done(key) for key in self.keys))
        begun = {key: state.done(key) for key in self.keys}
        if elsewhere is None:
            for block in self._blocks(begun, masks):
                self._write(state, block, self.make_block(block, progress))
        else:
            sent: deque[Block] = deque()
            for made in elsewhere(_noted(self._blocks(begun, masks), sent)):
                block = sent.popleft()
                self._write(state, block, made)
                progress.step(UNITS * len(block.masks))
        exported = Exported(read_lines(folder / MANIFEST), list(self.keys))
        if not exported.lines:
            raise InputError(f"min_effect: no pair reaches {self.export.min_effect:g}. Lower it, with a new folder.")
        samples = {key: [one["record"] for one in state.samples if one["type"] == key] for key in self.keys}
        report: list[str] = []
        for key in self.keys:
            lines = report_lines(samples[key], self.sampling.retry.min_effect)
            report += [reports[key], *(f"{key}: {line}" for line in lines)]
        report += dict.fromkeys(notice for one in state.samples for notice in one["notices"])
        return Generated(exported, samples, "\n".join([*report, exported.report(folder.name)]))

    def _plan(self) -> dict[str, Any]:
        """What decides the result, by name; the batch size does not."""
        values = {**asdict(self.sampling), "normals": asdict(self.normals), "export": asdict(self.export)}
        del values["sampling"]["batch_size"]
        return {**values, "types": list(self.keys), "data": self.dataset.fingerprint()}

    def _next(self, paths: Sequence[Path], start: int) -> list[Path]:
        """The next images: of one size, and not more than BLOCK_PIXELS, so that memory is bounded."""
        block = list(paths[start : start + self.sampling.sampling.batch_size])
        if self.normals.size:
            return block
        sizes = [image_size(path) for path in block]
        alike = next((place for place, size in enumerate(sizes) if size != sizes[0]), len(block))
        return block[: min(alike, max(BLOCK_PIXELS // (sizes[0][0] * sizes[0][1]), 1))]

    def _blocks(self, begun: Mapping[str, int], masks: Mapping[str, Masks]) -> Iterator[Block]:
        """What is left to make, in order: one sample on each normal image."""
        for key in self.keys:
            paths, start = self._normals_of(key), begun[key]
            while start < len(paths):
                part = self._next(paths, start)
                yield Block(key, start, tuple(part), self._masks_on(masks[key], start, part))
                start += len(part)

    def _masks_on(self, masks: Masks, start: int, paths: Sequence[Path]) -> Tensor:
        if isinstance(masks, Tensor) and self.place is None:
            return masks[start : start + len(paths)]
        images = self._images(paths)
        own = on_images(masks, start, images)
        return own if self.place is None else self.place(own, images, self.sampling.sampling.seed + start)

    def _images(self, paths: Sequence[Path]) -> Tensor:
        return load_images(paths, self.normals.size or None, self.dataset.bits)

    def make_block(self, block: Block, progress: Progress | None = None) -> Blended:
        """The samples of a block; they depend on nothing but its numbers and this generation's settings."""
        key, start, masks, own = block.key, block.start, block.masks, self.sampling.sampling
        images = self._images(block.paths)
        settings = replace(
            self.sampling,
            sampling=replace(own, seed=own.seed + start),
            control_samples=max(self.sampling.control_samples - start, 0),
        )
        part: MakeProgress = Quiet if progress is None else partial(Part, progress, UNITS * len(masks))
        return BlendedSampling(self.sampler, settings, part).run(
            images, masks, self.positive(key, masks), self.negative, self.control, want_latents=False
        )

    def _write(self, state: GenerationState, block: Block, made: Blended) -> None:
        """Note the samples of a block, and export their pairs."""
        key, images = block.key, self._images(block.paths)
        records = [{**one, SOURCES: {**self.learned_from, **one.get(SOURCES, {})}} for one in made.records]
        pairs = PairBatch(key, made.images, made.masks, images, records, form_of(self.dataset))
        state.add(key, made, len(pairs.kept(self.export)))
        export_batch(state.folder, pairs, self.export)
