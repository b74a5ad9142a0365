"""Images of the help pages, web/docs/images/*.jpg, from the output of the demo.

    python benchmarks/help_images.py output/demo output/anomalydiffusion_demo

The first folder is what `make demo` leaves, the second the rendered data set it works on. Nothing else is shown: no
image of anybody else's data. Small JPEGs, so that the pages stay light.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import ROOT
from PIL import Image
from torch import Tensor

from anomalydiffusion_core.baselines import (
    CropPaste,
    CutPaste,
    Draem,
    PoissonBlending,
    Prn,
    make_pairs,
    training_sources,
)
from anomalydiffusion_core.baselines.making import Method
from anomalydiffusion_core.data.images import read_image
from anomalydiffusion_core.data.mask_files import read_mask
from anomalydiffusion_core.data.mvtec import AnomalyDataset, load_dataset
from anomalydiffusion_core.data.pairs import load_exported
from anomalydiffusion_core.data.sheets import pairs_sheet
from anomalydiffusion_core.figures import contact_sheet, detail, outlined, to_bytes
from anomalydiffusion_core.masks.foreground import estimate_foreground
from anomalydiffusion_core.masks.procedural import KINDS, procedural_masks
from anomalydiffusion_core.masks.refine import RefineSettings, refine_masks
from anomalydiffusion_core.masks.variation import vary_masks

WIDEST, QUALITY, CELL = 760, 80, 150
ROW = 164
"""Height of a row of the demo's sheets, with the gap."""
CATEGORY = "leather"


def main() -> int:
    """Write every image; the exit status."""
    parser = argparse.ArgumentParser(description="Draw web/docs/images from the output of the demo.")
    parser.add_argument("demo", type=Path, help="folder with pairs and evaluation of the demo")
    parser.add_argument("data", type=Path, help="the rendered data set of the demo")
    parser.add_argument("--out", type=Path, default=ROOT / "web" / "docs" / "images")
    given = parser.parse_args()
    sheets = Sheets(given.demo, load_dataset(given.data, CATEGORY))
    given.out.mkdir(parents=True, exist_ok=True)
    for name, draw in sheets.all().items():
        image = Image.fromarray(np.ascontiguousarray(to_bytes(draw().movedim(0, -1))))
        image.thumbnail((WIDEST, 4 * WIDEST), Image.Resampling.LANCZOS)
        path = given.out / f"{name}.jpg"
        image.save(path, quality=QUALITY, optimize=True)
        sys.stdout.write(f"{path.name}: {image.width} x {image.height}, {path.stat().st_size // 1024} KB\n")
    return 0


