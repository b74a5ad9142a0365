"""Time and memory of blended sampling with re-weighting, beside ComfyUI's own KSampler with the same noise mask.

Both sample the same latents with the same noise mask, conditioning, steps and batch on a slim Stable Diffusion 1.5 of
random weights: `python benchmarks/sampling.py`. The VAE outside of the sampling is in none of the figures, that of
the decoded difference is.

Memory is the largest resident set while sampling, each run in a process of its own. Prints a table and as the last
line a JSON object: `latent_over_stock`, `decoded5_over_stock` (medians of the rounds' ratios), `memory_over_stock`
(the larger of the two kinds of difference).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from common import against, finish, in_own_process, module, paired_times, peak_while, show, slim_host, table, timed

SEED, CFG, TOKENS = 11, 2.0, 12
RUNS = ("stock", "latent", "decoded5")
CONDITIONING = "nodes.host.conditioning"
SAMPLER, REWEIGHTING = (f"anomalydiffusion_core.sampling.{name}" for name in ("sampler", "reweighting"))


@dataclass(frozen=True)
class Case:
    """Sizes of what is sampled: the side in pixels, images in the batch, and steps."""

    size: int
    batch: int
    steps: int


def make_runs(case: Case, base: Path) -> dict[str, Callable[[], float]]:
    """Each run samples once and returns its seconds."""
    stock, model, clip, vae = slim_host(base)
    conditioning, core, reweighting = map(module, (CONDITIONING, SAMPLER, REWEIGHTING))
    generator = torch.Generator().manual_seed(SEED)
    images = torch.rand(case.batch, case.size, case.size, 3, generator=generator)
    masks = irregular_masks(case)
    negative = stock("CLIPTextEncode", clip, "")[0]
    rows = torch.randn(1, TOKENS, 768, generator=generator)
    # Twelve anomaly rows and the rest a caption, as a template with a placeholder gives.
    text = torch.cat([negative[0][0][:, : 77 - TOKENS], rows], dim=1)
    columns = torch.zeros(77, dtype=torch.bool)
    columns[-TOKENS:] = True
    positive = [[text, {conditioning.COLUMNS: columns}]]
    encoded = stock("VAEEncode", vae, images)[0]
    masked = stock("SetLatentNoiseMask", encoded, masks)[0]
    denoiser = module("nodes.host.denoiser").ComfyDenoiser(model, vae)
    settings = core.SamplingSettings(SEED, case.steps, CFG, batch_size=case.batch)
    sampler, wrap = module("nodes.host.sampler").ComfySampler(denoiser), conditioning.ComfyConditioning
    cells = module("anomalydiffusion_core.sampling.blending").latent_mask(masks[:, None], denoiser.downscale)

    def peer() -> None:
        stock("KSampler", model, SEED, case.steps, CFG, "euler", "normal", positive, negative, masked)

    def ours(**options: Any) -> None:
        weighting = core.Weighting(reweighting.ReweightingSettings(**options), images.movedim(-1, 1))
        progress = module("nodes.host.progress").Progress(case.steps * case.batch)
        with torch.inference_mode():
            sampler.sample(encoded["samples"], cells, wrap(positive), wrap(negative), settings, progress, weighting)

    decoded = {"difference": reweighting.DECODED, "decode_every": 5}
    return {"stock": timed(peer), "latent": timed(ours), "decoded5": timed(lambda: ours(**decoded))}


def irregular_masks(case: Case) -> torch.Tensor:
    """A blob and a stroke per image, each at another place: [B, size, size] of {0, 1}, about a twelfth of it."""
    side = case.size
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    masks = torch.zeros(case.batch, side, side)
    for place in range(case.batch):
        turn = 2.4 * place
        top = side * (0.5 + 0.2 * torch.sin(torch.tensor(turn)))
        left = side * (0.5 + 0.2 * torch.cos(torch.tensor(turn)))
        angle = torch.atan2(y - top, x - left)
        radius = side * (0.12 + 0.03 * torch.sin(5 * angle + turn))
        blob = ((y - top) ** 2 + (x - left) ** 2).sqrt() < radius
        stroke = ((y - x - side * 0.3).abs() < side * 0.02) & (x > side * 0.1) & (x < side * 0.6)
        masks[place] = (blob | stroke).float()
    return masks


def main(
    size: int = 256, batch: int = 2, steps: int = 10, rounds: int = 5, memory_rounds: int = 2, only_memory_of: str = ""
) -> None:
    """Time and memory of sampling with re-weighting over those of ComfyUI's own KSampler."""
    case = Case(size, batch, steps)
    with tempfile.TemporaryDirectory() as folder:
        runs = make_runs(case, Path(folder))
        if only_memory_of:
            return finish({"peak": peak_while(runs[only_memory_of])})
        times = paired_times(runs, rounds)
    show("memory, each run in a process of its own")
    sizes = {"size": size, "batch": batch, "steps": steps}

    def peak(name: str) -> float:
        found = [in_own_process(__file__, only_memory_of=name, **sizes) for _ in range(memory_rounds)]
        return min(one["peak"] for one in found)

    peaks = {name: peak(name) for name in RUNS}
    rows, figures = [], {}
    for name in RUNS:
        middle, cells = against(times, name, "stock")
        rows.append([name, *cells, f"{peaks[name] / 1e6:.0f}", f"{peaks[name] / peaks['stock']:.3f}"])
        figures[f"{name}_over_stock"] = middle
    table(["sampling", "seconds (median)", f"time over stock, {rounds} rounds", "peak MB", "memory over stock"], rows)
    figures["memory_over_stock"] = max(peaks[name] for name in RUNS[1:]) / peaks["stock"]
    figures.pop("stock_over_stock")
    finish(figures)


if __name__ == "__main__":
    typer.run(main)
