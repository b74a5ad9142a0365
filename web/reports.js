// What the nodes of this extension leave below themselves in the page: reports and tables, and images at the end.
// ComfyUI keeps the text of a node (ui.text) but draws none, and shows the last preview in place of the results.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

export const PREFIX = "AnomalyDiffusion";
// After the images of the last preview have been drawn.
const REVOKED_MS = 600;
const REPORT = "anomalydiffusion_report";
export const PROGRESS_TEXT = "$$node-text-preview";
// The reports of nodes inside a subgraph, by the node that stands for it and by execution id.
const inside = new WeakMap();
const COLORS = {
  ANOMALYDIFFUSION_DATASET: "#6ee7b7",
  ANOMALYDIFFUSION_BUNDLE: "#fbbf24",
  ANOMALYDIFFUSION_TRAINING_OPTIONS: "#94a3b8",
  ANOMALYDIFFUSION_EFFECT: "#f472b6",
};
const STYLE = `
.anomalydiffusion-report { box-sizing: border-box; height: 100%; overflow: auto; padding: 6px 8px; font-size: 12px;
  line-height: 1.45; color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222); border-radius: 6px;
  user-select: text; contain: inline-size; }
.anomalydiffusion-report[hidden] { display: none; }
.anomalydiffusion-report p { margin: 0 0 4px; white-space: pre-wrap; overflow-wrap: anywhere; }
.anomalydiffusion-report p.warning { color: #fbbf24; font-weight: 600; }
.anomalydiffusion-report h4 { margin: 4px 0; font-size: 12px; }
.anomalydiffusion-report table { border-collapse: collapse; margin: 2px 0 6px; }
.anomalydiffusion-report td, .anomalydiffusion-report th { padding: 1px 7px; border: 1px solid var(--border-color, #555);
  text-align: left; white-space: nowrap; }`;

/** The lines of a report as elements: Markdown tables as tables, the rest as text. Nothing is read as HTML. */
export function reportElements(text) {
  const made = [];
  let rows = [];
  const closeTable = () => {
    if (rows.length) made.push(tableElement(rows));
    rows = [];
  };
  for (const line of text.split("\n")) {
    if (line.startsWith("|")) {
      const cells = line.replace(/^\||\|\s*$/g, "").split("|").map((cell) => cell.trim());
      if (!cells.every((cell) => /^:?-+:?$/.test(cell))) rows.push(cells);
      continue;
    }
    closeTable();
    if (!line.trim()) continue;
    const element = document.createElement(line.startsWith("#") ? "h4" : "p");
    element.textContent = line.replace(/^#+\s*/, "").replaceAll("**", "");
    if (/\b(warning|notice)\b/i.test(line)) element.className = "warning";
    made.push(element);
  }
  closeTable();
  return made;
}

function tableElement(rows) {
  const table = document.createElement("table");
  rows.forEach((cells, place) => {
    const row = table.insertRow();
    for (const text of cells) {
      const cell = document.createElement(place ? "td" : "th");
      cell.textContent = text.replaceAll("**", "");
      row.append(cell);
    }
  });
  return table;
}

/**
 * The place of a node for its report, empty and without height at first. It is there from the start, since Nodes 2.0 of
 * ComfyUI 0.3.75 does not notice a widget that comes after a value has been set or an input connected.
 */
function reportWidget(node) {
  const found = node.widgets?.find((one) => one.name === REPORT);
  if (found) return found;
  const element = document.createElement("div");
  element.className = "anomalydiffusion-report";
  element.hidden = true;
  // Scrolling the report must not zoom the graph.
  element.addEventListener("wheel", (event) => event.stopPropagation(), { passive: true });
  const widget = node.addDOMWidget(REPORT, "anomalydiffusion_report", element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => widgetHeight(element),
    getMaxHeight: () => 320,
    getValue: () => "",
    setValue: () => {},
  });
  widget.serialize = false;
  setHidden(widget, true);
  return widget;
}

/** Hide a widget in the classic renderer, or show it again. */
function setHidden(widget, hidden) {
  widget.hidden = hidden;
  // ComfyUI 0.3.75 leaves room for a hidden widget as well.
  if (hidden) widget.computeSize = () => [0, -4];
  else delete widget.computeSize;
}

/** Show a report on a node; a node that runs once for each type keeps one after another. */
function showReport(node, texts) {
  const widget = reportWidget(node);
  widget.element.hidden = false;
  setHidden(widget, false);
  widget.element.replaceChildren(...reportElements(texts.join("\n\n")));
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  node.setDirtyCanvas(true, true);
}

/** Room for a few lines, more for long reports, which scroll beyond that. */
function widgetHeight(element) {
  const lines = [...element.children].reduce(
    (sum, child) => sum + (child.rows?.length ?? Math.ceil(child.textContent.length / 45)),
    0,
  );
  return Math.min(Math.max(lines, 2) * 19 + 14, 170);
}

