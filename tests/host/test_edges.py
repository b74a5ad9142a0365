"""Values that the server would bend without a word, sent to a real one."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.server.address import session
from anomalydiffusion_core.server.client import _refusal


def refused(host: Any, workflow: dict[str, Any]) -> str:
    """What the server says of a workflow that it does not take."""
    body = json.dumps({"prompt": workflow})
    with session() as http:
        answer = http.post(f"http://{host.address}/prompt", data=body, timeout=60)
    assert answer.status_code == 400
    return str(_refusal(answer))


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 1.5), ("seed", True), ("count", math.nan), ("smallest_area", math.nan), ("largest_area", -math.inf)],
)
def test_numbers_that_are_none_are_refused_by_node_and_input(host: Any, name: str, value: Any) -> None:
    inputs: dict[str, Any] = {"count": 1, "size": 64, "seed": 0, "kind": "blobs", "defect_type": "a/b"}
    inputs |= {"smallest_area": 0.01, "largest_area": 0.1, name: value}
    workflow = {
        "5": {"class_type": "AnomalyDiffusionProceduralMasks", "inputs": inputs},
        "6": {"class_type": "MaskToImage", "inputs": {"mask": ["5", 0]}},
        "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}},
    }
    said = refused(host, workflow)
    assert f"{name}, " in said and ("whole number" in said or "not finite" in said or "is not a number" in said), said


def test_a_node_without_inputs_does_not_end_the_queue(host: Any) -> None:
    inputs = {"kind": "blob", "count": 1, "size": 64, "seed": 0, "defect_type": "a/b"}
    inputs |= {"smallest_area": 0.01, "largest_area": 0.1}
    whole = {
        "5": {"class_type": "AnomalyDiffusionProceduralMasks", "inputs": inputs},
        "6": {"class_type": "MaskToImage", "inputs": {"mask": ["5", 0]}},
        "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}},
    }
    without = {**whole, "8": {"class_type": "AnomalyDiffusionPickNormals"}}
    with pytest.raises(InputError, match="workflow: "):
        host.run(without)
    # Another client sends it all the same; the server still works afterwards.
    with session() as http:
        http.post(f"http://{host.address}/prompt", json={"prompt": without}, timeout=60)
    assert host.run(whole).outputs["7"]
