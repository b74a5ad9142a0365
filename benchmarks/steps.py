"""Fewer steps, same defect: effect, fill, speed and detector over sampler and steps, beside the authors' 200 of DDIM.

The demo's defects are learned once; every row then draws the same pairs with the same seeds:
`python benchmarks/steps.py --out FOLDER`. Run it again with the same folder to resume: bundle, pairs and detectors
that are there are not made again. `--detector-steps 0` leaves the detectors out.

The authors sample with DDIM, 200 steps and no guidance, one call of the network a step (ddim.py of their code); their
row does the same on the same networks. Seconds are those of the processor, for sampling with both ways through the
autoencoder, so that other work on the machine does not count; all rows use one thread.

Prints a table and, as the last line, JSON: `pairs_per_minute_over_authors` is the speed of the fastest row whose
mean effect is at least that of the authors' row, over theirs; `effect_authors`, `effect_fastest`, `steps_fastest`, and
`effect_<sampler>_<steps>` of all rows.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import OUTPUT, finish, show, table

from anomalydiffusion_core.backends.ldm import LdmDenoiser, load_ldm
from anomalydiffusion_core.bundles.bundle import AnomalyBundle, load_bundle
from anomalydiffusion_core.bundles.conditioning import anomaly_conditioning
from anomalydiffusion_core.conditioning.context import ContextConditioning
from anomalydiffusion_core.data.export import export_pairs
from anomalydiffusion_core.data.mvtec import AnomalyDataset, load_dataset, load_pairs
from anomalydiffusion_core.data.selection import NormalSettings, pick_normals
from anomalydiffusion_core.data.splits import SplitSettings
from anomalydiffusion_core.evaluation.localization.comparison import compare_rows
from anomalydiffusion_core.evaluation.localization.rows import Row
from anomalydiffusion_core.evaluation.localization.runs import RunStore, SharedData
from anomalydiffusion_core.evaluation.localization.sources import (
    held_out_images,
    normal_images,
    pairs_folder,
    real_pairs,
)
from anomalydiffusion_core.evaluation.settings import LocalizerSettings
from anomalydiffusion_core.files import new_folder, write_json
from anomalydiffusion_core.masks.sources import MaskOrder, varied_masks
from anomalydiffusion_core.masks.variation import VariationSettings
from anomalydiffusion_core.sampling.reweighting import OFF, ReweightingSettings
from anomalydiffusion_core.sampling.run import BlendedSampling, BlendingSettings
from anomalydiffusion_core.sampling.sampler import SamplingSettings
from anomalydiffusion_core.sampling.schedulers import SchedulerSampler
from anomalydiffusion_core.sampling.windows import CropSettings
from anomalydiffusion_core.server.runs import DEMO_PRIOR
from anomalydiffusion_core.synthetic.fewshot import CATEGORY, render_fewshot_set
from anomalydiffusion_core.training.inversion import AnomalyTrainer, InversionSettings

AUTHORS, AUTHORS_STEPS = "authors", 200
START = "stain, scratch"
RECORD = "row.json"
HEAD = ("sampler", "steps", "cfg", "effect", "fill share", "pairs per minute", "over authors", "pixel AP", "PRO")


@dataclass(frozen=True)
class Tried:
    """One row: a sampler, its steps and guidance."""

    name: str
    sampler: str
    steps: int
    cfg: float

    @property
    def label(self) -> str:
        """Name of its folder."""
        return f"{self.name}_{self.steps}"


def tried(samplers: str, steps: str, cfg: float, authors_steps: int) -> list[Tried]:
    """The authors' row and all others."""
    rows = [Tried(AUTHORS, "ddim", authors_steps, 1.0)]
    return rows + [Tried(name, name, int(count), cfg) for name in samplers.split(",") for count in steps.split(",")]


def learned(model: LdmDenoiser, data: AnomalyDataset, steps: int, path: Path) -> AnomalyBundle:
    """One embedding of both types, from the file if it is there."""
    if not path.is_file():
        show(f"learning {len(data.types)} defects, {steps} steps")
        pairs = {kind.key: load_pairs(kind.train, 256) for kind in data.types}
        settings = InversionSettings(steps=steps, normalize_by_mask_area=True)
        context = model.caption_context(START)[0]
        AnomalyTrainer(model, pairs, settings, initial_context=context).run().bundle.save(path)
    return load_bundle(path)


