"""Evaluate Generation: how good, how varied and how new are generated pictures?"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..anomalydiffusion_core.data.generated import GeneratedImage, load_generated, method_name, of_object
from ..anomalydiffusion_core.data.images import read_image, read_mask, resize_image, resize_mask, write_image
from ..anomalydiffusion_core.data.mvtec import AnomalyDataset, DefectType, load_pairs
from ..anomalydiffusion_core.errors import InputError
from ..anomalydiffusion_core.evaluation.generation import (
    STAND_IN,
    TRUNKS,
    GeneratedSet,
    Generation,
    evaluate_generation,
    load_inception,
    load_perceptual,
)
from ..anomalydiffusion_core.evaluation.generation.evaluation import METRICS
from ..anomalydiffusion_core.evaluation.generation.records import generation_record
from ..anomalydiffusion_core.evaluation.generation.trunks import as_floats
from ..anomalydiffusion_core.evaluation.tables.records import FILE_NAME, write_records
from ..anomalydiffusion_core.figures import contact_sheet, to_bytes
from ..anomalydiffusion_core.sampling.effect import effect_score
from .host import folders, tensors
from .host import results as host_results
from .host.progress import Progress, compute_device
from .sockets import CATEGORY, Dataset, shown

RESULT = "generation.json"
PICTURE = "nearest.png"
ROWS_SHOWN = 8


class EvaluateGeneration(io.ComfyNode):
    """Inception Score, IC-LPIPS, effect score, and a check for copies of the training defects."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionEvaluateGeneration",
            display_name="Evaluate Generation",
            category=f"{CATEGORY}/evaluation",
            description=(
                "Measures generated pictures without any training: Inception Score, both forms of IC-LPIPS, effect "
                "score, and how near they are to the training defects. Networks come from local files only."
            ),
            inputs=[
                Dataset.Input("dataset", tooltip="Gives the training pairs that the pictures are compared with."),
                io.String.Input(
                    "pairs",
                    default="",
                    multiline=True,
                    tooltip=(
                        "Folders of generated pictures, one a line, taken together: absolute, or relative to "
                        "ComfyUI's output folder."
                    ),
                ),
                io.Combo.Input(
                    "trunk",
                    options=list(TRUNKS),
                    default=TRUNKS[0],
                    tooltip=(
                        "The published networks from local files, or small random stand-ins whose numbers cannot be "
                        "compared with published ones."
                    ),
                ),
                io.String.Input(
                    "inception_weights",
                    default="",
                    tooltip="torch-fidelity's Inception file or its folder. Empty looks into torch's hub cache.",
                ),
                io.String.Input(
                    "lpips_weights",
                    default="",
                    tooltip="torchvision's VGG-16 file or its folder. Empty looks into torch's hub cache.",
                ),
                io.Int.Input(
                    "size", default=256, min=64, max=1024, step=32, tooltip="Side in pixels at which all is measured."
                ),
                io.Int.Input(
                    "splits", default=10, min=1, max=100, tooltip="Parts of the Inception Score, whose mean is taken."
                ),
                io.Int.Input(
                    "most_pictures",
                    default=1000,
                    min=2,
                    max=100000,
                    tooltip="At most so many pictures of each type are taken, in the order of the folder.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**31 - 1, tooltip="Seed of the parts and of the sampled pairs."
                ),
                io.String.Input(
                    "method", default="", tooltip="Name in tables. Empty takes it from the manifest or the folder."
                ),
                io.String.Input(
                    "folder",
                    default="anomalydiffusion/generation",
                    tooltip="Name of the folder inside ComfyUI's output folder; a number is added.",
                ),
            ],
            outputs=[
                io.String.Output("table", display_name="table", tooltip="All metrics by type, Markdown."),
                io.Image.Output(
                    "nearest",
                    display_name="nearest",
                    tooltip="The generated defects that are nearest to a training defect, beside it.",
                ),
                io.String.Output("metrics", display_name="metrics", tooltip="All numbers and settings as JSON."),
                io.String.Output(
                    "result_folder", display_name="result folder", tooltip="The folder with all of this."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        dataset: AnomalyDataset,
        pairs: str,
        trunk: str,
        inception_weights: str,
        lpips_weights: str,
        size: int,
        splits: int,
        most_pictures: int,
        seed: int,
        method: str,
        folder: str,
    ) -> io.NodeOutput:
        device = compute_device()
        inception = load_inception(trunk, inception_weights, device)
        perceptual = load_perceptual(trunk, lpips_weights, device)
        chosen = host_results.pairs_folders(pairs)
        found = {path: load_generated(path) for path in chosen}
        name = method.strip() or " + ".join(dict.fromkeys(method_name(*item) for item in found.items()))
        budget = {"size": size, "splits": splits, "most_pictures": most_pictures}
        key = host_results.content_key(
            "generation 2",
            dataset.fingerprint(),
            [folders.folder_fingerprint(path) for path in chosen],
            [inception.name, perceptual.name, budget, seed, name],
        )
        earlier = host_results.find_result(folder, RESULT, key)
        if earlier is not None:
            return _output(*earlier, again=True)
        pictures = [picture for part in found.values() for picture in of_object(part, dataset.object)]
        sets = _sets(dataset, pictures, size, most_pictures)
        result = evaluate_generation(sets, inception, perceptual, splits, seed=seed, on_step=_reporter(sets))
        stored = {
            **result.as_dict(),
            "object": dataset.object,
            "method": name,
            "seeds": [seed],
            "budget": budget,
            "stand_in": trunk == STAND_IN,
            "pairs_folders": [folders.relative_to_output(path) for path in chosen],
            host_results.CONTENT_KEY: key,
        }
        with folders.new_output_folder(folder) as (draft, final):
            _write(draft, stored, _nearest_sheet(sets, result))
            if trunk != STAND_IN:  # these have no place beside published numbers
                write_records(draft / FILE_NAME, [generation_record(result, dataset, name, seed, budget)])
        return _output(final, stored)


def _sets(
    dataset: AnomalyDataset, pictures: Sequence[GeneratedImage], size: int, most: int
) -> dict[str, GeneratedSet]:
    """Generated pictures by type, of the types of the data set. Raises InputError that names both sides."""
    sets = {}
    for kind in dataset.types:
        chosen = [picture for picture in pictures if picture.defect == kind.defect][:most]
        if chosen:
            sets[kind.defect] = _set(kind, chosen, size)
    if not sets:
        there = ", ".join(sorted({picture.defect for picture in pictures}))
        known = ", ".join(kind.defect for kind in dataset.types) or "none"
        raise InputError(f"pairs: hold pictures of {there}, the data set has the types {known}. Choose what fits.")
    return sets


def _set(kind: DefectType, pictures: Sequence[GeneratedImage], size: int) -> GeneratedSet:
    images, masks, effects, fills = [], [], [], []
    for picture in pictures:
        image = read_image(picture.image)[None]
        images.append(torch.from_numpy(to_bytes(resize_image(image, size))))
        if picture.mask is None:
            continue
        mask = read_mask(picture.mask)[None]
        masks.append(resize_mask(mask, size))
        effect, fill = (picture.record.get(name) for name in ("effect_score", "fill_share"))
        if (effect is None or fill is None) and picture.normal is not None:
            normal = read_image(picture.normal)[None]
            measured = effect_score(image, normal, normal, mask)
            effect, fill = float(measured.effect), float(measured.fill_share)
        if effect is not None and fill is not None:
            effects.append(float(effect))
            fills.append(float(fill))
    references = load_pairs(kind.train, size)
    stacked = torch.cat(masks) if len(masks) == len(images) else None
    return GeneratedSet(torch.cat(images), stacked, *references, tuple(effects), tuple(fills))


def _reporter(sets: dict[str, GeneratedSet]) -> Callable[[str, int], None]:
    """Moves the progress bar, and lets the user interrupt, at every batch. The total is an estimate."""
    progress = Progress(sum(3 * len(part.images) for part in sets.values()))
    return lambda kind, count: progress.step(count)


def _nearest_sheet(sets: dict[str, GeneratedSet], result: Generation) -> Tensor:
    """The most similar pairs of all types, or the first pictures where no method gave masks."""
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


def _write(folder: Any, stored: dict[str, Any], sheet: Tensor) -> None:
    host_results.write_json(folder / RESULT, stored)
    (folder / "table.md").write_text(_table(stored) + "\n", encoding="utf-8", newline="\n")
    names = [*METRICS]
    rows = [[stored["object"], stored["method"], kind, *(row[name] for name in names)] for kind, row in _rows(stored)]
    host_results.write_csv(folder / "generation.csv", ["object", "method", "defect", *names], rows)
    write_image(folder / PICTURE, sheet)


def _rows(stored: dict[str, Any]) -> list[tuple[str, dict[str, float | None]]]:
    return [*stored["by_type"].items(), ("mean of types", stored["metrics"])]


def _table(stored: dict[str, Any]) -> str:
    kinds = _rows(stored)
    lines = [f"| {stored['object']}, {stored['method']} | " + " | ".join(kind for kind, _ in kinds) + " |"]
    lines.append("|---" * (len(kinds) + 1) + "|")
    for name, heading in METRICS.items():
        lines.append(f"| {heading} | " + " | ".join(_cell(row[name]) for _, row in kinds) + " |")
    trunks, budget = stored["trunks"], stored["budget"]
    pooled = _cell(stored["metrics"]["is_pooled"])
    lines += [
        "",
        f"IS of all types together {pooled}. Measured at {budget['size']} px, IS in {budget['splits']} parts. "
        f"Inception: {trunks['inception']}. LPIPS: {trunks['lpips']}. Effect and distance are 0 to 255.",
    ]
    if stored["stand_in"]:
        lines.append("The networks are stand-ins: IS and IC-LPIPS cannot be compared with published numbers.")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "undefined" if value is None or math.isnan(value) else f"{value:.3f}"


def _output(folder: Any, stored: dict[str, Any], again: bool = False) -> io.NodeOutput:
    where = folders.relative_to_output(folder)
    table = _table(stored)
    text = f"{table}\n\nRead again from {where}: the same evaluation was made before." if again else table
    picture = tensors.to_host_images(read_image(folder / PICTURE))
    metrics = json.dumps(stored)
    ui = {
        **shown(text, result_folder=[where], metrics=[metrics]),
        "images": [folders.output_image(folder / PICTURE)],
    }
    return io.NodeOutput(table, picture, metrics, folder.as_posix(), ui=ui)
