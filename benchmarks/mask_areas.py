"""What keeping thin parts costs in area when masks are made smaller: `python benchmarks/mask_areas.py`.

Procedural masks of each kind, or with `--folder` all mask files below a folder, brought to a half, a quarter and an
eighth of their size by `resize_mask`, and by the majority alone as before. The area of a mask is its share of the
image. Prints a table and as the last line a JSON object: `bias_half`, `bias_quarter`, `bias_eighth` (mean area over
that of the originals), the same with `majority_` before it, and `lost_parts` and `majority_lost_parts` (share of the
8-connected parts of which nothing is left at an eighth; the first is 0).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import typer
from common import finish, table
from scipy import ndimage

from anomalydiffusion_core.data.mask_files import read_mask
from anomalydiffusion_core.data.mask_resizing import resize_mask
from anomalydiffusion_core.masks.procedural import KINDS, AreaDistribution, procedural_masks

FACTORS = {"half": 2, "quarter": 4, "eighth": 8}
SIZE = 512


def originals(folder: Path | None, count: int) -> dict[str, list[torch.Tensor]]:
    """Masks [1, 1, H, W] by where they come from."""
    if folder is not None:
        return {folder.name: [read_mask(path)[None] for path in sorted(folder.rglob("*.png"))]}
    areas = AreaDistribution(0.001, 0.05)
    return {kind: list(procedural_masks(kind, count, SIZE, 0, areas).split(1)) for kind in KINDS}


def lost(mask: torch.Tensor, small: torch.Tensor) -> tuple[int, int]:
    """Parts of which no pixel is left, and all parts."""
    pixels, kept = mask[0, 0].numpy() > 0, small[0, 0].numpy() > 0
    parts, count = ndimage.label(pixels, structure=np.ones((3, 3)))
    rows, columns = pixels.nonzero()
    down, right = (
        (where + 0.5) * new / old for where, new, old in zip((rows, columns), kept.shape, pixels.shape, strict=True)
    )
    hit = kept[down.astype(int), right.astype(int)]
    return count - len(np.unique(parts[rows, columns][hit])), count


def main(folder: Path | None = None, count: int = 40) -> None:
    """Area bias of both rules at three sizes."""
    rows = []
    ratios: dict[str, list[float]] = {name: [] for name in (*FACTORS, *(f"majority_{name}" for name in FACTORS))}
    gone = {"": 0, "majority_": 0}
    parts = 0
    for source, masks in originals(folder, count).items():
        sums = {name: 0.0 for name in ratios}
        for mask in masks:
            for name, factor in FACTORS.items():
                size = (max(mask.shape[2] // factor, 1), max(mask.shape[3] // factor, 1))
                made = {
                    "": resize_mask(mask, size),
                    "majority_": (F.interpolate(mask, size, mode="area") > 0.5).float(),
                }
                for rule, small in made.items():
                    sums[rule + name] += float(small.mean())
                    if factor == 8:
                        missing, total = lost(mask, small)
                        gone[rule] += missing
                        parts += total if not rule else 0
        whole = sum(float(mask.mean()) for mask in masks)
        for name, value in sums.items():
            ratios[name].append(value / whole)
        cells = [f"{sums[name] / whole:.3f} ({sums[f'majority_{name}'] / whole:.3f})" for name in FACTORS]
        rows.append([source, str(len(masks)), f"{whole / len(masks):.3%}", *cells])
    table(["masks", "number", "mean area", *(f"at a{'n' if n == 'eighth' else ''} {n}" for n in FACTORS)], rows)
    figures = {(f"bias_{name}" if name in FACTORS else name): float(np.mean(own)) for name, own in ratios.items()}
    finish({**figures, "lost_parts": gone[""] / parts, "majority_lost_parts": gone["majority_"] / parts})


if __name__ == "__main__":
    typer.run(main)
