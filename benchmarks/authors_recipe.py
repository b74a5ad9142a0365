"""A training step as the authors' code does it over one of ours, on the same networks.

    python benchmarks/authors_recipe.py            widths at about three tenths of text2img-large's
    python benchmarks/authors_recipe.py --full     text2img-large of random weights at full size (20 GB of memory)

The model is the paper's, text2img-large in its original layout, with random weights; batch 4 at 256 x 256. Theirs:
the autoencoder encodes the batch in every step, the tokens and the sentence around them pass through the text encoder
of 32 layers, the spatial encoder is IR-50 with four heads, Adam on all of it. Ours: latents from the bank, tokens
straight to the cross-attention, the encoder `light` (the default) or `resnet50_fpn`, the same U-Net. In the small
model the autoencoder is a little narrower than the rest, which is in their favour.

All alternate within each round. Memory is the peak of a process of its own while it trains, less what it had before
the model was there. The last line is JSON: `training_speedup` and `memory_ratio` of the default encoder, and the same
of `resnet50_fpn`.
"""

from __future__ import annotations

import gc
import importlib
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

SIDE, BATCH, TOKENS, STEPS_OF_PEAK = 256, 4, 4, 2
RATE = 0.02
THEIRS, OURS = "as the authors'", ("ours, light", "ours, resnet50_fpn")
SMALL_ENCODER = AuthorsLayout((20, 20, 40, 76, 152), TOKENS, 384, 6)
FULL_ENCODER = AuthorsLayout((64, 64, 128, 256, 512), TOKENS, 1280, 6)


def write_model(path: Path, full: bool) -> None:
    """The model's file."""
    importlib.import_module("in_process").load_extension(path.parent)
    files = importlib.import_module("text2img_file")
    small = replace(files.FULL, channels=96, width=384, heads=2, first_stage=32)
    files.write_text2img(path, files.FULL if full else small, dtype=torch.float16)


def images_and_masks() -> tuple[Tensor, Tensor]:
    """Random images with a box each."""
    masks = torch.zeros(BATCH, 1, SIDE, SIDE)
    for number in range(BATCH):
        masks[number, :, 40 + 20 * number : 120 + 20 * number, 60:180] = 1
    return torch.rand(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)), masks


class AuthorsStep:
    """One step of their training: everything inside of it."""

    def __init__(self, path: Path) -> None:
        torch.manual_seed(0)
        model = open_model(path, "cpu")
        self.denoiser: Any = model.denoiser
        layout = FULL_ENCODER if self.denoiser.context_width == FULL_ENCODER.width else SMALL_ENCODER
        prompt = Prompt(model.text_encoder())
        tokens = torch.randn(TOKENS, layout.width) * 0.02
        encoder: Any = AuthorsEncoder(layout, BATCH_STATISTICS).train()
        self.module = SpatialAnomalyTokens([tokens], encoder, prompt)
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=RATE)
        self.images, self.masks = images_and_masks()
        self.cells = torch.nn.functional.interpolate(self.masks, (SIDE // 8, SIDE // 8)).gt(0.5).float()

    def __call__(self) -> None:
        """Encode, predict, update."""
        mean, deviation = self.denoiser.encode_moments(self.images)
        latents = mean + deviation * torch.randn_like(mean)
        context = self.module([0] * BATCH, self.masks)
        t, noise = torch.randint(1000, (BATCH,)), torch.randn_like(latents)
        alpha = self.denoiser.schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        error = (self.denoiser.predict_noise(noisy, t, context) - noise) * self.cells
        self.optimizer.zero_grad(set_to_none=True)
        error.square().mean().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def our_step(path: Path, encoder: str) -> Callable[[], object]:
    """One step of our training loop, on a bank of the same images."""
    settings = InversionSettings(batch_size=BATCH, resolution=SIDE, augmented_copies=0, encoder=encoder)
    pairs = {"part/defect": images_and_masks()}
    loop = AnomalyTrainer(open_model(path, "cpu").denoiser, pairs, settings).loop
    return lambda: loop.losses.append(loop._one_step())


def step_of(name: str, path: Path) -> Callable[[], object]:
    """What a step of this name does."""
    if name == THEIRS:
        return AuthorsStep(path)
    return our_step(path, name.partition(", ")[2])


def peak_of(name: str, path: Path) -> int:
    """Bytes that training takes in this process."""
    psutil = importlib.import_module("psutil")
    before = psutil.Process().memory_info().rss
    step = step_of(name, path)
    gc.collect()

    def steps() -> None:
        for _ in range(STEPS_OF_PEAK):
            step()

    return peak_while(steps) - int(before)


def main(full: bool = False, rounds: int = 5, model: Path | None = None, only_memory_of: str = "") -> None:
    """Time and memory of a training step of ours over one as the authors'."""
    torch.set_num_threads(1)
    if only_memory_of:
        assert model is not None
        return finish({"peak": peak_of(only_memory_of, model)}, None)
    with tempfile.TemporaryDirectory() as folder:
        path = model or Path(folder) / "text2img.safetensors"
        if model is None:
            show("writing the model")
            write_model(path, full)
        names = [THEIRS, *OURS]
        times = paired_times({name: timed(step_of(name, path)) for name in names}, rounds)
        peaks = {}
        for name in names:
            show(f"memory: {name}")
            peaks[name] = in_own_process(__file__, model=path, only_memory_of=name)["peak"]
    rows, found = [], {}
    for name in names:
        ratio, cells = against(times, name, THEIRS)
        found[name] = (1 / ratio, peaks[name] / peaks[THEIRS])
        memory = [f"{peaks[name] / 2**20:.0f}", f"{found[name][1]:.3f}"]
        rows.append([name, *cells, *memory])
    table(["a step", "seconds (median)", f"over theirs, {rounds} rounds", "memory in MiB", "over theirs"], rows)
    light, resnet = (found[name] for name in OURS)
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
