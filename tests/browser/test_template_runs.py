"""Every template, with Run pressed at a tiny size: its results are on its nodes, and nothing covers anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_driver import SLIM, drawn, load, opened, overlaps, run, slim_checkpoint, template

from anomalydiffusion_core.synthetic import render_fewshot_set

# Template -> a node with a report, and words that must be in it. The order matters: the second takes what the first
# has saved.
QUICK = {
    "import_authors": ("1", "bottle/crack"),
    "masks": ("7", "area"),
    "baselines": ("3", "Crop"),
    "table_4": ("15", "Table 4"),
}
SLOW = {
    "sd15_train": ("4", "trained and saved"),
    "sd15_generate": ("11", "4 pairs in"),
    "textual_inversion": ("4", "in a prompt embedding:"),
    "small_defects": ("9", "pairs in"),
    "adapt_to_normals": ("4", "control"),
    "localization_table": ("27", "results in"),
    "table_1": ("15", "Table 1"),
    "table_6": ("90", "SAE"),
    "table_7": ("90", "10%"),
    "table_8": ("90", "anomaly 16"),
    "table_9": ("90", "prompt-to-prompt"),
    "how_many": ("10", "300 of each type"),
}


@pytest.fixture(scope="module")
def page(host: Any, authors_files: None) -> Iterator[Any]:
    demo: Path = host.input / "anomalydiffusion_demo"
    if not demo.exists():
        render_fewshot_set(demo, size=128, train_pairs=8, test_pairs=4, normals=6, test_normals=2)
    with opened(host.address) as made:
        yield made


@pytest.fixture(scope="module")
def slim(host: Any) -> None:
    slim_checkpoint(host)


@pytest.fixture(scope="module", autouse=True)
def authors_files(host: Any) -> None:
    """What the template import_authors reads, in the layout of the authors' code with random numbers."""
    import authors_layout
    import torch

    folder = host.models / "anomalydiffusion"
    folder.mkdir(exist_ok=True)
    torch.save(authors_layout.encoder_state(width=768), folder / "spatial_encoder.pt")
    authors_layout.write_embeddings(folder / "embeddings.pt", ["bottle+crack"], width=768)


def run_template(page: Any, name: str, node: str, words: str) -> None:
    workflow = template(name)
    load(page, workflow)
    uses_stock = any(one["type"] == "CheckpointLoaderSimple" for one in workflow["nodes"])
    done = run(page, {"CheckpointLoaderSimple": {"ckpt_name": SLIM}} if uses_stock else None)
    assert done == {"ok": True}, done
    shown = drawn(page)
    assert words in shown[node]["report"], shown[node]
    assert overlaps(shown) == []
    assert not any(one["previews"] for one in shown.values() if one["type"].startswith("AnomalyDiffusion"))


@pytest.mark.parametrize("name", QUICK)
def test_template_runs_and_shows_its_results(page: Any, name: str) -> None:
    run_template(page, name, *QUICK[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_large_template_runs_and_shows_its_results(page: Any, slim: None, name: str) -> None:
    if name.startswith(("sd15_generate", "textual")):
        page.evaluate("() => window.app.refreshComboInNodes()")
    run_template(page, name, *SLOW[name])
