"""Time and memory of blended sampling with re-weighting, beside ComfyUI's own KSampler with the same noise mask.

Both sample the same latents with the same noise mask, conditioning, steps and batch on a slim Stable Diffusion 1.5 of
random weights: `python benchmarks/sampling.py`. The VAE outside of the sampling is in none of the figures, that of
the decoded difference is.

Memory is the largest resident set while sampling, each run in a process of its own. Prints a table and as the last
line a JSON object: `latent_over_stock`, `decoded5_over_stock` (medians of the rounds' ratios), `memory_over_stock`
(the larger of the two kinds of difference).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import typer
from common import finish, paired_times, ratio, show, table

SEED, CFG, TOKENS = 11, 2.0, 12
RUNS = ("stock", "latent", "decoded5")


@dataclass(frozen=True)
class Case:
    """Sizes of what is sampled: the side in pixels, pictures in the batch, and steps."""

    size: int
    batch: int
    steps: int


def make_runs(case: Case, base: Path) -> dict[str, Callable[[], float]]:
    """Each run samples once and returns its seconds."""
    import in_process

    in_process.load_extension(base)
    stock = in_process.stock_nodes()
    model, clip, vae = in_process.slim_diffusion(stock)
    part = _parts()
    generator = torch.Generator().manual_seed(SEED)
    images = torch.rand(case.batch, case.size, case.size, 3, generator=generator)
    masks = irregular_masks(case)
    negative = stock("CLIPTextEncode", clip, "")[0]
    rows = torch.randn(1, TOKENS, 768, generator=generator)
    # Twelve anomaly rows and the rest a caption, as a template with a placeholder gives.
    text = torch.cat([negative[0][0][:, : 77 - TOKENS], rows], dim=1)
    columns = torch.zeros(77, dtype=torch.bool)
    columns[-TOKENS:] = True
    positive = [[text, {part.conditioning.COLUMNS: columns}]]
    encoded = stock("VAEEncode", vae, images)[0]
    masked = stock("SetLatentNoiseMask", encoded, masks)[0]
    denoiser = part.models.ComfyDenoiser(model, vae)
    settings = part.core.SamplingSettings(SEED, case.steps, CFG, batch_size=case.batch)
    sampler, wrap = part.sampling.ComfySampler(denoiser), part.conditioning.ComfyConditioning
    cells = part.blending.latent_mask(masks[:, None], denoiser.downscale)
    pictures = images.movedim(-1, 1)

    def peer() -> None:
        stock("KSampler", model, SEED, case.steps, CFG, "euler", "normal", positive, negative, masked)

    def ours(**options: Any) -> None:
        weighting = part.core.Weighting(part.reweighting.ReweightingSettings(**options), pictures)
        progress = part.progress.Progress(case.steps * case.batch)
        with torch.inference_mode():
            sampler.sample(encoded["samples"], cells, wrap(positive), wrap(negative), settings, progress, weighting)

    def timed(run: Callable[[], None]) -> Callable[[], float]:
        def measure() -> float:
            started = time.perf_counter()
            run()
            return time.perf_counter() - started

        return measure

    decoded = {"difference": part.reweighting.DECODED, "decode_every": 5}
    return {"stock": timed(peer), "latent": timed(lambda: ours()), "decoded5": timed(lambda: ours(**decoded))}


def irregular_masks(case: Case) -> torch.Tensor:
    """A blob and a stroke per picture, each at another place: [B, size, size] of {0, 1}, about a twelfth of it."""
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


@dataclass(frozen=True)
class _Parts:
    """Modules of the extension as ComfyUI loaded it."""

    progress: Any
    models: Any
    sampling: Any
    conditioning: Any
    core: Any
    blending: Any
    reweighting: Any


def _parts() -> _Parts:
    import importlib

    from in_process import PACKAGE

    def module(name: str) -> Any:
        return importlib.import_module(f"{PACKAGE}.{name}")

    return _Parts(
        module("nodes.host.progress"),
        module("nodes.host.denoiser"),
        module("nodes.host.sampler"),
        module("nodes.host.conditioning"),
        module("anomalydiffusion_core.sampling.sampler"),
        module("anomalydiffusion_core.sampling.blending"),
        module("anomalydiffusion_core.sampling.reweighting"),
    )


def peak_while(run: Callable[[], object]) -> int:
    """Largest resident set in bytes while `run` runs, sampled every two milliseconds."""
    own, peak, done = psutil.Process(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, own.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return peak


def memory_of(name: str, case: Case) -> int:
    """Peak of one run in bytes, in a fresh process."""
    command = [sys.executable, __file__, "--only-memory-of", name]
    command += ["--size", str(case.size), "--batch", str(case.batch), "--steps", str(case.steps)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(json.loads(done.stdout.splitlines()[-1])["peak"])


def main(
    size: int = 256, batch: int = 2, steps: int = 10, rounds: int = 5, memory_rounds: int = 2, only_memory_of: str = ""
) -> None:
    """Time and memory of sampling with re-weighting over those of ComfyUI's own KSampler."""
    case = Case(size, batch, steps)
    with tempfile.TemporaryDirectory() as folder:
        runs = make_runs(case, Path(folder))
        if only_memory_of:
            sys.stdout.write(json.dumps({"peak": peak_while(runs[only_memory_of])}) + "\n")
            return
        times = paired_times(runs, rounds)
    show("memory, each run in a process of its own")
    peaks = {name: min(memory_of(name, case) for _ in range(memory_rounds)) for name in RUNS}
    rows, figures = [], {}
    for name in RUNS:
        middle, low, high = ratio(times, name, "stock")
        seconds = sorted(times[name])[rounds // 2]
        memory = peaks[name] / peaks["stock"]
        spread = f"{middle:.3f} ({low:.3f} to {high:.3f})"
        rows.append([name, f"{seconds:.2f}", spread, f"{peaks[name] / 1e6:.0f}", f"{memory:.3f}"])
        figures[f"{name}_over_stock"] = middle
    table(["sampling", "seconds (median)", f"time over stock, {rounds} rounds", "peak MB", "memory over stock"], rows)
    figures["memory_over_stock"] = max(peaks[name] for name in RUNS[1:]) / peaks["stock"]
    figures.pop("stock_over_stock")
    finish(figures)


if __name__ == "__main__":
    typer.run(main)
