"""Draw the templates of the page, workflows/*.json, from the graphs that are queued, workflows/api/*.json.

    python tools/templates.py            write workflows/*.json and subgraphs/*.json anew
    python tools/templates.py --check    only name what is stale, and fail if anything is

Needs the ComfyUI of set-up. A graph holds what is computed; LAYOUTS below holds where nodes stand and what the notes
say. Nodes stand in columns, with room below those that show results after a run. Inputs that a graph does not name
are written into it with their defaults, so that the page and the command line queue the same.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))
from blueprints import blueprints  # noqa: E402

WORKFLOWS = ROOT / "workflows"
LAYOUTS_FILE = ROOT / "tools" / "template_layouts.json"
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
WIDTH, WIDE, GAP = 350, 460, 70
"""Of a column, of one with tables or sheets, and between columns, in pixels of the canvas."""
NOTE, BETWEEN, RESULTS = 170, 70, 480
"""Height of a note; room between nodes; room that a node takes when it shows its report and an image."""
SHOWING = {"PreviewImage": 260, "PreviewAny": 200, "KSampler": 260, "AnomalyDiffusionPickNormals": RESULTS}
"""Nodes without a report that show results, and the room they take."""
COLOR = "#3f789e"


@dataclass(frozen=True)
class Spec:
    """What the page knows of a node class: sockets and widgets in their order, names and types of its outputs."""

    name: str
    inputs: dict[str, tuple[Any, dict[str, Any], bool]]
    outputs: list[tuple[str, str]]
    shows: bool
    title: str

    def is_widget(self, key: str) -> bool:
        """Whether an input has a widget, which another node may still be connected to."""
        kind, more, _ = self.inputs[key]
        return (isinstance(kind, list) or kind in WIDGETS) and not more.get("forceInput")

    def kind(self, key: str) -> str:
        """The type of an input as links name it."""
        return "COMBO" if isinstance(self.inputs[key][0], list) else str(self.inputs[key][0])

    def default(self, key: str) -> Any:
        """The value of a widget that nobody set."""
        kind, more, _ = self.inputs[key]
        if "default" in more:
            return more["default"]
        options = kind if isinstance(kind, list) else more.get("options")
        return options[0] if options else ""

    def has_control(self, key: str) -> bool:
        """Whether the page adds a control after generate, which takes a place among the saved values."""
        kind, more, _ = self.inputs[key]
        return bool(kind == "INT" and (more.get("control_after_generate") or key in ("seed", "noise_seed")))


def main() -> int:
    """Write or check, as the command line says; the exit status."""
    parser = argparse.ArgumentParser(description="Draw workflows/*.json from workflows/api/*.json.")
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 if anything is stale")
    check = parser.parse_args().check
    problems = 0
    for path, text in stale(load_specs()).items():
        problems += 1
        if check:
            sys.stdout.write(f"{path.relative_to(ROOT)} is stale: run python tools/templates.py\n")
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"{path.relative_to(ROOT)} written\n")
    return 1 if problems and check else 0


def load_specs() -> dict[str, Spec]:
    """All nodes of ComfyUI and of this extension by class name, from a server that is started for it."""
    sys.path.append(str(ROOT))
    process = importlib.import_module("anomalydiffusion_core.server.process")
    found = process.find_host(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        for name in ("custom_nodes", "input", "output", "models", "user", "temp"):
            (base / name).mkdir()
        (base / "custom_nodes" / "AnomalyDiffusion").symlink_to(ROOT, target_is_directory=True)
        host = process.Host(found.comfyui, base, sys.executable)
        with process.LocalServer(host, log_path=base / "log.txt", cpu=True) as server, process.session() as http:
            return specs_of(http.get(f"http://{server.address}/object_info", timeout=120).json())


def specs_of(object_info: Mapping[str, Any]) -> dict[str, Spec]:
    """What the page needs to know of every node, from a server's /object_info."""
    return {name: _spec(name, node) for name, node in object_info.items()}


