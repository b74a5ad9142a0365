"""A sheet of generated masks beside the training masks of one category, and how near they come to them.

`python benchmarks/mask_sheet.py --data DIR --category bottle` learns the mask embeddings of all defect types with the
demo prior and the settings of the quickstart workflow, without ComfyUI, samples masks of each type, and writes
`masks.png` (training masks, generated masks, and for each type areas, centres and the histogram of the nearest IoU)
into a numbered folder below `--output`. A second run with the same data takes the stored embedding.

Prints the reports, and as the last line a JSON object: for each type the `kept_share` of the sampled masks, the median
and the largest IoU with the nearest training mask (`nearest_median`, `nearest_largest`).
"""

from __future__ import annotations

import json
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import OUTPUT, ROOT, finish, show

from anomalydiffusion_core.backends.models import open_model
from anomalydiffusion_core.conditioning.context import ContextConditioning
from anomalydiffusion_core.data.images import write_image
from anomalydiffusion_core.data.mvtec import load_dataset, load_pairs
from anomalydiffusion_core.devices import free_memory
from anomalydiffusion_core.figures import contact_sheet
from anomalydiffusion_core.files import numbered
from anomalydiffusion_core.masks.cleanup import MaskRules
from anomalydiffusion_core.masks.collection import collect_masks, embedding_masks
from anomalydiffusion_core.masks.diversity import measure_diversity, plot_diversity
from anomalydiffusion_core.options import build
from anomalydiffusion_core.progress import Quiet
from anomalydiffusion_core.sampling.sampler import SamplingSettings
from anomalydiffusion_core.sampling.schedulers import SchedulerSampler
from anomalydiffusion_core.server.runs import DEMO_PRIOR
from anomalydiffusion_core.store import FolderStore
from anomalydiffusion_core.training.mask_embedding import MaskEmbeddingSettings
from anomalydiffusion_core.training.plans import Base, Start, mask_plan
from anomalydiffusion_core.training.session import run_training


def main(
    data: Annotated[Path, typer.Option()],
    category: str = "bottle",
    count: int = 16,
    seed: int = 1,
    tries: int = 6,
    cfg: float | None = None,
    steps: int | None = None,
    learning_rate: float | None = None,
    tokens: int | None = None,
    output: Path = OUTPUT / "mask_sheet",
) -> None:
    """Learn, sample and compare the masks of `category` below `data`; what is not given is as in the workflow."""
    learning, drawing, words = (_settings(number) for number in ("4", "5", "17"))
    learning |= _given(steps=steps, learning_rate=learning_rate, tokens=tokens)
    drawing |= _given(seed=seed, cfg=cfg)
    opened, dataset = open_model(DEMO_PRIOR), load_dataset(data.absolute(), category)
    base, start = Base(opened.denoiser, {"model": opened.identity}), Start(opened.caption(words["caption"]))
    plan = mask_plan(base, dataset, build(MaskEmbeddingSettings, learning), start, learning["name"])
    trained = run_training(plan, FolderStore(output), Quiet, lambda: free_memory(opened.denoiser.device))
    show(trained.report())
    settings, rules = build(SamplingSettings, drawing), build(MaskRules, drawing)
    source = partial(
        embedding_masks,
        SchedulerSampler(opened.denoiser),
        trained.learned,
        condition=ContextConditioning,
        negative=ContextConditioning(opened.caption("")[None]),
        settings=settings,
        size=drawing["size"],
        rules=rules,
    )
    rows, titles, plots, figures = [], [], [], {}
    for kind in dataset.types:
        found = collect_masks(source(kind.key), count, tries)
        fresh, training = torch.stack(found.masks), load_pairs(kind.train, drawing["size"])[1]
        measured = measure_diversity(fresh, training)
        sys.stdout.write(f"{kind.key}: {found.describe()}\n{measured.describe()}\n")
        rows += [list(training), list(fresh[: count // 2]), list(fresh[count // 2 :])]
        titles += [f"{kind.defect}: training", f"{kind.defect}: generated", ""]
        plots.append((measured, kind.key))
        figures[f"{kind.defect}_kept_share"] = found.kept / len(found.outcomes)
        figures[f"{kind.defect}_nearest_median"] = statistics.median_high(measured.nearest)
        figures[f"{kind.defect}_nearest_largest"] = max(measured.nearest)
    sheet = contact_sheet(rows, row_titles=titles)
    drawn = [plot_diversity(measured, key, (sheet.shape[2], 380)) for measured, key in plots]
    path = numbered(output, category) / "masks.png"
    path.parent.mkdir(parents=True)
    write_image(path, torch.cat([sheet, *drawn], dim=1))
    show(f"wrote {path}")
    finish(figures)


def _given(**values: float | None) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def _settings(number: str) -> dict[str, Any]:
    """The values of a node of the quickstart that are not connected."""
    workflow = json.loads((ROOT / "workflows" / "api" / "quickstart.json").read_text(encoding="utf-8"))
    return {name: value for name, value in workflow[number]["inputs"].items() if not isinstance(value, list)}


if __name__ == "__main__":
    typer.run(main)
