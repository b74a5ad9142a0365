"""Pairs on 1024 x 1024 images with small defects: windows at the trained scale, beside whole images in ComfyUI.

Both generate one pair after the other with the same steps, guidance and seeds on a slim Stable Diffusion 1.5 of random
weights: ours through `BlendedSampling` with windows of 256 px at 2 image pixels per sampled pixel, the peer through
ComfyUI's VAE Encode, Set Latent Noise Mask, KSampler and VAE Decode on the whole image, pasted back inside the mask.
`python benchmarks/native.py` takes few steps, since one on a whole image takes most of a minute on two cores. With
`--large-image`, instead the time and the peak memory of a pair on a grey 16-bit image of 5000 x 4000, with its export,
over those of the same defect on 1024 x 1024.

Prints a table and as the last line a JSON object: `speedup_over_whole_image` (pairs per minute over the peer's),
`seam_ratio` (mean gradient across the window's border in the result over that of the normal image; 1 is no seam) and
`effect_ratio` (effect score over the peer's); with `--large-image` `time_over_small` and `peak_mb` beyond the model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import typer
from common import against, finish, module, paired_times, peak_while, slim_host, table, timed
from PIL import Image

SEED, CFG, TOKENS = 3, 2.0, 12
CORE = "anomalydiffusion_core"


def defect(height: int, width: int, side: int) -> torch.Tensor:
    """An ellipse about ``side`` px long, off the middle: [1, 1, height, width]."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    away = ((y - height * 0.4) / (side * 0.3)) ** 2 + ((x - width * 0.6) / (side * 0.5)) ** 2
    return (away < 1).float()[None, None]


