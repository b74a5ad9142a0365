"""Drive ComfyUI's page as a user does: open, set widgets, press Run, wait, and say what is drawn on each node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from anomalydiffusion_core.server.process import session

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# The first three are for running as root and without a network.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE_MS = 300_000
SLIM = "slim.safetensors"
RUN_MS = 900_000
# Sizes that let every template run in seconds; by node class, then by widget.
TINY: dict[str, dict[str, Any]] = {
    "AnomalyDiffusionTrainAnomalyEmbedding": {"steps": 3, "augmented_copies": 1, "resolution": 64, "batch_size": 2},
    "AnomalyDiffusionTrainMaskEmbedding": {"steps": 3, "augmented_copies": 1, "resolution": 64, "batch_size": 2},
    "AnomalyDiffusionAdaptToNormals": {
        "steps": 2, "resolution": 64, "batch_size": 2, "pictures": 4, "control_samples": 1,
    },
    "AnomalyDiffusionMaskEmbeddingSampler": {
        "count": 2, "size": 64, "steps": 2, "threshold": 0.1, "border_rule": False, "largest_area": 1,
        "smallest_area": 0, "speck_area": 0, "most_components": 0,
    },
    "AnomalyDiffusionVaryRealMasks": {"count": 2, "size": 64},
    "AnomalyDiffusionProceduralMasks": {"count": 2, "size": 64},
    "AnomalyDiffusionPickNormals": {"count": 2, "size": 64},
    "AnomalyDiffusionBlendedAARKSampler": {"steps": 2, "control_samples": 1, "min_effect": 0},
    "AnomalyDiffusionExportPairs": {"min_effect": 0},
    "AnomalyDiffusionEvaluateLocalization": {"size": 64, "steps": 20, "width": 4, "runs": 1, "batch_size": 2},
    "AnomalyDiffusionEvaluateClassification": {"size": 64, "steps": 4, "width": 8, "runs": 1, "batch_size": 4},
    "AnomalyDiffusionEvaluateGeneration": {"size": 64, "splits": 1},
    "KSampler": {"steps": 2},
}  # fmt: skip
SET_WIDGETS = """
([rules, titles]) => {
    const inside = window.app.graph.nodes.flatMap(node => node.subgraph?.nodes ?? []);
    for (const node of [...window.app.graph.nodes, ...inside])
        for (const [name, value] of Object.entries({...(rules[node.type] ?? {}), ...(titles[node.type] ?? {})})) {
            const widget = node.widgets.find(one => one.name === name);
            if (!widget) throw new Error(`${node.type} has no widget ${name}`);
            widget.value = value;
        }
}
"""
WATCH = """
() => {
    window.ended = null;
    const api = window.app.api;
    api.addEventListener('execution_success', () => { window.ended = {ok: true} });
    api.addEventListener('execution_interrupted', event => { window.ended = {interrupted: event.detail} });
    api.addEventListener('execution_error', event => { window.ended = {error: event.detail} });
}
"""
# The whole graph in the window: what lies outside is not drawn.
FIT = """
() => {
    const boxes = window.app.graph.nodes.map(node => [...node.pos, ...node.size]);
    const least = place => Math.min(...boxes.map(box => box[place]));
    const most = place => Math.max(...boxes.map(box => box[place] + box[place + 2]));
    const view = window.app.canvas.ds;
    view.scale = Math.min(1600 / (most(0) - least(0)), 900 / (most(1) - least(1)), 1);
    view.offset = [100 / view.scale - least(0), 150 / view.scale - least(1)];
    window.app.canvas.setDirty(true, true);
}
"""
DRAWN = """
() => window.app.graph.nodes.map(node => ({
    id: String(node.id),
    type: node.type,
    box: [node.pos[0], node.pos[1], node.size[0], node.size[1]],
    report: node.widgets?.find(one => one.name === 'anomalydiffusion_report')?.element?.innerText ?? '',
    tables: node.widgets?.find(one => one.name === 'anomalydiffusion_report')?.element
        ?.querySelectorAll('table').length ?? 0,
    seen: (node.widgets?.find(one => one.name === 'anomalydiffusion_report')?.element?.offsetHeight ?? 0) > 0,
    images: (node.imgs ?? []).filter(one => one.naturalWidth > 0).map(one => [one.src.includes('blob:'), one.src]),
    previews: Object.keys(window.app.nodePreviewImages ?? {}).includes(String(node.id)),
}))
"""


@contextmanager
def opened(address: str, vue: bool = False) -> Iterator[Any]:
    """The page of a server in Chromium, without its dialogs for first visits; skips where there is no Chromium."""
    executable = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if executable is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium on this machine, and CI must have one: apt-get install chromium")
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with session() as http:
        for name, value in {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": vue}.items():
            http.post(f"http://{address}/settings/{name}", json=value, timeout=60)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS, timeout=PATIENCE_MS)
        page = browser.new_page(viewport={"width": 1800, "height": 1100})
        page.set_default_timeout(PATIENCE_MS)
        page.goto(f"http://{address}/")
        ready(page)
        yield page
        browser.close()


def slim_checkpoint(host: Any) -> None:
    """A slim Stable Diffusion 1.5 of random weights, written by a process of its own: it needs ComfyUI's modules."""
    target = host.models / "checkpoints" / SLIM
    if target.is_file():
        return
    code = (
        "import sys, tempfile; from pathlib import Path; sys.path.append(sys.argv[1]); import in_process;"
        "in_process.load_extension(Path(tempfile.mkdtemp())); import random_checkpoint;"
        "random_checkpoint.write_slim(Path(sys.argv[2]))"
    )
    support = ROOT / "tests" / "support"
    subprocess.run([sys.executable, "-c", code, str(support), str(target)], check=True, timeout=600)


