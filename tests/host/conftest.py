"""The tiny quickstart, run once for all the tests that look at its results."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_quickstart import QUICKSTART, TINY

from anomalydiffusion_core.server.client import RunResult
from anomalydiffusion_core.server.workflow import load_workflow, parse_assignment, with_inputs
from anomalydiffusion_core.synthetic import render_fewshot_set


@pytest.fixture(scope="session")
def tiny() -> dict[str, dict[str, Any]]:
    # A folder of its own: the browser's tests render the demo's in another size.
    own = [("2", "folder", "tiny_quickstart")]
    return with_inputs(load_workflow(QUICKSTART), [*(parse_assignment(text) for text in TINY), *own])


@pytest.fixture(scope="session")
def finished(host: Any, tiny: dict[str, dict[str, Any]]) -> RunResult:
    name = tiny["2"]["inputs"]["folder"]
    render_fewshot_set(host.input / name, size=128, train_pairs=6, test_pairs=2, normals=6, test_normals=2)
    return host.run(tiny)
