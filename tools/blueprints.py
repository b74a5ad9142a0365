"""Subgraph blueprints, subgraphs/*.json: a part of a template as one node, made of the graph that is queued.

tools/templates.py writes and checks them with the templates. ComfyUI offers every file of that folder in its node
library; the name of the file is the name of the node. What a part takes from nodes outside of it becomes a socket,
and PLANS below say which widgets the one node shows, each for one or several nodes inside.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

INSIDE, OUTSIDE = -10, -20
"""Ids that the page gives to the nodes of a subgraph's inputs and outputs."""
NAMESPACE = uuid.UUID("6f6b2bb5-8f5c-5d0f-9a43-9c5a53f2f3a1")
ROOM_LEFT, ROW = -240, 20
"""Left edge of the node of the inputs; height of a row there."""


@dataclass(frozen=True)
class Plan:
    """One blueprint: nodes of a template, names of its sockets, its widgets and its outputs."""

    template: str
    nodes: Sequence[int]
    description: str
    aliases: Sequence[str]
    sockets: Mapping[tuple[int, int], str]
    """(node outside, place of its output) -> name of the socket."""
    widgets: Mapping[str, Sequence[tuple[int, str]]]
    outputs: Mapping[str, tuple[int, int]]
    previews: Sequence[int] = field(default=())
    """Nodes whose images the one node shows."""


PLANS = {
    "Learn Defects": Plan(
        template="sd15_train",
        nodes=(3, 4, 5),
        description="Learns the defects and the masks of a few real pairs with Stable Diffusion 1.5: two bundles, "
        "saved in models/anomalydiffusion. Connect a checkpoint and Load Anomaly Dataset.",
        aliases=("defect", "few-shot", "textual inversion", "train", "anomaly"),
        sockets={(1, 0): "model", (1, 2): "vae", (1, 1): "clip", (2, 0): "dataset"},
        widgets={
            "name": [(4, "name")],
            "steps": [(4, "steps")],
            "mask name": [(5, "name")],
            "mask steps": [(5, "steps")],
            "initial words": [(4, "initial_words")],
            "resolution": [(4, "resolution"), (5, "resolution")],
            "batch size": [(4, "batch_size"), (5, "batch_size")],
        },
        outputs={"defect bundle": (4, 0), "mask bundle": (5, 0), "report": (4, 2)},
        previews=(4, 5),
    ),
    "Generate Pairs": Plan(
        template="sd15_generate",
        nodes=(5, 6, 7, 8, 9, 10, 11),
        description="Makes new masks, puts learned defects into normal images there, and exports images and masks "
        "as a data set. Connect the bundles of Learn Defects, and the types of Load Anomaly Dataset.",
        aliases=("defect", "synthetic", "augmentation", "inpaint", "anomaly", "MVTec"),
        sockets={
            (1, 0): "model",
            (1, 2): "vae",
            (1, 1): "clip",
            (2, 0): "dataset",
            (3, 0): "defect bundle",
            (4, 0): "mask bundle",
            (2, 1): "defect type",
        },
        widgets={
            "count": [(7, "count"), (8, "count")],
            "size": [(7, "size"), (8, "size")],
            "seed": [(7, "seed"), (8, "seed"), (10, "seed")],
            "normal caption": [(6, "text")],
            "least effect": [(11, "min_effect")],
            "folder": [(11, "folder")],
        },
        outputs={"images": (10, 0), "masks": (10, 1), "pairs folder": (11, 0), "report": (11, 1)},
        previews=(11,),
    ),
}


class Spec(Protocol):
    """What is used of templates.py:Spec."""

    def kind(self, key: str) -> str:
        """The type of an input."""


def part(plan: Plan, graph: Mapping[str, Any]) -> tuple[dict[str, Any], dict[tuple[int, int], list[tuple[int, str]]]]:
    """The nodes of a plan without what comes from outside, and where each output of outside goes.

    Widgets that the one node sets for several nodes get one value inside: that of the first.
    """
    inner, wanted = dict[str, Any](), dict[tuple[int, int], list[tuple[int, str]]]()
    for number in plan.nodes:
        node = graph[str(number)]
        kept = {}
        for key, value in node["inputs"].items():
            if isinstance(value, list) and int(value[0]) not in plan.nodes:
                wanted.setdefault((int(value[0]), value[1]), []).append((number, key))
            else:
                kept[key] = value
        inner[str(number)] = {**node, "inputs": kept}
    if set(wanted) != set(plan.sockets):
        raise SystemExit(
            f"blueprint of {plan.template}: takes {sorted(wanted)}, the plan names {sorted(plan.sockets)}"
        )
    for targets in plan.widgets.values():
        first, key = targets[0]
        for number, name in targets[1:]:
            inner[str(number)]["inputs"][name] = inner[str(first)]["inputs"][key]
    return inner, wanted


