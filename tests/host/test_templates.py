"""The templates are what tools/templates.py draws of the graphs that are queued, for the nodes as they are."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).resolve().parents[2]


def _tool() -> Any:
    spec = importlib.util.spec_from_file_location("templates_under_test", ROOT / "tools" / "templates.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_templates_are_current(host: Any) -> None:
    tool = _tool()
    specs = tool.specs_of(requests.get(f"http://{host.address}/object_info", timeout=120).json())
    assert [path.name for path in tool.stale(specs)] == [], "run python tools/templates.py"


def test_a_graph_gets_the_defaults_it_does_not_name() -> None:
    tool = _tool()
    inputs = {"x": ("IMAGE", {}, False), "n": ("INT", {"default": 3}, False), "mode": (["a", "b"], {}, True)}
    spec = tool.Spec("Node", inputs, [("out", "IMAGE")], False, "A node")
    graph = {"1": {"class_type": "Node", "inputs": {"mode": "b"}}}
    made = tool.completed(graph, {"Node": spec})
    assert made == {"1": {"class_type": "Node", "inputs": {"n": 3, "mode": "b"}, "_meta": {"title": "A node"}}}
