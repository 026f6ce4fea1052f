// One quantization in the host's queue: started, followed, cancelled. Knows nothing of the page.
import * as server from "./server.js";

const NODE = "vqpack_quantize"; // id in a prompt of its own: no node of the graph has it

/**
 * follow(inputs, tell) -> {cancel}
 * inputs: of Quantize Checkpoint (VQ). tell({state, share, text, file}) at each change; state: "waiting", "running",
 * "done", "stopped" or "failed". The job goes on when the page is closed.
 */
export function follow(inputs, tell) {
  const listening = new AbortController(), { signal } = listening;
  const now = { state: "waiting", share: 0, text: "waiting in the queue", file: "" };
  let id = "", early = [], stopped = false;
  const change = (news) => tell(Object.assign(now, news));
  const end = (news) => { listening.abort(); change(news); };
  const mine = (detail) => detail.prompt_id === id;
  // Events may overtake the answer that names the prompt: they wait for it.
  const listen = (event, act) => server.on(event, (detail) => {
    const heed = () => mine(detail) && act(detail);
    if (id) heed();
    else early.push(heed);
  }, signal);

  listen("execution_start", () => {
    change({ state: "running", text: stopped ? "stopping" : "starting" });
    if (stopped) server.cancel(id, true); // it began while it was taken out of the queue
  });
  listen("progress", ({ value, max }) => change({ state: "running", share: max ? value / max : 0 }));
  listen("executed", ({ output }) => change({ file: output?.vq_file?.[0] ?? now.file }));
  listen("execution_success", () => end({ state: "done", share: 1, text: now.file }));
  listen("execution_interrupted", () => end({ state: "stopped", text: "stopped; nothing was left half-written" }));
  listen("execution_error", ({ exception_message: said }) =>
    end({ state: "failed", text: String(said ?? "it failed").trim() }));
  // Older servers do not say which prompt a text belongs to: the node's id does, and only one job runs.
  server.on("progress_text", ({ nodeId, text, prompt_id: owner }) => {
    if (String(nodeId) === NODE && now.state === "running" && (owner ?? id) === id) change({ text: plain(text) });
  }, signal);

  const prompt = { [NODE]: { class_type: server.QUANTIZE, inputs } };
  const started = server.queue(prompt, workflowOf(inputs)).then((found) => {
    id = found;
    early.splice(0).forEach((act) => act());
    if (stopped) server.cancel(id, now.state === "running");
  }).catch((error) => end({ state: "failed", text: error.message }));

  async function cancel() {
    stopped = true;
    if (!id) return started;
    if (now.state === "waiting") {
      await server.cancel(id, false);
      if (now.state === "waiting") change({ state: "stopped", text: "taken out of the queue" });
    } else await server.cancel(id, true);
  }
  return { cancel };
}

/** The node's text as the server sends it (escaped for HTML) -> text. */
const plain = (text) => new DOMParser().parseFromString(String(text), "text/html").body.textContent;

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
