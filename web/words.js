// The page in another language than English: what ComfyUI has no place for in its translations of nodes.
// Labels of options, the line of progress, and notes and group titles of the templates, all from locales/<language>.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { PREFIX, PROGRESS_TEXT, nodeOf } from "./reports.js";

let words = { nodeDefs: {}, progress: [], notes: {} };

/** A text of progress with its known parts translated; file names, numbers and types stay. */
export function translated(text) {
  return words.progress.reduce((sum, [pattern, by]) => sum.replace(new RegExp(pattern, "g"), by), text);
}

/** Options as "translation (value)": help pages and saved workflows speak of the value. */
function labelOptions(node) {
  const inputs = words.nodeDefs[node.comfyClass]?.inputs ?? {};
  for (const widget of node.widgets ?? []) {
    const labels = inputs[widget.name]?.options;
    if (labels && widget.options) {
      widget.options.getOptionLabel = (value) => (labels[value] ? `${labels[value]} (${value})` : String(value));
    }
  }
}

/** Notes and titles of groups of a template; a text that somebody has changed is no longer found and stays. */
function translateNotes(graph) {
  for (const node of graph.nodes ?? []) {
    if (node.type !== "MarkdownNote") continue;
    const widget = node.widgets?.[0];
    if (widget && words.notes[widget.value]) widget.value = words.notes[widget.value];
  }
  for (const group of graph._groups ?? graph.groups ?? []) {
    const [number, ...title] = group.title.split(" ");
    const found = words.notes[title.join(" ")];
    if (found) group.title = `${number} ${found}`;
  }
}

function onProgressText({ detail }) {
  const node = nodeOf(String(detail.nodeId));
  if (!(node?.comfyClass ?? "").startsWith(PREFIX)) return;
  // ComfyUI's own listener has put the English line there.
  setTimeout(() => {
    const line = node.widgets?.find((one) => one.name === PROGRESS_TEXT);
    if (line) line.value = translated(detail.text);
  });
}

app.registerExtension({
  name: "AnomalyDiffusion.Words",
  async init() {
    const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
    if (language === "en") return;
    const found = (await (await api.fetchApi("/i18n")).json())[language];
    if (!found) return;
    words = { nodeDefs: found.nodeDefs ?? {}, progress: [], notes: {}, ...found.anomalydiffusion };
    if (words.progress.length) api.addEventListener("progress_text", onProgressText);
  },
  nodeCreated(node) {
    if ((node.comfyClass ?? "").startsWith(PREFIX)) labelOptions(node);
  },
  afterConfigureGraph() {
    translateNotes(app.rootGraph ?? app.graph);
  },
});
