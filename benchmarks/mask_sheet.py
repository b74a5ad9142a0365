"""A sheet of generated masks beside the training masks of one category, and how close they come to them.

`python benchmarks/mask_sheet.py --data DIR --category bottle` trains the mask embeddings of all defect types with the
demo prior and the settings of the quickstart workflow, samples masks of each type, and writes `masks.png` (training
masks, generated masks, and for each type areas, centres and the histogram of the nearest IoU) into a numbered folder
below `--output`. A second run with the same data reuses the stored embedding.

Prints the reports, and as the last line a JSON object: for each type the `kept_share` of the sampled masks, the median
and the largest IoU with the nearest training mask (`nearest_median`, `nearest_largest`).
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import ROOT, finish, show


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
    output: Path = ROOT / "output" / "mask_sheet",
) -> None:
    """Train, sample and compare the masks of `category` below `data`; defaults are those of the workflow."""
    import in_process

    output = output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    in_process.load_extension(output)
    settings = _settings()
    node = _nodes(in_process.PACKAGE)
    checkpoint = settings["1"]
    model, vae, empty, _ = node("LoadLDMCheckpoint", **checkpoint).args
    dataset, types, *_ = node("LoadDataset", folder=str(data.absolute()), category=category).args
    initial = node("EncodeLDMCaption", **settings["17"]).args[0]
    show(f"{category}: {', '.join(types)}")
    values = {"model": model, "vae": vae}
    learning = settings["4"] | _given(steps=steps, learning_rate=learning_rate, tokens=tokens)
    bundle, _, report = node("TrainMaskEmbedding", **values, dataset=dataset, initial=initial, **learning).args
    show(report)
    drawing = settings["5"] | {"count": count, "seed": seed, "tries": tries} | _given(cfg=cfg)
    rows, titles, measures, figures = [], [], {}, {}
    core = _core(in_process.PACKAGE)
    for key in types:
        masks, report = node(
            "MaskEmbeddingSampler", **values, bundle=bundle, negative=empty, defect_type=key, **drawing
        ).args
        sys.stdout.write(report + "\n")
        kept, sampled = map(int, re.findall(r"(\d+) of (\d+) sampled", report)[0])
        # Masks that are used again would count as copies of each other.
        fresh = masks[:kept, None]
        training = core.data.load_pairs(dataset.defect_type(key).train, masks.shape[-1])[1]
        measured = core.diversity.measure_diversity(fresh, training)
        sys.stdout.write(measured.describe() + "\n")
        short = key.split("/")[-1]
        rows += [list(training), list(fresh[: count // 2]), list(fresh[count // 2 :])]
        titles += [f"{short}: training", f"{short}: generated", ""]
        measures[key] = measured
        figures[f"{short}_kept_share"] = kept / sampled
        figures[f"{short}_nearest_median"] = sorted(measured.nearest)[len(measured.nearest) // 2]
        figures[f"{short}_nearest_largest"] = max(measured.nearest)
    sheet = core.figures.contact_sheet(rows, row_titles=titles)
    size = (sheet.shape[2], 380)
    plots = [core.diversity.plot_diversity(measured, key, size) for key, measured in measures.items()]
    folder = core.host.numbered(output, category)
    core.data.write_image(folder / "masks.png", torch.cat([sheet, *plots], dim=1))
    show(f"wrote {folder / 'masks.png'}")
    finish(figures)


def _given(**values: float | None) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def _settings() -> dict[str, dict[str, Any]]:
    """The values of the quickstart's nodes that are not connected, by the node's number."""
    workflow = json.loads((ROOT / "workflows" / "api" / "quickstart.json").read_text(encoding="utf-8"))
    return {
        number: {name: value for name, value in node["inputs"].items() if not isinstance(value, list)}
        for number, node in workflow.items()
    }


def _nodes(package: str) -> Any:
    import importlib

    nodes = {node.define_schema().node_id: node for node in importlib.import_module(f"{package}.nodes").NODES}

    def run(name: str, /, **values: Any) -> Any:
        node = nodes[f"AnomalyDiffusion{name}"]
        defaults = {i.id: i.default for i in node.define_schema().inputs if getattr(i, "default", None) is not None}
        with torch.inference_mode():
            return node.execute(**{**defaults, **values})

    return run


def _core(package: str) -> Any:
    import importlib
    from types import SimpleNamespace

    names = {"data": "data", "diversity": "masks.diversity", "figures": "figures"}
    parts = {name: importlib.import_module(f"{package}.anomalydiffusion_core.{path}") for name, path in names.items()}
    return SimpleNamespace(**parts, host=importlib.import_module(f"{package}.nodes.host.folders"))


if __name__ == "__main__":
    typer.run(main)
