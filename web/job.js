// Quantizations in the host's queue: started, followed, cancelled, and found again by a page that was closed meanwhile.
import * as server from "./server.js";

const NODE = "vqpack_quantize"; // id in a prompt of its own: no node of the graph has it (nodes/jobs.py)
const EVERY = 400; // ms between two questions
const KEY = "vqpack.jobs"; // of this browser's storage: [{id, checkpoint}], what has not been dismissed
const MOST = 20; // remembered
const ENDED = ["done", "stopped", "failed", "unknown"];

/** Put one into the queue -> {id, checkpoint}; inputs: of Quantize Checkpoint (VQ). */
export async function start(inputs) {
  const id = await server.queue({ [NODE]: { class_type: server.QUANTIZE, inputs } }, workflowOf(inputs));
  const job = { id, checkpoint: inputs.checkpoint };
  write([...remembered(), job].slice(-MOST));
  return job;
}

/** Jobs that this browser has started and nobody has dismissed, be they running or done. */
export function remembered() {
  try {
    const found = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return found.filter((job) => typeof job?.id === "string" && typeof job.checkpoint === "string");
  } catch {
    return []; // another program's, or no storage: nothing is remembered
  }
}

/** Let one go. */
export const forget = (id) => write(remembered().filter((job) => job.id !== id));

function write(jobs) {
  try {
    localStorage.setItem(KEY, JSON.stringify(jobs));
  } catch { /* no storage: a reloaded page does not find it again */ }
}

/**
 * Ask how a job stands until it has ended; tell({state, share, text, file, picture}): nodes/jobs.py, job.
 * -> {cancel}
 */
export function follow(id, tell) {
  let stopping = false, state = "waiting";
  async function ask() {
    let found;
    try {
      found = await server.job(id);
    } catch {
      found = { state, text: "the server does not answer" }; // it goes on by itself
    }
    if (found.state === "unknown" && stopping) found = { ...found, state: "stopped", text: "taken out of the queue" };
    if (found.state === "waiting") found.text ||= "waiting in the queue";
    if (stopping && found.state === "waiting") server.cancel(id, false).catch(() => {});
    if (stopping && found.state === "running" && state !== "running") server.cancel(id, true).catch(() => {});
    state = found.state;
    tell(found);
    if (!ENDED.includes(state)) setTimeout(ask, EVERY);
  }
  ask();
  return {
    cancel() {
      stopping = true;
      return server.cancel(id, state === "running");
    },
  };
}

/** What the queue's history opens for such a job: the one node. */
function workflowOf(inputs) {
  const order = ["checkpoint", "bits", "method", "text_encoder_bits", "name", "calibration", "plan"];
  const values = order.map((name) => inputs[name] ?? "(none)");
  const node = {
    id: 1, type: server.QUANTIZE, pos: [0, 0], size: [400, 560], flags: {}, order: 0, mode: 0, inputs: [],
    outputs: [{ name: "file_name", type: "STRING", links: [] }], properties: { "Node name for S&R": server.QUANTIZE },
    widgets_values: values,
  };
  return { version: 0.4, last_node_id: 1, last_link_id: 0, nodes: [node], links: [], groups: [], config: {},
    extra: {} };
}