def surface(height: int, width: int) -> torch.Tensor:
    """A grey surface with soft structure and grain, [1, 3, height, width]."""
    generator = torch.Generator().manual_seed(SEED)
    coarse = torch.rand(1, 1, height // 64 + 2, width // 64 + 2, generator=generator)
    soft = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    grain = torch.rand(1, 1, height, width, generator=generator)
    return (0.3 + 0.3 * soft + 0.05 * grain).expand(-1, 3, -1, -1)


def seam_ratio(made: torch.Tensor, normal: torch.Tensor, box: tuple[int, int, int, int]) -> float:
    """Mean step between the pixels on both sides of a window's border, over that of the normal image."""
    top, left, height, width = box

    def steps(image: torch.Tensor) -> float:
        rows, columns = slice(top, top + height), slice(left, left + width)
        edges = [
            (image[:, y - 1, columns], image[:, y, columns]) for y in (top, top + height) if 0 < y < image.shape[1]
        ]
        edges += [(image[:, rows, x - 1], image[:, rows, x]) for x in (left, left + width) if 0 < x < image.shape[2]]
        return float(torch.cat([(one - other).abs().flatten() for one, other in edges]).mean())

    return steps(made) / steps(normal)


class Case:
    """What both sides share: the slim model, conditioning, and how often they step."""

    def __init__(self, base: Path, steps: int) -> None:
        self.stock, self.model, self.clip, self.vae = slim_host(base)
        self.steps = steps
        self.negative = self.stock("CLIPTextEncode", self.clip, "")[0]
        generator = torch.Generator().manual_seed(SEED)
        self.rows = torch.randn(1, TOKENS, 768, generator=generator)
        self.positive = [[torch.cat([self.negative[0][0][:, : 77 - TOKENS], self.rows], dim=1), {}]]
        self.scale = module(f"{CORE}.scale")

    def ours(self, image: torch.Tensor, mask: torch.Tensor, zoom: float) -> Any:
        """One pair through a window of 256 px with ``zoom`` image pixels per sampled pixel."""
        run, sampler = (module(f"{CORE}.sampling.{name}") for name in ("run", "sampler"))
        host = module("nodes.host.conditioning")
        view = self.scale.TrainedView(True, 256, 256, zoom, zoom * 0.9, zoom * 1.1, 60.0, tuple(image.shape[-2:]))
        columns = torch.zeros(77, dtype=torch.bool)
        columns[-TOKENS:] = True
        rows: torch.Tensor = self.positive[0][0]  # type: ignore[assignment]
        remake = lambda masks: rows.expand(len(masks), -1, -1)  # noqa: E731
        extra = {host.COLUMNS: columns, host.SOURCE: host.MaskSource(remake, 256, view)}
        settings = run.BlendingSettings(sampling=sampler.SamplingSettings(SEED, self.steps, CFG))
        engine = module("nodes.host.sampler").ComfySampler(
            module("nodes.host.denoiser").ComfyDenoiser(self.model, self.vae)
        )
        wrap = host.ComfyConditioning
        with torch.inference_mode():
            positive = wrap([[self.positive[0][0], extra]])
            return run.BlendedSampling(engine, settings).run(
                image, mask, positive, wrap(self.negative), want_latents=False
            )

    def peer(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """One pair on the whole image with stock nodes, [1, 3, H, W]."""
        pixels = image.movedim(1, -1).contiguous()
        latent = self.stock("SetLatentNoiseMask", self.stock("VAEEncode", self.vae, pixels)[0], mask[:, 0])[0]
        args = (self.model, SEED, self.steps, CFG, "euler", "normal", self.positive, self.negative, latent)
        decoded = self.stock("VAEDecode", self.vae, self.stock("KSampler", *args)[0])[0].movedim(-1, 1)
        return torch.where(mask > 0, decoded, image)


def compare(case: Case, size: int, side: int, rounds: int) -> None:
    """Windows over whole images."""
    image, mask = surface(size, size), defect(size, size, side)
    made: dict[str, Any] = {}

    def keep(name: str, run: Callable[[], Any]) -> Callable[[], None]:
        return lambda: made.__setitem__(name, run())

    runs = {
        "whole image, stock": timed(keep("peer", lambda: case.peer(image, mask))),
        "windows": timed(keep("ours", lambda: case.ours(image, mask, 2.0))),
    }
    times = paired_times(runs, rounds)
    effects = module(f"{CORE}.sampling.effect")
    pixels = image.movedim(1, -1).contiguous()
    rebuilt = case.stock("VAEDecode", case.vae, case.stock("VAEEncode", case.vae, pixels)[0])[0].movedim(-1, 1)
    stock_effect = float(effects.effect_score(made["peer"].cpu(), rebuilt.cpu(), image, mask).effect)
    record = made["ours"].records[0]
    rows = [[name, *against(times, name, "whole image, stock")[1]] for name in runs]
    table(["sampling", "seconds of a pair", f"over the whole image, {rounds} rounds"], rows)
    ratio, _ = against(times, "windows", "whole image, stock")
    finish(
        {
            "speedup_over_whole_image": 1 / ratio,
            "seam_ratio": seam_ratio(made["ours"].images[0], image[0], tuple(record["window"])),
            "effect_ratio": record["effect_score"] / stock_effect,
        }
    )


def large(case: Case, side: int, rounds: int) -> None:
    """A pair on 20 megapixels over one on 1024 x 1024, both from a 16-bit grey file to exported files."""
    export, form, images = (module(f"{CORE}.data.{name}") for name in ("export", "image_form", "images"))
    with tempfile.TemporaryDirectory() as folder:

        def pair(height: int, width: int) -> Callable[[], None]:
            path = Path(folder) / f"{height}.png"
            grey = (surface(height, width)[0, 0] * 65535).numpy().astype(np.uint16)
            Image.fromarray(grey).save(path)
            mask, count = defect(height, width, side), [0]

            def run() -> None:
                image = images.read_image(path, 16)[None]
                done = case.ours(image, mask, 0.5)
                batch = export.PairBatch(
                    "part/dent", done.images, done.masks, image, done.records, form.ImageForm(16, True)
                )
                count[0] += 1
                export.export_batch(Path(folder) / f"{height}_{count[0]}", batch, export.ExportSettings())

            return run

        runs = {"1024 x 1024": pair(1024, 1024), "5000 x 4000": pair(4000, 5000)}
        times = paired_times({name: timed(run) for name, run in runs.items()}, rounds)

        before = psutil.Process().memory_info().rss
        peak = (peak_while(runs["5000 x 4000"]) - before) / 1e6
    rows = [[name, *against(times, name, "1024 x 1024")[1]] for name in runs]
    table(["image", "seconds of a pair", f"over the small one, {rounds} rounds"], rows)
    finish({"time_over_small": against(times, "5000 x 4000", "1024 x 1024")[0], "peak_mb": peak})


def main(size: int = 1024, side: int = 100, steps: int = 4, rounds: int = 1, large_image: bool = False) -> None:
    """Windows over whole images, or huge images over large ones."""
    with tempfile.TemporaryDirectory() as folder:
        case = Case(Path(folder), steps)
        if large_image:
            return large(case, 60, rounds)
        compare(case, size, side, rounds)


if __name__ == "__main__":
    typer.run(main)