def drawn(
    model: LdmDenoiser, bundle: AnomalyBundle, data: AnomalyDataset, row: Tried, count: int, seed: int, folder: Path
) -> dict[str, Any]:
    """Effect, fill and processor seconds of the pairs of one row, which are written to ``folder``."""
    if not (folder / RECORD).is_file():
        settings = BlendingSettings(
            SamplingSettings(seed, row.steps, row.cfg, row.sampler),
            ReweightingSettings(reweighting=OFF),
            CropSettings("off"),
            control_samples=0,
        )
        record: dict[str, Any] = {"effect": [], "fill": [], "seconds": 0.0, "pairs": 0, **asdict(row)}
        with new_folder(folder) as draft:
            for kind in data.types:
                order = MaskOrder(count, 256, seed)
                masks, _ = varied_masks(data, kind.key, order, VariationSettings())
                normals = pick_normals(data, NormalSettings(count, seed, 256), kind.key)
                positive = anomaly_conditioning(bundle, kind.key, masks)
                negative = ContextConditioning(model.empty_context) if row.cfg != 1 else None
                started = time.process_time()
                made = BlendedSampling(SchedulerSampler(model), settings).run(normals, masks, positive, negative)
                record["seconds"] += time.process_time() - started
                record["pairs"] += count
                record["effect"] += [one["effect_score"] for one in made.records]
                record["fill"] += [one["fill_share"] for one in made.records]
                export_pairs(draft, data.object, kind.defect, made.images, made.masks, normals, made.records)
            write_json(draft / RECORD, record)
    found: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return found


def detectors(
    data: AnomalyDataset, rows: Sequence[Tried], out: Path, settings: LocalizerSettings, seeds: range
) -> dict[str, tuple[str, str]]:
    """Pixel AP and PRO of a detector trained on few real and the pairs of each row, and without pairs."""
    shared = SharedData(real_pairs(data), normal_images(data), held_out_images(data))
    listed = [Row("few_real", "few real", "few real", True)]
    listed += [Row(row.label, row.label, row.label, True, pairs_folder(out / "pairs" / row.label)) for row in rows]
    compared = compare_rows(listed, shared, settings, list(seeds), RunStore(out / "detectors"))
    return {
        one.row.key: (
            f"{one.mean('pixel_ap'):.3f} +- {one.spread('pixel_ap'):.3f}",
            f"{one.mean('pixel_pro'):.3f} +- {one.spread('pixel_pro'):.3f}",
        )
        for one in compared.rows
    }


def main(
    samplers: Annotated[str, typer.Option(help="Separated by commas.")] = "euler,dpmpp_2m,uni_pc",
    steps: Annotated[str, typer.Option(help="Separated by commas.")] = "6,8,10,16,25",
    per_type: Annotated[int, typer.Option(help="Pairs of each of the two defects in each row.")] = 16,
    cfg: float = 2.0,
    training_steps: int = 300,
    authors_steps: int = AUTHORS_STEPS,
    detector_steps: Annotated[int, typer.Option(help="Training steps of each detector; 0 trains none.")] = 600,
    runs: int = 3,
    seed: int = 0,
    prior: Path = DEMO_PRIOR,
    out: Path = OUTPUT / "steps",
) -> None:
    """Effect, fill, speed and detector over sampler and steps."""
    torch.set_num_threads(1)
    model = load_ldm(prior)
    folder = render_fewshot_set(out / "images").parent
    data = load_dataset(folder, CATEGORY, SplitSettings(split="first n", train_count=6))
    bundle = learned(model, data, training_steps, out / f"bundle_{training_steps}.safetensors")
    rows = tried(samplers, steps, cfg, authors_steps)
    found = {}
    for row in rows:
        found[row.label] = drawn(model, bundle, data, row, per_type, seed, out / "pairs" / row.label)
        show(f"{row.label}: {found[row.label]['seconds']:.0f} s")
    numbers: dict[str, tuple[str, str]] = {}
    if detector_steps:
        settings = LocalizerSettings(size=64, width=8, steps=detector_steps)
        numbers = detectors(data, rows, out, settings, range(seed, seed + runs))
    speed = {name: 60 * one["pairs"] / one["seconds"] for name, one in found.items()}
    effect = {name: statistics.fmean(one["effect"]) for name, one in found.items()}
    authors = rows[0].label
    lines = [["none (few real)", "", "", "", "", "", "", *numbers["few_real"]]] if numbers else []
    for row in rows:
        one = found[row.label]
        cells = [f"{effect[row.label]:.1f}", f"{statistics.fmean(one['fill']):.3f}", f"{speed[row.label]:.1f}"]
        cells += [f"{speed[row.label] / speed[authors]:.1f}", *numbers.get(row.label, ("", ""))]
        lines.append([f"{row.name} ({row.sampler})", str(row.steps), f"{row.cfg:g}", *cells])
    table(HEAD, lines)
    equal = [row for row in rows[1:] if effect[row.label] >= effect[authors]]
    fastest = max(equal, key=lambda row: speed[row.label], default=None)
    figures = {f"effect_{row.label}": effect[row.label] for row in rows[1:]}
    if fastest is not None:
        figures["pairs_per_minute_over_authors"] = speed[fastest.label] / speed[authors]
        figures |= {"effect_fastest": effect[fastest.label], "steps_fastest": fastest.steps}
    else:
        figures["pairs_per_minute_over_authors"] = 0.0
    finish({**figures, "effect_authors": effect[authors]})


if __name__ == "__main__":
    typer.run(main)
