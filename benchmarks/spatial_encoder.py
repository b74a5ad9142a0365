"""Does the spatial encoder place? Right against wrong masks, and whole images where it alone tells the place.

Two defects that pretraining held out are learned from six rendered pairs each, once for each weight of the loss
outside the mask (0 is the paper's masked loss, Eq. 5): `python benchmarks/spatial_encoder.py`. Then

- defects are drawn into masks with the tokens e_s of that mask, of another mask, and with e_s set to zero, same seeds;
- whole images are sampled without any mask, from the normal image noised up to `--denoise`: only e_s says where. What
  that changes, against the same sampling under the normal caption, is measured inside and outside of the region.

Prints a table and, as the last line, a JSON object of the first weight: `fill_gain` (fill share with the right mask
less that with another), `fill_gain_low` (lower end of its 95 % interval over the pairs, by bootstrap),
`inside_over_outside` (mean change inside over outside), and `inside_over_outside_low`. A contact sheet shows the whole
images.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from common import OUTPUT, finish, show, table
from reweighting_fill import BATCH, DEFECTS, SEED, SIZE, START, image_of, irregular_masks, support
from torch import Tensor

from anomalydiffusion_core.backends.ldm import LdmDenoiser, load_ldm
from anomalydiffusion_core.bundles.bundle import AnomalyBundle
from anomalydiffusion_core.bundles.conditioning import anomaly_conditioning
from anomalydiffusion_core.conditioning.context import ContextConditioning
from anomalydiffusion_core.data.images import write_image
from anomalydiffusion_core.data.sheets import outlined
from anomalydiffusion_core.figures import contact_sheet
from anomalydiffusion_core.progress import Quiet
from anomalydiffusion_core.sampling.sampler import SamplingSettings
from anomalydiffusion_core.sampling.scene import Recipe, sample_blended
from anomalydiffusion_core.sampling.schedulers import SchedulerSampler
from anomalydiffusion_core.server.runs import DEMO_PRIOR
from anomalydiffusion_core.synthetic import Caption, NoiseBank, render_scene
from anomalydiffusion_core.training.inversion import AnomalyTrainer, InversionSettings

RIGHT, WRONG, ZERO = "right", "wrong", "zero"
HEAD = (
    "loss outside",
    "fill right / wrong / e_s zero",
    "effect right / wrong / e_s zero",
    "fill gain (95 %)",
    "inside over outside (95 %)",
    "the same for another region",
)
DRAWS, SHOWN = 2000, 8


def learn(model: LdmDenoiser, steps: int, weight: float, seed: int) -> AnomalyBundle:
    """One embedding of both defects. weight: of the mean error outside the mask, beside that inside."""
    rng, bank = np.random.default_rng([SEED, seed]), NoiseBank(seed=SEED + seed)
    settings, context = InversionSettings(steps=steps), model.caption_context(START)[0]
    trainer = AnomalyTrainer(model, support(rng, bank), settings, initial_context=context)
    masked = trainer.loop.reduce

    def reduce(error: Tensor, inside: Tensor) -> Tensor:
        around = 1 - inside
        area = around.flatten(1).sum(dim=1) * error.shape[1]
        return masked(error, inside) + weight * ((error * around).flatten(1).sum(dim=1) / area.clamp_min(1)).mean()

    if weight:
        trainer.loop.reduce = reduce  # type: ignore[method-assign]
    return trainer.run().bundle


class Placing:
    """Fresh normal images and masks of both defects, and what a bundle makes of them."""

    def __init__(self, model: LdmDenoiser, per_type: int, steps: int, cfg: float, seed: int) -> None:
        rng, bank = np.random.default_rng([SEED, seed, 2]), NoiseBank(seed=SEED + seed)
        self.model, self.sampler = model, SchedulerSampler(model)
        self.sampling = SamplingSettings(seed, steps, cfg, scheduler="simple")
        self.normals: dict[str, Tensor] = {}
        self.masks: dict[str, Tensor] = {}
        for key, caption in DEFECTS.items():
            good = Caption(caption.surface, caption.surface_colour)
            images = [image_of(render_scene(rng, bank, good, SIZE).image) for _ in range(per_type)]
            self.normals[key] = torch.cat(images)
            self.masks[key] = irregular_masks(caption, per_type, rng, bank)

    def rows(self, bundle: AnomalyBundle, key: str, which: str) -> Tensor:
        """The context of each pair: with the tokens of its mask, of the next pair's mask, or with e_s zero."""
        masks = self.masks[key]
        rows = anomaly_conditioning(bundle, key, masks if which != WRONG else masks.roll(1, 0)).rows
        if which == ZERO:
            rows = rows.clone()
            rows[:, len(bundle.tokens[key]) :] = 0
        return rows

    def blended(self, bundle: AnomalyBundle, which: str) -> tuple[Tensor, Tensor]:
        """Fill share and effect of each pair, drawn into its mask."""
        fills, effects = [], []
        for key, normals in self.normals.items():
            rows = self.rows(bundle, key, which)
            for start in range(0, len(normals), BATCH):
                part = slice(start, start + BATCH)
                recipe = Recipe(replace(self.sampling, seed=self.sampling.seed + start))
                context, empty = ContextConditioning(rows[part]), ContextConditioning(self.model.empty_context)
                own = (normals[part], self.masks[key][part])
                made = sample_blended(self.sampler, *own, context, empty, recipe, Quiet())
                fills.append(made.scores.fill_share)
                effects.append(made.scores.effect)
        return torch.cat(fills), torch.cat(effects)

    def whole(self, bundle: AnomalyBundle, denoise: float) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Mean change of each pair inside its region, outside, and inside the next pair's region; images to show."""
        inside, outside, other, shown = (list[Tensor]() for _ in range(4))
        sampling, empty = replace(self.sampling, denoise=denoise), ContextConditioning(self.model.empty_context)
        for key, normals in self.normals.items():
            with torch.no_grad():
                latents = self.sampler.encode(normals, Quiet())
            images = []
            for rows in (self.rows(bundle, key, RIGHT), self.model.normal_context):
                made = self.sampler.sample(latents, None, ContextConditioning(rows), empty, sampling, Quiet())
                images.append(self.sampler.decode(made, Quiet()))
            change = (images[0] - images[1]).abs().mean(dim=1, keepdim=True) * 255
            for values, region in (
                (inside, self.masks[key]),
                (outside, 1 - self.masks[key]),
                (other, self.masks[key].roll(1, 0) * (1 - self.masks[key])),
            ):
                values.append((change * region).flatten(1).sum(1) / region.flatten(1).sum(1).clamp_min(1))
            for number in range(min(SHOWN, len(normals))):
                shown += [outlined(images[0][number], self.masks[key][number]), images[1][number]]
        return torch.cat(inside), torch.cat(outside), torch.cat(other), shown


