// Small steps in the host's graph: widgets by name, what is linked, adding a node.
import { app } from "../../scripts/app.js";

/** A node's widget; nodes without any have no list in Nodes 2.0. */
export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);

/** Set a widget as a person would: value, then its callback. */
export function write(node, name, value) {
  const widget = widgetOf(node, name);
  if (!widget || widget.value === value) return;
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
}

/** The node an input comes from, undefined where it is not linked. */
export function originOf(node, name) {
  const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  return slot >= 0 && node.inputs[slot].link != null ? node.getInputNode(slot) ?? undefined : undefined;
}

/** Put a Load Checkpoint (VQ) with this file into the graph, beside `origin`, whose links it takes; else in view. */
export async function addLoader(file, origin) {
  await app.refreshComboInNodes?.();
  const node = window.LiteGraph.createNode("VQCheckpointLoader");
  const graph = origin?.graph ?? app.graph;
  if (!node) throw new Error("this ComfyUI does not know Load Checkpoint (VQ): restart it");
  graph.beforeChange?.();
  node.pos = origin ? [origin.pos[0], origin.pos[1] + origin.size[1] + 60] : middleOfView();
  graph.add(node);
  write(node, "file", file);
  if (origin) takeLinks(origin, node);
  graph.afterChange?.();
  app.canvas?.selectNode?.(node);
  graph.setDirtyCanvas?.(true, true);
  return node;
}

/** Outputs of the same type go where the old loader's went. */
function takeLinks(from, to) {
  from.outputs?.forEach((output) => {
    const slot = to.outputs.findIndex((other) => other.type === output.type);
    const targets = (output.links ?? []).map((id) => from.graph.links.get?.(id) ?? from.graph.links[id]).filter(Boolean);
    if (slot < 0) return;
    for (const { target_id, target_slot } of targets.map((link) => ({ ...link, target_id: link.target_id, target_slot: link.target_slot }))) {
      const target = from.graph.getNodeById(target_id);
      if (target) to.connect(slot, target, target_slot);
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