def layout_of(plan: Plan, layout: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of the template with the nodes of the plan, without notes."""
    columns = [
        {"title": one["title"], "wide": one.get("wide", False), "nodes": [n for n in one["nodes"] if n in plan.nodes]}
        for one in layout["columns"]
    ]
    return {"id": layout["id"], "columns": [one for one in columns if one["nodes"]]}


class Blueprint:
    """The file of one blueprint, from a template's part as the page draws it."""

    def __init__(
        self,
        name: str,
        plan: Plan,
        drawn: Mapping[str, Any],
        wanted: Mapping[tuple[int, int], Sequence[tuple[int, str]]],
        specs: Mapping[str, Spec],
    ) -> None:
        self.name, self.plan, self.specs = name, plan, specs
        self.nodes = {node["id"]: node for node in drawn["nodes"]}
        # Ids belong to names: a workflow that was saved with an older version of the file keeps its links.
        self.id = str(uuid.uuid5(NAMESPACE, name))
        ends = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        self.links = [dict(zip(ends, link, strict=True)) for link in drawn["links"]]
        self.right = max(node["pos"][0] + node["size"][0] for node in self.nodes.values()) + 100
        sockets = {label: wanted[key] for key, label in plan.sockets.items()}
        targets = {**sockets, **plan.widgets}
        self.inputs = [self._input(place, label, targets[label]) for place, label in enumerate(targets)]
        self.outputs = [self._output(place, label) for place, label in enumerate(plan.outputs)]

    def _link(self, **ends: Any) -> int:
        number = max((link["id"] for link in self.links), default=0) + 1
        self.links.append({"id": number, **ends})
        return number

    def _input(self, place: int, label: str, targets: Sequence[tuple[int, str]]) -> dict[str, Any]:
        numbers, kind = list[int](), ""
        for number, key in targets:
            node = self.nodes[number]
            slot = next(at for at, one in enumerate(node["inputs"]) if one["name"] == key)
            kind = self.specs[node["type"]].kind(key)
            ends = {"origin_id": INSIDE, "origin_slot": place, "target_id": number, "target_slot": slot}
            numbers.append(self._link(**ends, type=kind))
            node["inputs"][slot]["link"] = numbers[-1]
        made = {"id": str(uuid.uuid5(NAMESPACE, f"{self.name} in {label}")), "name": label, "type": kind}
        return {**made, "linkIds": numbers, "pos": [ROOM_LEFT + 120, ROW * (place + 1)]}

    def _output(self, place: int, label: str) -> dict[str, Any]:
        number, output = self.plan.outputs[label]
        slot = self.nodes[number]["outputs"][output]
        ends = {"origin_id": number, "origin_slot": output, "target_id": OUTSIDE, "target_slot": place}
        link = self._link(**ends, type=slot["type"])
        slot["links"] = [*(slot["links"] or []), link]
        made = {"id": str(uuid.uuid5(NAMESPACE, f"{self.name} out {label}")), "name": label, "type": slot["type"]}
        return {**made, "linkIds": [link], "pos": [self.right + 20, ROW * (place + 1)]}

    def content(self, graph: Mapping[str, Any]) -> dict[str, Any]:
        """The file: a workflow of one node, whose type is the subgraph. ``graph`` has the values of its widgets."""
        slots, values = list[dict[str, Any]](), list[Any]()
        for one in self.inputs:
            slot: dict[str, Any] = {"name": one["name"], "type": one["type"], "link": None}
            widgets = self._widgets(one)
            if widgets:
                slot["widget"] = {"name": one["name"]}
                number, key = widgets[0]
                values.append(graph[str(number)]["inputs"].get(key, ""))
            slots.append(slot)
        exposed = [
            {"name": f"images {number}", "sourceNodeId": str(number), "sourcePreviewName": "$$canvas-image-preview"}
            for number in self.plan.previews
        ]
        node = {
            "id": 1,
            "type": self.id,
            "pos": [0, 0],
            "size": [400, 120 + 26 * len(slots)],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": slots,
            "outputs": [{"name": one["name"], "type": one["type"], "links": None} for one in self.outputs],
            "title": self.name,
            "properties": {"previewExposures": exposed},
            "widgets_values": values,
        }
        return {
            "revision": 0,
            "last_node_id": 1,
            "last_link_id": 0,
            "nodes": [node],
            "links": [],
            "version": 0.4,
            "definitions": {"subgraphs": [self._subgraph()]},
            "extra": {"BlueprintSearchAliases": list(self.plan.aliases)},
        }

    def _widgets(self, made: Mapping[str, Any]) -> list[tuple[int, str]]:
        """The widgets inside that an input of the one node sets."""
        links = [link for link in self.links if link["id"] in made["linkIds"]]
        ends = [(link["target_id"], self.nodes[link["target_id"]]["inputs"][link["target_slot"]]) for link in links]
        return [(number, slot["name"]) for number, slot in ends if "widget" in slot]

    def _subgraph(self) -> dict[str, Any]:
        height = ROW * (max(len(self.inputs), len(self.outputs)) + 1)
        state = {"lastGroupId": 0, "lastNodeId": max(self.nodes), "lastRerouteId": 0}
        return {
            "id": self.id,
            "version": 1,
            "state": {**state, "lastLinkId": max(link["id"] for link in self.links)},
            "revision": 0,
            "config": {},
            "name": self.name,
            "inputNode": {"id": INSIDE, "bounding": [ROOM_LEFT, 0, 140, height]},
            "outputNode": {"id": OUTSIDE, "bounding": [self.right, 0, 140, height]},
            "inputs": self.inputs,
            "outputs": self.outputs,
            "widgets": [],
            "nodes": list(self.nodes.values()),
            "groups": [],
            "links": self.links,
            "extra": {},
            "category": "AnomalyDiffusion",
            "description": self.plan.description,
        }


def blueprints(
    layouts: Mapping[str, Any],
    graphs: Callable[[str], Mapping[str, Any]],
    draw: Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]],
    specs: Mapping[str, Spec],
) -> dict[str, dict[str, Any]]:
    """The content of each blueprint by its name. ``draw`` makes a workflow of a graph and a layout."""
    made = {}
    for name, plan in PLANS.items():
        inner, wanted = part(plan, graphs(plan.template))
        drawn = draw(inner, layout_of(plan, layouts[plan.template]))
        made[name] = Blueprint(name, plan, drawn, wanted, specs).content(inner)
    return made