def interval(values: Tensor, over: Tensor | None = None) -> tuple[float, float, float]:
    """Mean, or ratio of two means, with its 95 % interval by bootstrap over the pairs."""
    picks = torch.randint(len(values), (DRAWS, len(values)), generator=torch.Generator().manual_seed(0))
    means = values[picks].mean(dim=1)
    whole = float(values.mean())
    if over is not None:
        means, whole = means / over[picks].mean(dim=1), float(values.mean() / over.mean())
    return whole, float(means.quantile(0.025)), float(means.quantile(0.975))


def main(
    per_type: Annotated[int, typer.Option(help="Pairs of each of the two defects.")] = 24,
    training_steps: int = 300,
    outside: Annotated[str, typer.Option(help="Weights of the loss outside the mask, separated by commas.")] = "0,1",
    steps: int = 16,
    cfg: float = 2.0,
    denoise: Annotated[float, typer.Option(help="How far whole images are noised; 1 is from noise alone.")] = 1.0,
    seed: int = 0,
    prior: Path = DEMO_PRIOR,
    out: Path = OUTPUT / "spatial_encoder",
) -> None:
    """Right against wrong masks in blended sampling, and the place of what changes without any mask."""
    model = load_ldm(prior)
    placing = Placing(model, per_type, steps, cfg, seed)
    lines, figures = [], dict[str, float]()
    for text in outside.split(","):
        weight = float(text)
        show(f"learning both defects, {training_steps} steps, loss outside {weight:g}")
        bundle = learn(model, training_steps, weight, seed)
        blended = {which: placing.blended(bundle, which) for which in (RIGHT, WRONG, ZERO)}
        gain = interval(blended[RIGHT][0] - blended[WRONG][0])
        inside, around, other, shown = placing.whole(bundle, denoise)
        ratio, elsewhere = interval(inside, around), interval(other, around)
        rows = [shown[start : start + 2 * SHOWN] for start in range(0, len(shown), 2 * SHOWN)]
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"whole_{weight:g}_{denoise:g}.png"
        path.unlink(missing_ok=True)
        write_image(path, contact_sheet(rows, ["e_a and e_s", "normal"] * SHOWN, list(DEFECTS), 112))
        cells = [" / ".join(f"{float(pair[part].mean()):.3f}" for pair in blended.values()) for part in (0, 1)]
        spans = [f"{value:+.3f} ({low:+.3f} to {high:+.3f})" for value, low, high in (gain, ratio, elsewhere)]
        lines.append([f"{weight:g}", *cells, *spans])
        figures = figures or {
            "fill_gain": gain[0],
            "fill_gain_low": gain[1],
            "inside_over_outside": ratio[0],
            "inside_over_outside_low": ratio[1],
        }
    table(HEAD, lines)
    show(f"contact sheets: {out}")
    finish(figures)


if __name__ == "__main__":
    typer.run(main)