def ready(page: Any) -> None:
    """Wait until the page has its graph."""
    page.wait_for_function("window.app?.graph && window.app.extensionManager && window.app.vueAppReady")


def template(name: str, folder: str = ".") -> dict[str, Any]:
    workflow: dict[str, Any] = json.loads((ROOT / "workflows" / folder / f"{name}.json").read_text(encoding="utf-8"))
    return workflow


def load(page: Any, workflow: Mapping[str, Any]) -> None:
    """Open a workflow as the page does with a file, after closing what an earlier run left open."""
    page.keyboard.press("Escape")
    page.evaluate("async workflow => { await window.app.loadGraphData(workflow) }", workflow)


def run(page: Any, more: Mapping[str, Mapping[str, Any]] | None = None, wait: bool = True) -> dict[str, Any]:
    """Set tiny sizes (and ``more`` widgets by node class), press Run, and return how it ended."""
    page.evaluate(SET_WIDGETS, [TINY, more or {}])
    page.evaluate(WATCH)
    page.get_by_role("button", name="Run", exact=True).first.click(timeout=20_000)
    return ended(page) if wait else {}


def ended(page: Any) -> dict[str, Any]:
    """Wait for the end of what was queued, and for the results to be drawn."""
    page.wait_for_function("window.ended", timeout=RUN_MS)
    time.sleep(2)  # previews are taken back after 0.6 s, then images load
    done: dict[str, Any] = page.evaluate("window.ended")
    return done


def drawn(page: Any) -> dict[str, dict[str, Any]]:
    """What each node shows, by its id, with the whole graph in the window."""
    page.evaluate(FIT)
    time.sleep(1)
    return {node["id"]: node for node in page.evaluate(DRAWN)}


def overlaps(nodes: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Pairs of nodes whose boxes (with their titles, 30 px above) cover each other."""
    found = []
    boxes = [(key, node["box"]) for key, node in nodes.items()]
    for place, (one, (x1, y1, w1, h1)) in enumerate(boxes):
        for other, (x2, y2, w2, h2) in boxes[place + 1 :]:
            if x1 < x2 + w2 and x2 < x1 + w1 and y1 - 30 < y2 + h2 and y2 - 30 < y1 + h1:
                found.append((one, other))
    return found