def _spec(name: str, node: Mapping[str, Any]) -> Spec:
    inputs = {
        key: (spec[0], dict(spec[1]) if len(spec) > 1 else {}, group == "optional")
        for group in ("required", "optional")
        for key, spec in node["input"].get(group, {}).items()
    }
    names = node.get("output_name") or node["output"]
    outputs = [(str(label), str(kind)) for label, kind in zip(names, node["output"], strict=True)]
    shows = name in SHOWING or (name.startswith("AnomalyDiffusion") and bool({"report", "table", "tables"} & {*names}))
    return Spec(name, inputs, outputs, shows, str(node["display_name"]))


def stale(specs: Mapping[str, Spec]) -> dict[Path, str]:
    """The files that do not hold what they must, with what they must hold."""
    files: dict[Path, str] = {}
    layouts = json.loads(LAYOUTS_FILE.read_text("utf-8"))

    def source(name: str) -> Path:
        return WORKFLOWS / "api" / f"{name}.json"

    def graph_of(name: str) -> dict[str, Any]:
        return completed(json.loads(source(name).read_text("utf-8")), specs)

    def draw(graph: Mapping[str, Any], layout: Mapping[str, Any]) -> dict[str, Any]:
        return Drawing(graph, layout, specs).workflow()

    for name, layout in layouts.items():
        files[source(name)] = _text(graph_of(name))
        files[WORKFLOWS / f"{name}.json"] = _text(draw(graph_of(name), layout))
    for name, content in blueprints(layouts, graph_of, draw, specs).items():
        files[ROOT / "subgraphs" / f"{name}.json"] = _text(content)
    return {path: text for path, text in files.items() if not path.is_file() or path.read_text("utf-8") != text}


def completed(graph: Mapping[str, Any], specs: Mapping[str, Spec]) -> dict[str, Any]:
    """A graph with the defaults of the inputs that it does not name, in the order of the page."""
    made = {}
    for node_id, node in graph.items():
        spec, given = specs[node["class_type"]], node["inputs"]
        unknown = set(given) - set(spec.inputs)
        if unknown:
            raise SystemExit(f"node {node_id} ({spec.name}) has no input {', '.join(sorted(unknown))}")
        inputs = {key: given[key] for key in spec.inputs if key in given and not spec.is_widget(key)}
        inputs |= {key: given.get(key, spec.default(key)) for key in spec.inputs if spec.is_widget(key)}
        title = node.get("_meta", {}).get("title") or spec.title
        made[node_id] = {"class_type": node["class_type"], "inputs": inputs, "_meta": {"title": title}}
    return made