/** Take away what was shown while a node ran: the line of progress, and the previews, which hide the results. */
function endPreviews(node, executionId) {
  // The classic renderer keeps the image that it drew until the outputs change again.
  setTimeout(() => {
    node.images = undefined;
    node.setDirtyCanvas(true, true);
  }, REVOKED_MS);
  const line = node.widgets?.find((one) => one.name === PROGRESS_TEXT);
  if (line) {
    line.onRemove?.();
    node.widgets.splice(node.widgets.indexOf(line), 1);
  }
  const store = document.getElementById("vue-app")?.__vue_app__?.config.globalProperties.$pinia?._s?.get("nodeOutput");
  let graph = app.rootGraph ?? app.graph;
  for (const part of executionId.split(":")) {
    const own = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part));
    const key = graph?.isRootGraph === false ? `${graph.id}:${part}` : part;
    // Nodes 2.0 watches the store: taken out of ComfyUI's plain list first, its image would stay.
    delete store?.nodePreviewImages?.[key];
    delete app.nodePreviewImages?.[key];
    graph = own?.subgraph;
  }
}

/** The node that an execution id like "5" or "3:5" (inside a subgraph) names, undefined for one that is not here. */
export function nodeOf(executionId) {
  let graph = app.rootGraph ?? app.graph;
  let node;
  for (const part of executionId.split(":")) {
    node = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part));
    graph = node?.subgraph;
  }
  return node;
}

function onExecuted({ detail }) {
  const executionId = String(detail.display_node ?? detail.node);
  const node = nodeOf(executionId);
  const type = node?.comfyClass ?? node?.type ?? "";
  if (!type.startsWith(PREFIX) || !detail.output) return;
  endPreviews(node, executionId);
  const texts = (detail.output.text ?? []).map(String);
  if (!texts.length) return;
  showReport(node, texts);
  if (executionId.includes(":")) showOnSubgraph(executionId, node.title, texts);
}

/** The reports of the nodes inside a subgraph, one below the other on the node that stands for it. */
function showOnSubgraph(executionId, title, texts) {
  const outer = nodeOf(executionId.split(":")[0]);
  if (!outer) return;
  if (!inside.has(outer)) inside.set(outer, new Map());
  inside.get(outer).set(executionId, [`# ${title}`, ...texts].join("\n"));
  showReport(outer, [...inside.get(outer).values()]);
}

/** The classic renderer of ComfyUI 0.33 shows advanced inputs like all others: hide them, and show them by a button. */
function hideAdvanced(node) {
  const advanced = (node.widgets ?? []).filter((widget) => widget.options?.advanced);
  if (!advanced.length) return;
  const button = node.addWidget("button", "anomalydiffusion_advanced", null, () => show(!node.showAdvanced));
  button.serialize = false;
  button.options.serialize = false;
  button.options.hidden = true; // in Nodes 2.0, which looks here, and has a button of its own
  function show(all) {
    node.showAdvanced = all;
    for (const widget of advanced) setHidden(widget, !all);
    button.label = all ? "hide advanced inputs" : `show advanced inputs (${advanced.length})`;
    node.setSize([node.size[0], node.computeSize()[1]]);
    node.setDirtyCanvas?.(true, true);
  }
  show(false);
  const configure = node.onConfigure;
  node.onConfigure = function (saved) {
    configure?.call(this, saved);
    if (saved.showAdvanced) show(true);
  };
}

app.registerExtension({
  name: "AnomalyDiffusion.Reports",
  setup() {
    const style = document.createElement("style");
    style.textContent = STYLE;
    document.head.append(style);
    api.addEventListener("executed", onExecuted);
    const canvas = app.canvas;
    for (const table of [canvas?.default_connection_color_byType, globalThis.LGraphCanvas?.link_type_colors]) {
      if (table) Object.assign(table, COLORS);
    }
    for (const [type, color] of Object.entries(COLORS)) {
      document.documentElement.style.setProperty(`--color-datatype-${type}`, color);
    }
  },
  nodeCreated(node) {
    const type = node.comfyClass ?? "";
    if (!type.startsWith(PREFIX)) return;
    // A training, an evaluation, an adaptation: a new seed with each Run would do it all again from nothing. The
    // control stays, since saved workflows hold its value; it only starts at fixed.
    const inputs = node.constructor.nodeData?.input ?? {};
    const seed = { ...inputs.required, ...inputs.optional }.seed?.[1];
    const control = node.widgets?.find((one) => one.name === "control_after_generate");
    if (control && seed && !seed.control_after_generate) control.value = "fixed";
    hideAdvanced(node);
    reportWidget(node);
  },
});
