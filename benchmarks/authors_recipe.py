"""A training step as the authors' code does it over one of ours, on the same networks.

    python benchmarks/authors_recipe.py            half the width of text2img-large everywhere
    python benchmarks/authors_recipe.py --full --batch 2     text2img-large at full size (16 GB of memory)

The model is the paper's, text2img-large in its original layout, with random weights; batch 4 at 256 x 256. Theirs:
the autoencoder encodes the batch in every step, the tokens and the sentence around them pass through the text encoder
of 32 layers, the spatial encoder is IR-50 with four heads, Adam on all of it. Ours: latents from the bank, tokens
straight to the cross-attention, the encoder `light` (the default) or `resnet50_fpn`, the same U-Net.

All alternate within each round; at full size, where they do not fit into memory together, one process follows the
other. Memory is the peak of a process of its own while it trains, less what it had before the model was there. The
last line is JSON: `training_speedup` and `memory_ratio` of the default encoder, and the same of `resnet50_fpn`.
"""

from __future__ import annotations

import gc
import importlib
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import typer
from common import against, finish, in_own_process, paired_times, peak_while, show, table, timed
from torch import Tensor

from anomalydiffusion_core.backends.models import open_model
from anomalydiffusion_core.bundles.authors_encoder import BATCH_STATISTICS, AuthorsEncoder, AuthorsLayout
from anomalydiffusion_core.conditioning.prompt_encoder import Prompt
from anomalydiffusion_core.training.inversion import AnomalyTrainer, InversionSettings, SpatialAnomalyTokens

SIDE, TOKENS, STEPS_ALONE = 256, 4, 3
RATE = 0.02
THEIRS, OURS = "as the authors'", ("ours, light", "ours, resnet50_fpn")
HALF_ENCODER = AuthorsLayout((32, 32, 64, 128, 256), TOKENS, 640, 6)
FULL_ENCODER = AuthorsLayout((64, 64, 128, 256, 512), TOKENS, 1280, 6)


def write_model(path: Path, full: bool) -> None:
    """The model's file."""
    importlib.import_module("in_process").load_extension(path.parent)
    files = importlib.import_module("text2img_file")
    half = replace(files.FULL, channels=160, width=640, heads=4, first_stage=64)
    files.write_text2img(path, files.FULL if full else half, dtype=torch.float16)


def images_and_masks(batch: int) -> tuple[Tensor, Tensor]:
    """Random images with a box each."""
    masks = torch.zeros(batch, 1, SIDE, SIDE)
    for number in range(batch):
        masks[number, :, 40 + 20 * number : 120 + 20 * number, 60:180] = 1
    return torch.rand(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)), masks


class AuthorsStep:
    """One step of their training: everything inside of it."""

    def __init__(self, path: Path, batch: int) -> None:
        torch.manual_seed(0)
        model = open_model(path, "cpu")
        self.denoiser: Any = model.denoiser
        layout = FULL_ENCODER if self.denoiser.context_width == FULL_ENCODER.width else HALF_ENCODER
        prompt = Prompt(model.text_encoder())
        tokens = torch.randn(TOKENS, layout.width) * 0.02
        encoder: Any = AuthorsEncoder(layout, BATCH_STATISTICS).train()
        self.module = SpatialAnomalyTokens([tokens], encoder, prompt)
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=RATE)
        self.images, self.masks = images_and_masks(batch)
        self.cells = torch.nn.functional.interpolate(self.masks, (SIDE // 8, SIDE // 8)).gt(0.5).float()

    def __call__(self) -> None:
        """Encode, predict, update."""
        mean, deviation = self.denoiser.encode_moments(self.images)
        latents = mean + deviation * torch.randn_like(mean)
        context = self.module([0] * len(mean), self.masks)
        t, noise = torch.randint(1000, (len(mean),)), torch.randn_like(latents)
        alpha = self.denoiser.schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        error = (self.denoiser.predict_noise(noisy, t, context) - noise) * self.cells
        self.optimizer.zero_grad(set_to_none=True)
        error.square().mean().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def our_step(path: Path, encoder: str, batch: int) -> Callable[[], object]:
    """One step of our training loop, on a bank of the same images."""
    settings = InversionSettings(batch_size=batch, resolution=SIDE, augmented_copies=0, encoder=encoder)
    pairs = {"part/defect": images_and_masks(batch)}
    loop = AnomalyTrainer(open_model(path, "cpu").denoiser, pairs, settings).loop
    return lambda: loop.losses.append(loop._one_step())


def step_of(name: str, path: Path, batch: int) -> Callable[[], object]:
    """What a step of this name does."""
    if name == THEIRS:
        return AuthorsStep(path, batch)
    return our_step(path, name.partition(", ")[2], batch)


def alone(name: str, path: Path, batch: int) -> dict[str, float]:
    """Bytes that training takes in this process, and the median seconds of a step behind the first."""
    psutil = importlib.import_module("psutil")
    before = psutil.Process().memory_info().rss
    step = timed(step_of(name, path, batch))
    gc.collect()
    seconds: list[float] = []
    peak = peak_while(lambda: seconds.extend(step() for _ in range(STEPS_ALONE)))
    return {"peak": peak - int(before), "seconds": statistics.median(seconds[1:])}


def main(
    full: bool = False, rounds: int = 5, batch: int = 4, model: Path | None = None, only: str = "", threads: int = 1
) -> None:
    """Time and memory of a training step of ours over one as the authors'."""
    torch.set_num_threads(threads)
    if only:
        assert model is not None
        return finish(alone(only, model, batch), None)
    with tempfile.TemporaryDirectory() as folder:
        path = model or Path(folder) / "text2img.safetensors"
        if model is None:
            show("writing the model")
            write_model(path, full)
        names = [THEIRS, *OURS]
        times = {}
        if not full:
            times = paired_times({name: timed(step_of(name, path, batch)) for name in names}, rounds)
        peaks = {}
        for name in names:
            show(f"in a process of its own: {name}")
            found = in_own_process(__file__, model=path, only=name, batch=batch, threads=threads)
            peaks[name] = found["peak"]
            if full:
                times[name] = [found["seconds"]]
    rows, ratios = [], {}
    for name in names:
        ratio, cells = against(times, name, THEIRS)
        ratios[name] = (1 / ratio, peaks[name] / peaks[THEIRS])
        memory = [f"{peaks[name] / 2**20:.0f}", f"{ratios[name][1]:.3f}"]
        rows.append([name, *cells, *memory])
    table(
        ["a step", "seconds (median)", f"over theirs, {len(times[THEIRS])} rounds", "memory in MiB", "over theirs"],
        rows,
    )
    light, resnet = (ratios[name] for name in OURS)
    finish(
        {
            "training_speedup": light[0],
            "memory_ratio": light[1],
            "training_speedup_resnet50_fpn": resnet[0],
            "memory_ratio_resnet50_fpn": resnet[1],
        }
    )


if __name__ == "__main__":
    typer.run(main)
