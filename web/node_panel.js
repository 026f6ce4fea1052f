// The bit-width panel in the quantize nodes. The plain widgets stay what is saved, linked and sent; it writes them.
import { bitWidth } from "./bit_width.js";
import { addElement } from "./dom_widget.js";
import { asOneChange, isLinked, originOf, widgetOf, write } from "./graph.js";
import { QUANTIZE } from "./server.js";

const NAME = "vqpack_bits", TYPE = "VQPACK_BITS";
const HEIGHT = 196; // px: presets, slider, five lines and a sentence at the least width
const WIDTH = 360;
const SWITCHED = "vqpack_switched"; // node property: 8 bits made the palette stand in for the trellis

/** Add the panel to a new Quantize Checkpoint (VQ) or Quantize Model (VQ). */
export function addPanel(node) {
  if (!widgetOf(node, "bits")) return;
  const target = targetOf(node), panel = bitWidth(target);
  let last = "";
  const watch = () => {
    const now = JSON.stringify([target.read(), target.query()]);
    if (now !== last) panel.refresh();
    last = now;
  };
  addElement(node, { name: NAME, type: TYPE, height: HEIGHT, width: WIDTH, watch, ...panel });
}

function targetOf(node) {
  const value = (name) => widgetOf(node, name)?.value;
  return {
    read: () => ({
      bits: Number(value("bits")), method: value("method"), encoders: value("text_encoder_bits"),
      switched: value("method") === "palette" && node.properties?.[SWITCHED] === true, locked: lockedBy(node),
    }),
    write: (chosen) => writeAll(node, chosen),
    query: () => queryOf(node, value),
  };
}

function writeAll(node, { bits, method, encoders, switched }) {
  asOneChange(() => {
    write(node, "method", method);
    write(node, "bits", bits);
    if (encoders !== undefined) write(node, "text_encoder_bits", encoders);
    if (switched) node.properties[SWITCHED] = true;
    else delete node.properties[SWITCHED];
  });
}

/** Why the slider does nothing: the bits come from elsewhere. */
function lockedBy(node) {
  if (isLinked(node, "bits")) return "The bits come by link.";
  if (isLinked(node, "plan_file")) return "A linked plan decides the bits; it is not known before it has run.";
  return chosen(widgetOf(node, "plan")?.value) ? "The plan decides the bits." : "";
}

const chosen = (name) => (name && name !== "(none)" ? name : undefined);

function queryOf(node, value) {
  const here = node.comfyClass === QUANTIZE || node.type === QUANTIZE;
  const checkpoint = here ? value("checkpoint") : checkpointBefore(node);
  if (!checkpoint) return here ? "Choose a checkpoint." : "Connect a checkpoint loader to see what this costs.";
  const query = { checkpoint };
  for (const name of ["bits", "method", "text_encoder_bits"]) query[name] = value(name);
  for (const name of ["calibration", "plan"]) if (chosen(value(name))) query[name] = value(name);
  const part = (name, input) => (isLinked(node, input) ? [name] : []);
  if (!here) query.parts = ["unet", ...part("te", "clip"), ...part("vae", "vae")].join(",");
  return query;
}

/** The file name in the loader that a node's MODEL comes from, through LoRA and other patches. */
function checkpointBefore(node) {
  const seen = new Set();
  for (let at = originOf(node, "model"); at && !seen.has(at); at = originOf(at, "model")) {
    seen.add(at);
    const file = ["ckpt_name", "unet_name"].map((name) => widgetOf(at, name)?.value).find(Boolean);
    if (file) return file;
  }
  return undefined;
}
