from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.server.workflow import (
    DATASET_NODE,
    find_node,
    load_workflow,
    nodes_of_class,
    parse_assignment,
    with_dataset,
    with_inputs,
)

WORKFLOW: dict[str, dict[str, Any]] = {
    "1": {
        "class_type": DATASET_NODE,
        "inputs": {"folder": "a", "category": "b", "count": 6},
        "_meta": {"title": "Data"},
    },
    "2": {"class_type": "Train", "inputs": {"data": ["1", 0], "rate": 0.5}, "_meta": {"title": "Train A"}},
    "3": {"class_type": "Train", "inputs": {"data": ["1", 0], "rate": 0.5}, "_meta": {"title": "Train B"}},
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Train A.rate=0.25", ("Train A", "rate", 0.25)),
        ("2.steps=12", ("2", "steps", 12)),
        ("v1.5 model.name=x.safetensors", ("v1.5 model", "name", "x.safetensors")),
        ("2.on=true", ("2", "on", True)),
        ("2.text=a=b", ("2", "text", "a=b")),
        ("2.text=", ("2", "text", "")),
    ],
)
def test_assignment_is_split_at_the_last_dot_and_the_first_equals(text: str, expected: tuple[str, str, Any]) -> None:
    assert parse_assignment(text) == expected


@pytest.mark.parametrize("text", ["rate=1", "Train.rate", ".rate=1", "Train.=1", ""])
def test_bad_assignment_names_the_form(text: str) -> None:
    with pytest.raises(InputError, match="NODE.input=value"):
        parse_assignment(text)


def test_node_is_found_by_id_title_or_class() -> None:
    assert find_node(WORKFLOW, "3") == "3"
    assert find_node(WORKFLOW, "Train B") == "3"
    assert find_node(WORKFLOW, DATASET_NODE) == "1"
    assert nodes_of_class(WORKFLOW, "Train") == ["2", "3"]


def test_ambiguous_and_unknown_nodes_are_named() -> None:
    with pytest.raises(InputError, match=r"2 nodes \(2, 3\)"):
        find_node(WORKFLOW, "Train")
    with pytest.raises(InputError, match=r"no node 'Trian'.*Train A"):
        find_node(WORKFLOW, "Trian")


def test_inputs_are_set_in_a_copy() -> None:
    changed = with_inputs(WORKFLOW, [("Train B", "rate", 2)])
    assert changed["3"]["inputs"]["rate"] == 2
    assert changed["2"]["inputs"]["rate"] == WORKFLOW["3"]["inputs"]["rate"] == 0.5


def test_number_for_a_text_input_becomes_text() -> None:
    assert with_inputs(WORKFLOW, [("1", "category", 7)])["1"]["inputs"]["category"] == "7"


def test_unknown_and_connected_inputs_are_refused() -> None:
    with pytest.raises(InputError, match="no input 'ratio'. It has data, rate"):
        with_inputs(WORKFLOW, [("2", "ratio", 1)])
    with pytest.raises(InputError, match="comes from node 1"):
        with_inputs(WORKFLOW, [("2", "data", 1)])


def test_dataset_goes_to_every_dataset_node_or_is_refused() -> None:
    changed = with_dataset(WORKFLOW, {"folder": "/x", "category": "y"})
    assert changed["1"]["inputs"] == {"folder": "/x", "category": "y", "count": 6}
    with pytest.raises(InputError, match=DATASET_NODE):
        with_dataset({"2": WORKFLOW["2"]}, {"folder": "/x"})


def test_files_that_are_no_api_workflow_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not there"):
        load_workflow(tmp_path / "none.json")
    page = tmp_path / "page.json"
    page.write_text(json.dumps({"nodes": [], "links": []}))
    with pytest.raises(InputError, match="format of the page"):
        load_workflow(page)
    for content in ("{", "{}", "[1]", '{"1": {"inputs": {}}}'):
        page.write_text(content)
        with pytest.raises(InputError, match="page.json"):
            load_workflow(page)
    page.write_text(json.dumps(WORKFLOW))
    assert load_workflow(page) == WORKFLOW