class Drawing:
    """One template: its nodes in columns, with notes and groups."""

    def __init__(self, graph: Mapping[str, Any], layout: Mapping[str, Any], specs: Mapping[str, Spec]) -> None:
        self.graph, self.layout, self.specs = graph, layout, specs
        placed = [str(node) for column in layout["columns"] for node in column["nodes"]]
        if sorted(placed) != sorted(graph):
            raise SystemExit(f"layout: places {sorted(placed)}, the graph has {sorted(graph)}")
        self.links: list[list[Any]] = []

    def workflow(self) -> dict[str, Any]:
        """The template as the page saves workflows."""
        nodes, groups = list[dict[str, Any]](), list[dict[str, Any]]()
        left, number = 0, 0
        highest = max(int(node_id) for node_id in self.graph)
        positions: dict[str, tuple[int, int, int, int]] = {}
        for column in self.layout["columns"]:
            width = WIDE if column.get("wide") else WIDTH
            top = 0
            if column.get("note"):
                number += 1
                lines = sum(math.ceil((len(line) or 1) / (width / 8)) for line in column["note"].split("\n"))
                height = max(NOTE, 40 + 22 * lines)
                nodes.append(_note(highest + number, column["note"], (left, top), (width, height)))
                top += height + BETWEEN
            for node_id in map(str, column["nodes"]):
                height, room = self._height(node_id)
                positions[node_id] = (left, top, width, height)
                top += height + room + BETWEEN
            bounding = [left - 20, -80, width + 40, top + 80 - BETWEEN + 20]
            title = f"{len(groups) + 1} {column['title']}"
            groups.append({"id": len(groups) + 1, "title": title, "bounding": bounding, "color": COLOR, "flags": {}})
            left += width + GAP
        self._connect()
        nodes += [self._node(node_id, order, positions[node_id]) for order, node_id in enumerate(self.graph)]
        return {
            "id": self.layout["id"],
            "revision": 0,
            "last_node_id": highest + number,
            "last_link_id": len(self.links),
            "nodes": nodes,
            "links": self.links,
            "groups": groups,
            "config": {},
            "extra": {"ds": {"scale": 0.7, "offset": [110, 130]}},
            "version": 0.4,
        }

    def _height(self, node_id: str) -> tuple[int, int]:
        """Height of a node as it opens, and the room to leave for what it shows after a run."""
        spec, inputs = self._of(node_id)
        sockets = sum(not spec.is_widget(key) for key in spec.inputs)
        widgets = [key for key in spec.inputs if spec.is_widget(key) and not spec.inputs[key][1].get("advanced")]
        tall = sum(bool(spec.inputs[key][1].get("multiline")) for key in widgets)
        controls = sum(spec.has_control(key) for key in widgets)
        hidden = any(more.get("advanced") for _, more, _ in spec.inputs.values())
        rows = max(sockets, len(spec.outputs)) * 21 + (len(widgets) + controls + hidden) * 25 + tall * 70 + 20
        # Nodes 2.0 draws higher rows than the classic renderer.
        taller = len(widgets) * 9 + max(sockets, len(spec.outputs)) * 5 + 40
        return rows, taller + (SHOWING.get(spec.name, RESULTS) if spec.shows else 0)

    def _of(self, node_id: str) -> tuple[Spec, Mapping[str, Any]]:
        node = self.graph[node_id]
        return self.specs[node["class_type"]], node["inputs"]

    def _slots(self, node_id: str) -> Iterator[str]:
        """The inputs of a node in the order of the page: sockets, then widgets."""
        spec, _ = self._of(node_id)
        yield from (key for key in spec.inputs if not spec.is_widget(key))
        yield from (key for key in spec.inputs if spec.is_widget(key))

    def _connect(self) -> None:
        for node_id in self.graph:
            _, inputs = self._of(node_id)
            for slot, key in enumerate(self._slots(node_id)):
                if isinstance(inputs.get(key), list):
                    source, output = inputs[key]
                    kind = self._of(source)[0].outputs[output][1]
                    self.links.append([len(self.links) + 1, int(source), output, int(node_id), slot, kind])

    def _node(self, node_id: str, order: int, place: Sequence[int]) -> dict[str, Any]:
        spec, inputs = self._of(node_id)
        own = int(node_id)
        slots = []
        for slot, key in enumerate(self._slots(node_id)):
            link = next((one[0] for one in self.links if one[3] == own and one[4] == slot), None)
            entry = {"name": key, "type": spec.kind(key), "link": link}
            if spec.inputs[key][2]:
                entry["shape"] = 7
            if spec.is_widget(key):
                entry["widget"] = {"name": key}
            slots.append(entry)
        outputs = []
        for place_of, (label, kind) in enumerate(spec.outputs):
            links = [one[0] for one in self.links if one[1] == own and one[2] == place_of]
            outputs.append({"name": label, "type": kind, "links": links or None})
        values: list[Any] = []
        for key in spec.inputs:
            if spec.is_widget(key):
                given = inputs.get(key)
                values.append(spec.default(key) if given is None or isinstance(given, list) else given)
                values += ["fixed"] if spec.has_control(key) else []
        title = self.graph[node_id]["_meta"]["title"]
        left, top, width, height = place
        return {
            "id": own,
            "type": spec.name,
            "pos": [left, top],
            "size": [width, height],
            "flags": {},
            "order": order,
            "mode": 0,
            "inputs": slots,
            "outputs": outputs,
            # The names of ComfyUI's own nodes differ between its versions.
            **({"title": title} if title != spec.title or not spec.name.startswith("AnomalyDiffusion") else {}),
            "properties": {"Node name for S&R": spec.name},
            "widgets_values": values,
        }


def _note(node_id: int, text: str, place: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
    return {
        "id": node_id,
        "type": "MarkdownNote",
        "pos": list(place),
        "size": list(size),
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": "Note",
        "properties": {},
        "widgets_values": [text],
        "color": "#432",
        "bgcolor": "#653",
    }


def _text(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(main())
