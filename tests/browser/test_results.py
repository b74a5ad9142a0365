"""A first user: Run, previews, then reports, tables and images on the nodes; stop, resume, reload."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_driver import drawn, ended, load, opened, overlaps, ready, run, template

from anomalydiffusion_core.synthetic import render_fewshot_set

EVALUATION, SAMPLER, EXPORT, DATASET, TRAINING, CAPTION = "10", "8", "9", "2", "3", "16"


@pytest.fixture(scope="module")
def demo(host: Any) -> Path:
    folder: Path = host.input / "anomalydiffusion_demo"
    if not folder.exists():
        render_fewshot_set(folder, size=128, train_pairs=8, test_pairs=4, normals=6, test_normals=2)
    return folder


CLASSIC, NODES_2 = "classic", "nodes 2.0"


def renderers(*quick: str) -> pytest.MarkDecorator:
    """Both renderers of the page; those not named belong to the slow tests, where another test asserts the same."""
    made = [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in (CLASSIC, NODES_2)]
    return pytest.mark.parametrize("page", made, indirect=True, scope="module")


@pytest.fixture(scope="module")
def page(host: Any, demo: Path, request: Any) -> Iterator[Any]:
    with opened(host.address, vue=request.param == NODES_2) as made:
        yield made


def fresh(page: Any, name: str) -> None:
    """Open the quickstart with another name for its bundles, so that nothing is known from an earlier run."""
    workflow = template("quickstart")
    for node in workflow["nodes"]:
        if "Train" in node["type"]:
            node["widgets_values"][0] = name
    load(page, workflow)


def of_renderer(request: Any) -> int:
    """Steps that one renderer's training has more: an equal one would be found finished."""
    return int(NODES_2 in request.node.name)


@renderers(CLASSIC, NODES_2)
def test_results_are_on_the_nodes_after_the_first_run(page: Any, request: Any) -> None:
    fresh(page, f"first_{len(request.node.name)}")
    assert run(page) == {"ok": True}
    shown = drawn(page)
    assert shown[EVALUATION]["tables"] and "few real + generated pairs" in shown[EVALUATION]["report"]
    assert "Warning: these are alike" in shown[SAMPLER]["report"]
    assert "4 pairs in anomalydiffusion/pairs_" in shown[EXPORT]["report"]
    assert "leather/scratch" in shown[DATASET]["report"]
    assert not any(node["previews"] for node in shown.values()), "previews hide results"
    assert overlaps(shown) == []
    for node in (EVALUATION, SAMPLER, EXPORT, DATASET, TRAINING):
        assert not any(blob for blob, _ in shown[node]["images"]), "a preview is still drawn"
    for node in (EVALUATION, SAMPLER, EXPORT, DATASET, TRAINING):
        assert shown[node]["seen"], f"the report of {shown[node]['type']} is not drawn"
    assert not shown[CAPTION]["seen"], "an empty report takes no room"
    assert "pixel AP" in shown[EVALUATION]["report"]


@renderers(CLASSIC)
def test_a_stopped_training_resumes_at_the_next_step(page: Any, request: Any) -> None:
    fresh(page, f"halted_{len(request.node.name)}")
    extra = of_renderer(request)
    more = {"AnomalyDiffusionTrainAnomalyEmbedding": {"steps": 400 + extra}}
    run(page, more, wait=False)
    # Not in the first steps: what is kept then is nothing.
    page.evaluate(
        """() => { window.steps = 0; window.app.api.addEventListener('progress', event => {
            if (event.detail.node === '3') window.steps = event.detail.value }) }"""
    )
    page.wait_for_function("window.steps > 25")
    page.evaluate("() => window.app.api.interrupt()")
    assert "interrupted" in ended(page)
    assert run(page, {"AnomalyDiffusionTrainAnomalyEmbedding": {"steps": 60 + extra}}) == {"ok": True}
    report = drawn(page)[TRAINING]["report"]
    assert "resumed" in report and f"{60 + extra} steps" in report, report


@renderers(NODES_2)
def test_a_reloaded_page_follows_the_run(page: Any, request: Any) -> None:
    fresh(page, f"reloaded_{len(request.node.name)}")
    run(page, {"AnomalyDiffusionTrainAnomalyEmbedding": {"steps": 60 + of_renderer(request)}}, wait=False)
    time.sleep(3)
    page.reload()
    ready(page)
    page.evaluate("() => { window.seen = []; window.app.api.addEventListener('executed', e => window.seen.push(e)) }")
    page.wait_for_function("window.seen.some(e => e.detail.node === '10')", timeout=300_000)
    time.sleep(2)
    shown = drawn(page)
    assert shown[EVALUATION]["tables"], json.dumps(shown[EVALUATION])
