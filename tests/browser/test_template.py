"""The template in the real page, in Chromium."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anomalydiffusion_core.server.address import session

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = {"quickstart": 5, "localization_table": 7}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# The first three lines are for running as root and without a network.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE_MS = 300_000
STATE = """
async () => {
    const app = window.app;
    const prompt = await app.graphToPrompt();
    return JSON.stringify({
        types: app.graph.nodes.map(node => node.type),
        broken: app.graph.nodes.filter(node => node.has_errors).map(node => node.type),
        groups: app.graph.groups?.length ?? app.graph._groups.length,
        prompt: prompt.output,
    });
}
"""


@pytest.fixture(scope="module")
def page(host: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    executable = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if executable is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium on this machine, and CI must have one: apt-get install chromium")
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with session() as http:
        # Else the first visit opens a dialog.
        http.post(f"http://{host.address}/settings/Comfy.TutorialCompleted", json=True, timeout=60)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS, timeout=PATIENCE_MS)
        opened = browser.new_page(viewport={"width": 1600, "height": 1000})
        opened.set_default_timeout(PATIENCE_MS)
        opened.goto(f"http://{host.address}/")
        opened.wait_for_function("window.app?.graph && window.app.extensionManager && window.app.vueAppReady")
        yield opened
        browser.close()


def load(page: Any, workflow: dict[str, Any]) -> dict[str, Any]:
    """Open a workflow as the page does with a file, and return what became of it."""
    page.evaluate("async workflow => { await window.app.loadGraphData(workflow) }", workflow)
    state: dict[str, Any] = json.loads(page.evaluate(STATE))
    return state


def template(name: str, folder: str = ".") -> dict[str, Any]:
    workflow: dict[str, Any] = json.loads((ROOT / "workflows" / folder / f"{name}.json").read_text(encoding="utf-8"))
    return workflow


@pytest.mark.parametrize("name", TEMPLATES)
def test_server_offers_the_template(host: Any, name: str) -> None:
    with session() as http:
        offered = http.get(f"http://{host.address}/workflow_templates", timeout=60).json()
        assert name in offered["AnomalyDiffusion"]
        served = http.get(f"http://{host.address}/api/workflow_templates/AnomalyDiffusion/{name}.json", timeout=60)
    assert served.json() == template(name)


@pytest.mark.parametrize(("name", "groups"), TEMPLATES.items())
def test_template_opens_whole_and_means_the_api_workflow(page: Any, name: str, groups: int) -> None:
    workflow = template(name)
    state = load(page, workflow)
    assert state["broken"] == []
    assert sorted(state["types"]) == sorted(node["type"] for node in workflow["nodes"])
    assert state["groups"] == len(workflow["groups"]) == groups
    assert state["prompt"] == template(name, "api")
    assert "randomize" not in json.dumps(workflow), "the same graph should give the same pictures"
    assert page.get_by_text("missing nodes").count() == 0
    assert page.get_by_text("Invalid workflow").count() == 0


def test_a_missing_node_would_be_seen(page: Any) -> None:
    workflow = template("quickstart")
    workflow["nodes"][0]["type"] = "NoSuchNode"
    assert load(page, workflow)["broken"] == ["NoSuchNode"]
    page.get_by_text("missing nodes").first.wait_for()
