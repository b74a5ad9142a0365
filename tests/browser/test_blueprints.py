"""Subgraph blueprints: served, in the node library, added with a click, connected and run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_driver import ROOT, SLIM, drawn, opened, run, slim_checkpoint

from anomalydiffusion_core.server.process import session
from anomalydiffusion_core.synthetic import render_fewshot_set

NAMES = ("Generate Pairs", "Learn Defects")
# The stock nodes beside the blueprints, connected by the names of their sockets.
CONNECT = """
checkpoint => {
    const {graph} = window.app, made = name => graph.add(window.LiteGraph.createNode(name));
    made('CheckpointLoaderSimple'); made('AnomalyDiffusionLoadDataset');
    const [learn, generate, loader, data] = graph.nodes;
    for (const [name, value] of Object.entries({folder: 'anomalydiffusion_demo', category: 'leather'}))
        data.widgets.find(one => one.name === name).value = value;
    loader.widgets[0].value = checkpoint;
    data.pos = [0, 300]; learn.pos = [500, 0]; generate.pos = [1100, 0];
    const joined = (from, output, to, input) => from.connect(
        from.outputs.findIndex(one => one.name === output), to, to.inputs.findIndex(one => one.name === input));
    for (const node of [learn, generate]) {
        for (const name of ['model', 'clip', 'vae']) joined(loader, name.toUpperCase(), node, name);
        joined(data, 'dataset', node, 'dataset');
    }
    joined(data, 'types', generate, 'defect type');
    for (const name of ['defect bundle', 'mask bundle']) joined(learn, name, generate, name);
    const set = (node, values) => Object.entries(values).forEach(
        ([name, value]) => { node.widgets.find(one => one.name === name).value = value });
    set(learn, {steps: 3, 'mask steps': 2, resolution: 64, 'batch size': 2, name: 'from_blueprint'});
    set(generate, {count: 2, size: 64, folder: 'anomalydiffusion/from_blueprint'});
}
"""


@pytest.fixture(scope="module")
def page(host: Any) -> Iterator[Any]:
    slim_checkpoint(host)
    demo: Path = host.input / "anomalydiffusion_demo"
    if not demo.exists():
        render_fewshot_set(demo, size=128, train_pairs=8, test_pairs=4, normals=6, test_normals=2)
    with opened(host.address) as made:
        yield made


def test_server_offers_the_blueprints(host: Any) -> None:
    assert tuple(sorted(path.stem for path in (ROOT / "subgraphs").glob("*.json"))) == NAMES
    with session() as http:
        offered = http.get(f"http://{host.address}/global_subgraphs", timeout=60).json()
        ours = {
            one["name"]: key for key, one in offered.items() if one["info"]["node_pack"].endswith("AnomalyDiffusion")
        }
        assert tuple(sorted(ours)) == NAMES
        for name, key in ours.items():
            served = json.loads(http.get(f"http://{host.address}/global_subgraphs/{key}", timeout=60).json()["data"])
            assert served == json.loads((ROOT / "subgraphs" / f"{name}.json").read_text("utf-8"))


def test_blueprints_are_added_from_the_library_and_run(host: Any, page: Any) -> None:
    page.evaluate("() => window.app.graph.clear()")
    page.mouse.click(1200, 300)
    page.keyboard.press("n")  # the node library
    for place, name in enumerate(("Learn Defects", "Generate Pairs")):
        page.get_by_placeholder("Search").first.fill(name)
        page.get_by_text(name, exact=True).last.click()
        # The page of 0.33 puts a node down where one clicks next.
        page.mouse.move(1000, 300 + 300 * place)
        time.sleep(0.5)
        page.mouse.click(1000, 300 + 300 * place)
        page.wait_for_function("count => window.app.graph.nodes.length === count", arg=place + 1)
    page.evaluate(CONNECT, SLIM)
    assert run(page) == {"ok": True}
    learn, generate = list(drawn(page).values())[:2]
    assert "from_blueprint_00001.safetensors: trained and saved" in learn["report"] and learn["seen"]
    assert "4 pairs in anomalydiffusion/from_blueprint_00001" in generate["report"] and generate["seen"]
    # The seed of the one node is that of all nodes inside: the same graph with a number changed.
    seeds = page.evaluate(
        """async () => {
            const [, generate] = window.app.graph.nodes;
            generate.widgets.find(one => one.name === 'seed').value = 77;
            const {output} = await window.app.graphToPrompt();
            return Object.values(output).filter(one => 'seed' in one.inputs).map(one => one.inputs.seed);
        }"""
    )
    assert sorted(seeds) == [0, 0, 77, 77, 77]
