"""Does training teach something about defects it has not seen? Loss on held-out pairs before and after, and a sheet.

`python benchmarks/held_out_loss.py --data DIR --category bottle` learns all defect types of a category from the
training side of its split, with the demo prior and without ComfyUI. The loss is Eq. 5 on the test side: the same
images, noise and times for both embeddings, the masked error divided by the area of the mask. Untrained means the
very tokens and spatial encoder that training starts from.

Writes a contact sheet (one row per sample: normal, mask of a held-out defect, generated, nearest training defect),
prints a table, and as the last line a JSON object: `loss_untrained`, `loss_trained` (means over the types), and both
for each type.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from common import OUTPUT, finish, show, table
from torch import Tensor

from anomalydiffusion_core.backends.ldm import LdmDenoiser, load_ldm
from anomalydiffusion_core.bundles.bundle import AnomalyBundle, anomaly_context
from anomalydiffusion_core.bundles.conditioning import anomaly_conditioning
from anomalydiffusion_core.conditioning.context import ContextConditioning
from anomalydiffusion_core.data.images import write_image
from anomalydiffusion_core.data.mvtec import AnomalyDataset, load_dataset, load_images, load_pairs
from anomalydiffusion_core.evaluation.generation.memorization import nearest_training_defects
from anomalydiffusion_core.figures import contact_sheet
from anomalydiffusion_core.progress import Quiet
from anomalydiffusion_core.sampling.blending import latent_mask
from anomalydiffusion_core.sampling.reweighting import ReweightingSettings
from anomalydiffusion_core.sampling.sampler import SamplingSettings
from anomalydiffusion_core.sampling.scene import Recipe, sample_blended
from anomalydiffusion_core.sampling.schedulers import SchedulerSampler
from anomalydiffusion_core.server.runs import DEMO_PRIOR
from anomalydiffusion_core.training.inversion import AnomalyTrainer, InversionSettings
from anomalydiffusion_core.training.settings import StepReport

SIZE, TIMES, BATCH = 256, 16, 8


@torch.no_grad()
def held_out_loss(model: LdmDenoiser, bundle: AnomalyBundle, key: str, images: Tensor, masks: Tensor) -> float:
    """Eq. 5 over pairs [N, 3, s, s], [N, 1, s, s], each at `TIMES` times spread over the schedule."""
    latents = torch.cat([model.encode(part) for part in images.split(BATCH)])
    cells, context = latent_mask(masks, model.downscale), anomaly_context(bundle, key, masks)
    generator = torch.Generator().manual_seed(1)
    total = len(model.alphas_cumprod)
    losses = []
    for place in range(TIMES):
        t = torch.full((len(latents),), int((place + 0.5) * total / TIMES))
        noise = torch.randn(latents.shape, generator=generator)
        alpha = model.alphas_cumprod[t].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        for start in range(0, len(latents), BATCH):
            part = slice(start, start + BATCH)
            error = (noise[part] - model.predict_noise(noisy[part], t[part], context[part])).square()
            inside = cells[part].expand_as(error)
            losses.append((error * inside).flatten(1).sum(1) / inside.flatten(1).sum(1))
    return float(torch.cat(losses).mean())


def sheet_rows(
    model: LdmDenoiser, bundle: AnomalyBundle, dataset: AnomalyDataset, per_type: int, steps: int, cfg: float
) -> tuple[list[list[Tensor]], list[str]]:
    """Normal, mask, generated and nearest training defect of every sample, and the titles of the rows."""
    rows: list[list[Tensor]] = []
    titles: list[str] = []
    normals = load_images(dataset.normals[:per_type], SIZE)
    for kind in dataset.types:
        masks = load_pairs(kind.test[:per_type], SIZE)[1]
        known, known_masks = load_pairs(kind.train, SIZE)
        own = normals[: len(masks)]
        positive, empty = anomaly_conditioning(bundle, kind.key, masks), ContextConditioning(model.empty_context)
        recipe = Recipe(SamplingSettings(7, steps, cfg, scheduler="simple"), ReweightingSettings())
        made = sample_blended(SchedulerSampler(model), own, masks, positive, empty, recipe, Quiet()).images
        nearest = nearest_training_defects(made, masks, known, known_masks)
        for number, mask in enumerate(masks):
            rows.append([own[number], mask, made[number], known[int(nearest.index[number])]])
            titles.append(kind.defect if number == 0 else "")
        show(f"{kind.key}: {len(masks)} drawn")
    return rows, titles


def main(
    data: Annotated[Path, typer.Option(help="Folder that holds the category, in the MVTec layout.")],
    category: str = "bottle",
    training_steps: int = 300,
    start: Annotated[str, typer.Option(help="Words of the prior that training starts from.")] = "stain, scratch",
    per_type: Annotated[int, typer.Option(help="Samples of each type on the sheet.")] = 4,
    steps: int = 20,
    cfg: float = 2.0,
    seed: int = 0,
    prior: Path = DEMO_PRIOR,
    out: Path = OUTPUT / "held_out.png",
) -> None:
    """Loss on held-out pairs of an untrained and of a trained embedding."""
    model = load_ldm(prior)
    dataset = load_dataset(data.absolute(), category)
    pairs = {kind.key: load_pairs(kind.train, SIZE) for kind in dataset.types}
    settings = InversionSettings(steps=training_steps, seed=seed, normalize_by_mask_area=True)
    trainer = AnomalyTrainer(model, pairs, settings, initial_context=model.caption_context(start))
    untrained = trainer.result().bundle

    def report(step: StepReport) -> None:
        if step.step % 50 == 0:
            show(f"step {step.step} of {step.total}: loss {step.loss:.4f}")

    trained = trainer.run(report).bundle
    lines: list[list[str]] = []
    figures: dict[str, float] = {}
    for kind in dataset.types:
        images, masks = load_pairs(kind.test, SIZE)
        before, after = (held_out_loss(model, bundle, kind.key, images, masks) for bundle in (untrained, trained))
        figures |= {f"loss_untrained_{kind.defect}": before, f"loss_trained_{kind.defect}": after}
        lines.append([kind.defect, str(len(images)), f"{before:.4f}", f"{after:.4f}", f"{after / before:.3f}"])
    for which in ("untrained", "trained"):
        values = [value for name, value in figures.items() if name.startswith(f"loss_{which}_")]
        figures[f"loss_{which}"] = sum(values) / len(values)
    table(["type", "held-out pairs", "loss untrained", "loss trained", "ratio"], lines)
    rows, titles = sheet_rows(model, trained, dataset, per_type, steps, cfg)
    out.parent.mkdir(parents=True, exist_ok=True)
    columns = ("normal", "mask", "generated", "nearest training defect")
    write_image(out, contact_sheet(rows, columns, titles, cell=200))
    show(f"contact sheet: {out}")
    finish(figures)


if __name__ == "__main__":
    typer.run(main)
