"""Does re-weighting fill masks? Fill share and effect of each mode beside plain blended sampling, on the demo prior.

Two defects that pretraining held out are learned from six rendered pairs each; then they are drawn into irregular
masks of one to three parts on fresh normal images, once without and once with each mode, with the same seeds:
`python benchmarks/reweighting_fill.py`. Fill share and effect are those of `anomalydiffusion_core.effect`.

Prints a table with the spread and the paired differences, saves a contact sheet (bands of rows: normal, mask, none,
paper, authors, monotone), and as the last line a JSON object: `fill_none`, `fill_paper`, `fill_authors`,
`fill_monotone`, and the same for `effect_` (means over all pairs).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from common import OUTPUT, finish, show, table
from torch import Tensor

from anomalydiffusion_core.backends.ldm import LdmDenoiser, load_ldm
from anomalydiffusion_core.bundles.bundle import AnomalyBundle
from anomalydiffusion_core.bundles.conditioning import anomaly_conditioning
from anomalydiffusion_core.conditioning.context import ContextConditioning
from anomalydiffusion_core.data.images import write_image
from anomalydiffusion_core.figures import contact_sheet
from anomalydiffusion_core.progress import Quiet
from anomalydiffusion_core.sampling.reweighting import OFF, ReweightingSettings
from anomalydiffusion_core.sampling.sampler import SamplingSettings
from anomalydiffusion_core.sampling.scene import Recipe, sample_blended
from anomalydiffusion_core.sampling.schedulers import SchedulerSampler
from anomalydiffusion_core.server.runs import DEMO_PRIOR
from anomalydiffusion_core.synthetic import Caption, NoiseBank, render_scene
from anomalydiffusion_core.synthetic.captions import PLACES, SIZES
from anomalydiffusion_core.training.inversion import AnomalyTrainer, InversionSettings

DEFECTS = {
    "leather/scratch": Caption("leather", "brown", "scratch", "light"),
    "leather/stain": Caption("leather", "brown", "stain", "blue"),
}
START = "stain, scratch"
MODES = (OFF, "paper", "authors", "monotone")
SUPPORT, SIZE, BATCH, SEED = 6, 256, 8, 500_000
CELL, COLUMNS = 112, 12
HEAD = ("re-weighting", "fill share (mean +- deviation)", "effect of 255", "fill over none", "pairs with more fill")


def learn(model: LdmDenoiser, steps: int, rng: np.random.Generator, bank: NoiseBank) -> AnomalyBundle:
    """One embedding of both defects, from `SUPPORT` rendered pairs each."""
    pairs = support(rng, bank)
    settings = InversionSettings(steps=steps)
    return AnomalyTrainer(model, pairs, settings, initial_context=model.caption_context(START)[0]).run().bundle


def support(rng: np.random.Generator, bank: NoiseBank) -> dict[str, tuple[Tensor, Tensor]]:
    """`SUPPORT` rendered pairs of each defect: images [N, 3, SIZE, SIZE] and masks [N, 1, SIZE, SIZE]."""
    pairs = {}
    for key, caption in DEFECTS.items():
        scenes = [render_scene(rng, bank, _placed(caption, rng), SIZE) for _ in range(SUPPORT)]
        pairs[key] = (torch.cat([image_of(s.image) for s in scenes]), torch.cat([_mask(s.mask) for s in scenes]))
    return pairs


def irregular_masks(caption: Caption, count: int, rng: np.random.Generator, bank: NoiseBank) -> Tensor:
    """[count, 1, SIZE, SIZE] of {0, 1}: unions of one, two or three outlines in turn, at any place."""
    masks = []
    for number in range(count):
        kinds = rng.choice(["scratch", "stain"], 1 + number % 3)
        shapes = [Caption("mask", "none", str(kind), "none") for kind in kinds]
        parts = [render_scene(rng, bank, _placed(shape, rng), SIZE).mask for shape in shapes]
        masks.append(_mask(np.any(parts, axis=0)))
    return torch.cat(masks)


def measure(
    model: LdmDenoiser, bundle: AnomalyBundle, per_type: int, steps: int, cfg: float, strength: float, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Tensor]]:
    """Fill shares and effects of every pair by mode, and the rows of the contact sheet."""
    rng, bank = np.random.default_rng([SEED, seed, 1]), NoiseBank(seed=SEED + seed)
    empty = ContextConditioning(model.empty_context)
    fill: dict[str, list[Tensor]] = {mode: [] for mode in MODES}
    effect: dict[str, list[Tensor]] = {mode: [] for mode in MODES}
    rows: dict[str, list[Tensor]] = {name: [] for name in ("normal", "mask", *MODES)}
    for key, caption in DEFECTS.items():
        good = Caption(caption.surface, caption.surface_colour)
        normals = torch.cat([image_of(render_scene(rng, bank, good, SIZE).image) for _ in range(per_type)])
        masks = irregular_masks(caption, per_type, rng, bank)
        rows["normal"].append(normals)
        rows["mask"].append(masks)
        for start in range(0, per_type, BATCH):
            part = slice(start, start + BATCH)
            chosen, region = normals[part], masks[part]
            positive = anomaly_conditioning(bundle, key, region)
            sampling = SamplingSettings(seed + start, steps, cfg, scheduler="simple")
            for mode in MODES:
                recipe = Recipe(sampling, ReweightingSettings(reweighting=mode, strength=strength))
                samples = sample_blended(SchedulerSampler(model), chosen, region, positive, empty, recipe, Quiet())
                fill[mode].append(samples.scores.fill_share)
                effect[mode].append(samples.scores.effect)
                rows[mode].append(samples.images)
            show(f"{key}: {min(start + BATCH, per_type)} of {per_type} pairs")
    gathered = [torch.cat(images) for images in rows.values()]
    return _joined(fill), _joined(effect), gathered


def save_sheet(rows: list[Tensor], path: Path) -> None:
    """One column per pair in bands of `COLUMNS`, in each band one row per entry of `rows`, as a PNG."""
    starts = range(0, len(rows[0]), COLUMNS)
    bands = [list(row[start : start + COLUMNS]) for start in starts for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, contact_sheet(bands, row_titles=["normal", "mask", *MODES] * len(starts), cell=CELL))


def _joined(parts: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    return {mode: torch.cat(values) for mode, values in parts.items()}


def _placed(caption: Caption, rng: np.random.Generator) -> Caption:
    place = (str(rng.choice(SIZES)), str(rng.choice(PLACES)))
    return Caption(caption.surface, caption.surface_colour, caption.defect, caption.defect_colour, *place)


def image_of(pixels: np.ndarray) -> Tensor:
    """Pixels [H, W, 3] of 0 to 255 as [1, 3, H, W] in [0, 1]."""
    return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None]


def _mask(mask: np.ndarray) -> Tensor:
    return torch.from_numpy(mask.astype(np.float32))[None, None]


def main(
    per_type: Annotated[int, typer.Option(help="Mask-image pairs of each of the two defects.")] = 24,
    training_steps: int = 200,
    steps: int = 20,
    cfg: float = 2.0,
    strength: float = 1.0,
    seed: int = 0,
    prior: Path = DEMO_PRIOR,
    out: Path = OUTPUT / "reweighting_fill.png",
) -> None:
    """Fill share and effect without re-weighting and with each mode."""
    model = load_ldm(prior)
    rng, bank = np.random.default_rng([SEED, seed]), NoiseBank(seed=SEED + seed)
    show(f"learning {len(DEFECTS)} defects, {training_steps} steps")
    bundle = learn(model, training_steps, rng, bank)
    fill, effect, rows = measure(model, bundle, per_type, steps, cfg, strength, seed)
    save_sheet(rows, out)
    lines = []
    for mode in MODES:
        more = fill[mode] - fill[OFF]
        gain = f"{float(more.mean()):+.3f} +- {float(more.std() / len(more) ** 0.5):.3f}"
        raised = f"{int((more > 0).sum())} of {len(more)}"
        cells = [f"{float(v[mode].mean()):.3f} +- {float(v[mode].std()):.3f}" for v in (fill, effect)]
        lines.append([mode, *cells, gain, raised] if mode != OFF else [mode, *cells, "", ""])
    table(HEAD, lines)
    show(f"contact sheet: {out}")
    finish(
        {f"fill_{mode}": float(fill[mode].mean()) for mode in MODES}
        | {f"effect_{mode}": float(effect[mode].mean()) for mode in MODES}
    )


if __name__ == "__main__":
    typer.run(main)
