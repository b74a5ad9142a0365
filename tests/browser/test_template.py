"""The templates in the real page, in Chromium: offered, whole, and the same as what the command line queues."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from page_driver import ROOT, load, opened, overlaps, template

from anomalydiffusion_core.server.process import session

TEMPLATES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
STATE = """
async () => {
    const app = window.app;
    const prompt = await app.graphToPrompt();
    return JSON.stringify({
        types: app.graph.nodes.map(node => node.type),
        broken: app.graph.nodes.filter(node => node.has_errors).map(node => node.type),
        groups: app.graph.groups?.length ?? app.graph._groups.length,
        boxes: Object.fromEntries(app.graph.nodes.map(
            node => [node.id, {box: [node.pos[0], node.pos[1], node.size[0], node.size[1]]}])),
        prompt: prompt.output,
    });
}
"""


@pytest.fixture(scope="module")
def page(host: Any) -> Iterator[Any]:
    with opened(host.address) as made:
        yield made


def state(page: Any, workflow: dict[str, Any]) -> dict[str, Any]:
    load(page, workflow)
    found: dict[str, Any] = json.loads(page.evaluate(STATE))
    return found


def test_there_is_a_template_for_every_job() -> None:
    assert TEMPLATES == sorted(
        "quickstart sd15_train sd15_generate masks small_defects adapt_to_normals import_authors textual_inversion "
        "baselines localization_table table_1 table_4 table_6 table_7 table_8 table_9 how_many".split()
    )
    assert sorted(path.stem for path in (ROOT / "workflows" / "api").glob("*.json")) == TEMPLATES
    assert sorted(path.stem for path in (ROOT / "workflows").glob("*.jpg")) == TEMPLATES


@pytest.mark.parametrize("name", TEMPLATES)
def test_server_offers_the_template_with_its_image(host: Any, name: str) -> None:
    with session() as http:
        offered = http.get(f"http://{host.address}/workflow_templates", timeout=60).json()
        assert name in offered["AnomalyDiffusion"]
        served = http.get(f"http://{host.address}/api/workflow_templates/AnomalyDiffusion/{name}.json", timeout=60)
        image = http.get(f"http://{host.address}/api/workflow_templates/AnomalyDiffusion/{name}.jpg", timeout=60)
    assert served.json() == template(name)
    assert image.content[:3] == b"\xff\xd8\xff", "a JPEG"


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_opens_whole_and_means_the_api_workflow(page: Any, name: str) -> None:
    workflow = template(name)
    found = state(page, workflow)
    assert found["broken"] == []
    assert sorted(found["types"]) == sorted(node["type"] for node in workflow["nodes"])
    assert found["groups"] == len(workflow["groups"]) > 0
    for node in found["prompt"].values():
        if node["class_type"] == "PreviewAny":
            node["inputs"].pop("preview", None)  # what the page shows there itself
    assert found["prompt"] == template(name, "api")
    assert "randomize" not in json.dumps(workflow), "the same graph should give the same images"
    assert overlaps(found["boxes"]) == []
    assert page.get_by_text("missing nodes").count() == 0
    assert page.get_by_text("Invalid workflow").count() == 0


def test_a_missing_node_would_be_seen(page: Any) -> None:
    workflow = template("quickstart")
    workflow["nodes"][0]["type"] = "NoSuchNode"
    assert "NoSuchNode" in state(page, workflow)["broken"]
    # The page says it in a dialog (0.3.75) or in a panel (0.33).
    page.get_by_text("NoSuchNode").first.wait_for(timeout=20_000)