class Sheets:
    """What the pages show, each an image [3, H, W] in [0, 1]."""

    def __init__(self, demo: Path, data: AnomalyDataset) -> None:
        self.demo, self.data = demo, data
        self.pairs = load_exported(demo / "pairs")
        self.normals = torch.stack([read_image(path) for path in data.normals[:5]])

    def all(self) -> dict[str, Callable[[], Tensor]]:
        """The drawing of each image by its name."""
        return {
            "dataset": self.dataset,
            "training": self.training,
            "masks": self.masks,
            "sampler": self.sampler,
            "pairs": lambda: pairs_sheet(self.pairs, 8),
            "labels": self.labels,
            "foreground": self.foreground,
            "heat_maps": lambda: _png(self.demo / "evaluation" / "heat_maps.png")[:, : 21 + 3 * ROW],
            "curves": lambda: _png(self.demo / "evaluation" / "curves.png"),
            "baselines": self.baselines,
        }

    def dataset(self) -> Tensor:
        """Training pairs of each type with their outlines."""
        rows = []
        for kind in self.data.types:
            read = [(read_image(one.image_path), one.read_mask()) for one in kind.train[:3]]
            rows.append([cell for image, mask in read for cell in (outlined(image, mask), detail(image, mask))])
        titles = [kind.key for kind in self.data.types]
        return contact_sheet(rows, ["training pair", "enlarged"] * 3, titles, CELL)

    def training(self) -> Tensor:
        """Real defects over generated ones of the same type."""
        rows, titles = [], []
        for kind in self.data.types:
            real = [detail(read_image(one.image_path), one.read_mask()) for one in kind.train[:4]]
            own = [pair for pair in self.pairs if pair.key == kind.key][:4]
            rows += [real, [detail(read_image(one.image), read_mask(one.mask)) for one in own]]
            titles += [f"{kind.defect}: real", "generated"]
        return contact_sheet(rows, (), titles, CELL)

    def masks(self) -> Tensor:
        """Procedural masks of each kind, varied real masks, masks of the trained embedding."""
        kinds = [kind for kind in KINDS if kind != "mixed"]
        drawn = [procedural_masks(kind, 1, 256, 4)[0] for kind in kinds]
        real = [one.read_mask() for kind in self.data.types for one in kind.train[:2]]
        varied = [vary_masks(mask[None], 1, place)[0] for place, mask in enumerate(real)]
        learned = [read_mask(pair.mask) for pair in self.pairs[:: max(1, len(self.pairs) // 4)]][:4]
        rows = [drawn, real, varied, learned]
        titles = [f"procedural: {', '.join(kinds)}", "real", "varied", "learned (generated)"]
        return contact_sheet(rows, (), titles, CELL)

    def sampler(self) -> Tensor:
        """Normal image, mask, the same image with the defect, and the defect enlarged."""
        rows = []
        for pair in self.pairs[:: max(1, len(self.pairs) // 4)][:4]:
            image, mask = read_image(pair.image), read_mask(pair.mask)
            normal = None if pair.normal is None else read_image(pair.normal)
            rows.append([normal, mask, image, detail(image, mask)])
        return contact_sheet(rows, ["before", "mask", "after", "enlarged"], None, CELL)

    def labels(self) -> Tensor:
        """Drawn masks beside what really changed inside them."""
        rows = []
        chosen = [pair for pair in self.pairs if pair.normal is not None][:: max(1, len(self.pairs) // 4)][:4]
        for pair in chosen:
            image, mask, normal = read_image(pair.image), read_mask(pair.mask), read_image(pair.normal or pair.image)
            settings = RefineSettings(refine="cut", refine_threshold=12)
            label = refine_masks(image[None], normal[None], mask[None], lambda given: given, settings).masks[0]
            whole = [image, outlined(image, mask), outlined(image, label)]
            rows.append([detail(one, mask) for one in whole])
        return contact_sheet(rows, ["enlarged", "drawn mask", "refined: cut"], None, CELL)

    def foreground(self) -> Tensor:
        """Parts cut out of the demo's leather on a plain table, and the foreground that is found."""
        side = self.normals.shape[-1]
        y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
        shapes = [(x / 0.7) ** 2 + (y / 0.55) ** 2 < 1, (x.abs() < 0.6) & (y.abs() < 0.45) & (x**2 + y**2 > 0.03)]
        rows = []
        for normal, shape in zip(self.normals, shapes, strict=False):
            image = torch.where(shape, normal, torch.full_like(normal, 0.85))
            found = estimate_foreground(image[None])[0]
            rows.append([image, found, outlined(image, found)])
        return contact_sheet(rows, ["part", "foreground", "outlined"], None, CELL)

    def baselines(self) -> Tensor:
        """One pair of each earlier method, on the same normal images."""
        kind = self.data.types[0]
        sources = training_sources(kind, (self.normals.shape[2], self.normals.shape[3]))
        methods: list[Method] = [
            CutPaste(),
            CropPaste(sources),
            PoissonBlending(sources=sources),
            Draem(),
            Prn(sources=sources),
        ]
        rows = []
        for method in methods:
            made = make_pairs(method, self.normals[:2], 3, kind.key)
            rows.append([c for i, m in zip(made.images, made.masks, strict=True) for c in (i, outlined(i, m))])
        return contact_sheet(rows, ["image", "its mask"] * 2, [method.name for method in methods], CELL)


def _png(path: Path) -> Tensor:
    return torch.from_numpy(np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255).movedim(2, 0)


if __name__ == "__main__":
    sys.exit(main())
