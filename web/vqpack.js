// What the pack adds to the page, all through the host's supported hooks; where one is missing, plain widgets do.
import { app } from "../../scripts/app.js";
import { openDialog } from "./dialog.js";
import { loadStyle } from "./elements.js";
import { say, widgetOf } from "./graph.js";
import { addPanel } from "./node_panel.js";
import { addPromptTools } from "./prompt_list.js";
import { addReportButton } from "./report.js";
import { QUANTIZE } from "./server.js";
import { resume } from "./watch.js";

const LOADERS = { CheckpointLoaderSimple: "ckpt_name", CheckpointLoader: "ckpt_name", UNETLoader: "unet_name" };
const COMMAND = "vqpack.quantize";
const NOTHING = "(no VQ file found)";
const classOf = (node) => node?.comfyClass ?? node?.type;

const shownFile = (_, shown) => shown?.vq_file?.[0] ?? "";

const ADDITIONS = {
  [QUANTIZE]: (node) => { addPanel(node); addReportButton(node, shownFile); },
  VQQuantizeModel: (node) => { addPanel(node); addReportButton(node, shownFile); },
  VQCompare: (node) => addReportButton(node, shownFile, "Connect a VQ file as model B and run the node."),
  VQCalibrate: addPromptTools,
  VQTune: addPromptTools,
  VQReport: (node) => addReportButton(node, (_, shown) => shown?.vq_file?.[0] ?? fileIn(node)),
};

const quantize = (node, checkpoint) => openDialog(node, checkpoint).catch((error) => say(error.message, "error"));

function fileIn(node) {
  const file = widgetOf(node, "file")?.value;
  return file === NOTHING ? "" : file;
}

app.registerExtension({
  name: "vqpack",
  commands: [{ id: COMMAND, label: "Quantize (VQ)…", icon: "pi pi-box", function: () => quantize() }],
  menuCommands: [{ path: ["Extensions"], commands: [COMMAND] }],
  setup() {
    loadStyle();
    resume();
  },
  nodeCreated(node) {
    ADDITIONS[classOf(node)]?.(node);
  },
  getNodeMenuItems(node) {
    const widget = LOADERS[classOf(node)];
    if (!widget) return [];
    return [null, { content: "Quantize (VQ)…", callback: () => quantize(node, widgetOf(node, widget)?.value) }];
  },
});
