// Small steps in the host's graph: widgets by name, what is linked, adding a node.
import { app } from "../../scripts/app.js";
import * as server from "./server.js";

const BYPASSED = 4; // LiteGraph's mode of a node that lets its inputs through

/** A node's widget; nodes without any have no list in Nodes 2.0. */
export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);

/** Set a widget as a person would: value, then its callback. */
export function write(node, name, value) {
  const widget = widgetOf(node, name);
  if (!widget || widget.value === value) return;
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
}

/** One step of the graph's history: what `act` changes is saved, undone and redone together. */
export function asOneChange(act) {
  app.canvas?.emitBeforeChange?.();
  try {
    return act();
  } finally {
    app.canvas?.emitAfterChange?.();
    app.canvas?.setDirty?.(true, true);
  }
}

/** Whether an input is linked, be it to the rim of a subgraph. */
export const isLinked = (node, name) => node.inputs?.find((input) => input.name === name)?.link != null;

/** The node an input comes from, undefined where it is not linked or comes from outside a subgraph. */
export function originOf(node, name) {
  if (!isLinked(node, name)) return undefined;
  return node.getInputNode(node.inputs.findIndex((input) => input.name === name)) ?? undefined;
}

/** Put a Load Checkpoint (VQ) with this file into the graph, beside `origin`, whose links it takes; else in view. */
export async function addLoader(file, origin) {
  await renewLists();
  const node = window.LiteGraph.createNode("VQCheckpointLoader");
  if (!node) return say("This ComfyUI does not know Load Checkpoint (VQ): restart it.", "error");
  return asOneChange(() => {
    node.pos = origin ? [origin.pos[0] - node.size[0] - 60, origin.pos[1]] : middleOfView();
    (origin?.graph ?? app.graph).add(node);
    write(node, "file", file);
    if (origin) takeLinks(origin, node);
    app.canvas?.selectNode?.(node);
  });
}

/** The page's lists of files are as old as the page: a file that is not in them is marked as missing. */
const renewLists = () => app.reloadNodeDefs?.() ?? app.refreshComboInNodes?.();

/** Open a workflow of its own that samples a VQ file: with a LoRA where there is any. */
export async function openWith(file) {
  const loras = await server.options("LoraLoader", "lora_name");
  const workflow = await server.template(loras.length ? "lora_stack" : "load_and_sample");
  let free = true; // a loader of an absent LoRA gets the first in the list, as a new node would; only one of them works
  for (const node of workflow.nodes) {
    const values = node.widgets_values;
    if (node.type === "VQCheckpointLoader") values[0] = file;
    if (node.type !== "LoraLoader" || loras.includes(values[0])) continue;
    values[0] = loras[0];
    if (!free) node.mode = BYPASSED;
    free = false;
  }
  await renewLists();
  await app.loadGraphData(workflow, true, true, file.replace(/\.\w+$/, "").replace(/[\\/]/g, "-"));
}

/** Outputs of the same type go where the old loader's went. */
function takeLinks(from, to) {
  const { graph } = from, linkOf = (id) => graph.links.get?.(id) ?? graph.links[id];
  from.outputs?.forEach((output) => {
    const slot = to.outputs.findIndex((other) => other.type === output.type);
    if (slot < 0) return;
    for (const link of (output.links ?? []).map(linkOf).filter(Boolean)) {
      const target = graph.getNodeById(link.target_id);
      if (target) to.connect(slot, target, link.target_slot);
    }
  });
}

function middleOfView() {
  const [x, y, width, height] = app.canvas?.visible_area ?? [0, 0, 800, 600];
  return [x + width / 2 - 170, y + height / 2 - 80];
}

/** A passing note, where the host has a place for it. */
export function say(text, severity = "info") {
  app.extensionManager?.toast?.add?.({ severity, summary: "VQ", detail: text, life: 5000 });
}
