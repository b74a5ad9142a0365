"""Two objects trained in one run, with one spatial encoder, beside each of them trained alone: the loss of each.

    python benchmarks/several_objects.py --out OUT

Two products are rendered, leather and a cap, each with two defect types. One training learns both with the demo prior,
and a training of its own learns each with half of those steps, so that every type has equal steps. The loss is Eq. 5
over pairs of each type with the same noise and times for all bundles (`held_out_loss.py`): of the training pairs,
which is what training lowers, and of held-out ones.

Prints a table and as the last line a JSON object: for each object the loss of the common training over that of its
own, on training pairs (`NAME_ratio`) and on held-out ones (`NAME_held_out_ratio`), and `encoders`, how many the common
bundle has.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated

import typer
from common import OUTPUT, finish, show, table
from held_out_loss import held_out_loss

from anomalydiffusion_core.backends.ldm import load_ldm
from anomalydiffusion_core.bundles.bundle import AnomalyBundle
from anomalydiffusion_core.data.merging import merge_datasets
from anomalydiffusion_core.data.mvtec import AnomalyDataset, DefectPair, load_dataset, load_pairs
from anomalydiffusion_core.data.splits import SplitSettings
from anomalydiffusion_core.data.training import training_views
from anomalydiffusion_core.server.runs import DEMO_PRIOR
from anomalydiffusion_core.synthetic.fewshot import CAP, LEATHER, render_fewshot_set
from anomalydiffusion_core.training.inversion import AnomalyTrainer, InversionSettings


def main(
    out: Annotated[Path, typer.Option(help="Folder of the rendered products.")] = OUTPUT / "several_objects",
    steps: Annotated[int, typer.Option(help="Steps of each object; the common training takes them together.")] = 60,
    side: int = 128,
    pairs: Annotated[int, typer.Option(help="Training pairs of each type.")] = 6,
    held_out: int = 6,
    seed: int = 0,
    prior: Path = DEMO_PRIOR,
) -> None:
    """Losses of two objects together and alone."""
    model = load_ldm(prior)
    data = out / f"data_{side}_{pairs}_{held_out}"
    objects = []
    for product in (LEATHER, CAP):
        render_fewshot_set(
            data, seed, product, size=side, train_pairs=pairs, test_pairs=held_out, normals=2, test_normals=2
        )
        objects.append(load_dataset(data, product.category, SplitSettings("first n", pairs)))

    def trained(dataset: AnomalyDataset, count: int) -> AnomalyBundle:
        settings = InversionSettings(steps=count, resolution=side, seed=seed, augmented_copies=4)
        views = training_views(dataset.types, side, "whole image")
        start = model.caption_context("stain, scratch")
        bundle = AnomalyTrainer(model, views, settings, initial_context=start).run().bundle
        show(f"{dataset.object}: {count} steps")
        return bundle

    common = trained(merge_datasets(objects), len(objects) * steps)
    rows, figures = [], {"encoders": float(common.spatial_encoder is not None)}
    for dataset in objects:
        own = trained(dataset, steps)
        ratios: dict[str, list[float]] = {"": [], "_held_out": []}
        for kind in dataset.types:
            parts: tuple[tuple[str, tuple[DefectPair, ...]], ...] = (("", kind.train), ("_held_out", kind.test))
            for name, chosen in parts:
                images, masks = load_pairs(chosen, side)
                together, alone = (held_out_loss(model, one, kind.key, images, masks) for one in (common, own))
                ratios[name].append(together / alone)
                on = "held-out" if name else "training"
                rows.append(
                    [kind.key, f"{len(images)} {on}", f"{together:.4f}", f"{alone:.4f}", f"{together / alone:.3f}"]
                )
        figures |= {f"{dataset.object}{name}_ratio": statistics.fmean(values) for name, values in ratios.items()}
    table(["type", "pairs", "loss in one training", "loss alone", "ratio"], rows)
    finish(figures)


if __name__ == "__main__":
    typer.run(main)
