"""Workflows in ComfyUI's API format: read them, find nodes, set inputs."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..plain_json import read_json

CHECKPOINT_NODE = "AnomalyDiffusionLoadLDMCheckpoint"
DATASET_NODE = "AnomalyDiffusionLoadDataset"
TRAINING = "AnomalyDiffusionTrainAnomalyEmbedding"
MASK_TRAINING = "AnomalyDiffusionTrainMaskEmbedding"
MASK_SAMPLER = "AnomalyDiffusionMaskEmbeddingSampler"
NORMALS = "AnomalyDiffusionPickNormals"
SAMPLER = "AnomalyDiffusionBlendedAARKSampler"
EXPORT_NODE = "AnomalyDiffusionExportPairs"
EVALUATION_NODE = "AnomalyDiffusionEvaluateLocalization"

Workflow = dict[str, dict[str, Any]]


def load_workflow(path: Path) -> Workflow:
    """Read a workflow in API format. Raises InputError for a missing file, no JSON, or the format of the page."""
    content: Any = read_json(path, "workflow", object, "Export it again with File, Export (API).")
    if isinstance(content, dict) and isinstance(content.get("nodes"), list):
        raise InputError(
            f"workflow: {path} is in the format of the page, which cannot be queued. "
            f"Export it with File, Export (API), or use the file in workflows/api."
        )
    check_workflow(content, str(path))
    workflow: Workflow = content
    return workflow


def check_workflow(content: object, where: str = "what is queued") -> None:
    """Raise InputError for what is no workflow in API format: a node without inputs ends a server's queue for ever."""
    if not isinstance(content, dict) or not content or not all(_is_node(node) for node in content.values()):
        raise InputError(f"workflow: {where} is not a workflow in API format. Export it with File, Export (API).")


def _is_node(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    links = isinstance(value.get("inputs"), dict) and all(map(_is_link, value["inputs"].values()))
    return isinstance(value.get("class_type"), str) and links and isinstance(value.get("_meta", {}), dict)


def _is_link(value: object) -> bool:
    """Whether a list, which stands for a connection, names a node and its output; other values are no links."""
    if not isinstance(value, list):
        return True
    return len(value) == 2 and isinstance(value[0], str) and type(value[1]) is int


def describe_nodes(workflow: Mapping[str, Mapping[str, Any]]) -> str:
    """`id "title" (class)` of every node, for error messages."""
    return ", ".join(f'{key} "{_title(node)}" ({node["class_type"]})' for key, node in workflow.items())


def _title(node: Mapping[str, Any]) -> str:
    return str(node.get("_meta", {}).get("title", ""))


def nodes_of_class(workflow: Mapping[str, Mapping[str, Any]], class_type: str) -> list[str]:
    """Ids of the nodes of a class, in the order of the file."""
    return [key for key, node in workflow.items() if node["class_type"] == class_type]


def find_node(workflow: Mapping[str, Mapping[str, Any]], name: str) -> str:
    """Return the id of the one node whose id, title or class is `name` (tried in this order)."""
    if name in workflow:
        return name
    for found in (
        [key for key, node in workflow.items() if _title(node) == name],
        [key for key, node in workflow.items() if node["class_type"] == name],
    ):
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(f"set: {name!r} is {len(found)} nodes ({', '.join(found)}). Name one of them by its id.")
    raise InputError(f"set: no node {name!r} in the workflow. It has {describe_nodes(workflow)}.")


def parse_assignment(text: str) -> tuple[str, str, Any]:
    """Split `NODE.input=value`. The value is read as JSON where it is JSON (12, 0.5, true), else as plain text."""
    target, equals, value = text.partition("=")
    node, dot, name = target.rpartition(".")
    if not (equals and dot and node.strip() and name.strip()):
        raise InputError(f"set: {text!r} is not of the form NODE.input=value, for example Train.steps=100.")
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        parsed = value
    return node.strip(), name.strip(), parsed


def with_inputs(workflow: Workflow, values: Iterable[tuple[str, str, Any]]) -> Workflow:
    """Return a copy with (node, input, value) set; a number for a text input becomes text.

    Raises InputError for an unknown node, an unknown input, or an input that is connected to another node.
    """
    changed = copy.deepcopy(workflow)
    for name, key, value in values:
        node_id = find_node(changed, name)
        inputs = changed[node_id]["inputs"]
        if key not in inputs:
            raise InputError(f"set: node {name!r} has no input {key!r}. It has {', '.join(inputs)}.")
        if isinstance(inputs[key], list):
            source = inputs[key][0]
            raise InputError(f"set: input {key!r} of node {name!r} comes from node {source}. Set it there.")
        inputs[key] = _like(inputs[key], value, f"set: {name}.{key}")
    return changed


def _like(old: Any, value: Any, name: str) -> Any:
    """A value for an input that holds ``old``. Raises InputError for one that a server would bend to another."""
    if isinstance(old, str):
        return value if isinstance(value, str) else json.dumps(value)
    if isinstance(old, bool) and not isinstance(value, bool):
        raise InputError(f"{name}: {value!r} is not true or false.")
    if isinstance(old, bool) or not isinstance(old, (int, float)):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{name}: {value!r} is not a finite number.")
    return value  # JSON writes 1.0 as 1: whether the input takes fractions is for the server to say


def with_dataset(workflow: Workflow, values: Mapping[str, Any]) -> Workflow:
    """Return a copy in which every Load Anomaly Dataset node has these inputs. InputError when there is none."""
    found = nodes_of_class(workflow, DATASET_NODE)
    if not found:
        raise InputError(
            f"workflow: it has no node {DATASET_NODE} to give the data to. It has {describe_nodes(workflow)}."
        )
    changed = copy.deepcopy(workflow)
    for node in found:  # a workflow of an older version lacks newer inputs
        changed[node]["inputs"] = {**values, **changed[node]["inputs"]}
    return with_inputs(changed, [(node, key, value) for node in found for key, value in values.items()])
