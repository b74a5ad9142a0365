"""Time to place 1,000 masks of 512 px, beside one stock sampling of 20 steps on a slim Stable Diffusion 1.5.

`python benchmarks/masks.py`. The masks are procedural ones of all kinds, 0.2 to 10 % of the image; the region is a
disc with a hole, like a bottle seen from above. Every mask must lie inside it completely, which large and scattered
ones cannot: for those every place is searched. The peer is ComfyUI's own KSampler for one image with
guidance, without the VAE, on random weights; of 256 px only, which costs a fraction of one of 512 px. Making the masks
is not timed.

Prints a table and as the last line a JSON object: `placement_over_sampling` (median of the rounds' ratios; at most 1
is the aim), `placed_share`, `outside_pixels` (of placed masks; 0).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import typer
from common import against, finish, paired_times, slim_host, table, timed

from anomalydiffusion_core.masks.placement import place_masks
from anomalydiffusion_core.masks.procedural import MIXED, AreaDistribution, procedural_masks

SEED, CFG = 5, 2.0


def sampling(base: Path, size: int, steps: int) -> Callable[[], float]:
    """One stock sampling of one image; returns its seconds."""
    stock, model, clip, _ = slim_host(base)
    positive, negative = (stock("CLIPTextEncode", clip, text)[0] for text in ("a scratch", ""))
    latent = stock("EmptyLatentImage", size, size, 1)[0]
    return timed(lambda: stock("KSampler", model, SEED, steps, CFG, "euler", "normal", positive, negative, latent))


def ring(size: int) -> torch.Tensor:
    """A disc with a hole, [1, 1, size, size]: 0.45 and 0.1 of the side are its radii."""
    positions = (torch.arange(size) + 0.5) / size - 0.5
    radius = (positions[:, None] ** 2 + positions[None] ** 2).sqrt()
    return ((radius < 0.45) & (radius > 0.1)).float()[None, None]


def main(size: int = 512, masks: int = 1000, image: int = 256, steps: int = 20, rounds: int = 3) -> None:
    """Time of placing masks over that of one stock sampling."""
    region = ring(size)
    made = procedural_masks(MIXED, masks, size, SEED, AreaDistribution(0.002, 0.1))

    placing = timed(lambda: place_masks(made, region, 1.0, SEED))
    with tempfile.TemporaryDirectory() as folder:
        times = paired_times({"sampling": sampling(Path(folder), image, steps), "placement": placing}, rounds)
    placed = place_masks(made, region, 1.0, SEED)
    good = [entry.number for entry in placed.placements if entry.placed]
    middle, cells = against(times, "placement", "sampling")
    impossible = masks - len(good)
    rows = [
        [f"{steps} steps of one image of {image} px", *against(times, "sampling", "sampling")[1]],
        [f"{masks} masks of {size} px placed, {impossible} of them impossible", *cells],
    ]
    table(["work", "seconds (median)", f"over sampling, {rounds} rounds"], rows)
    outside = float((placed.masks[good] * (1 - region)).sum())
    finish({"placement_over_sampling": middle, "placed_share": len(good) / masks, "outside_pixels": outside})


if __name__ == "__main__":
    typer.run(main)
