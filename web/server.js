// Every call to the server goes through here: the pack's read-only routes, the queue, node definitions.
import { api } from "../../scripts/api.js";

export const QUANTIZE = "VQQuantizeCheckpoint";
const LONGEST = 240; // characters of a refusal: the host lists every file it knows
const PACK = new URL(".", import.meta.url).pathname.split("/").filter(Boolean).at(-1); // as its folder is called

async function get(path, query = {}) {
  const answer = await api.fetchApi(`${path}?${new URLSearchParams(query)}`, { cache: "no-store" });
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(found.error ?? `the server answered ${answer.status}`);
  return found;
}

/** What quantizing would give: nodes/routes.py, estimate. */
export const estimate = (query) => get("/vqpack/estimate", query);

/** Weights a second of this machine at a rate; takes a few seconds the first time. */
export const speed = (query) => get("/vqpack/speed", query);

/** How a job of ours stands: nodes/jobs.py, job. */
export const job = (id) => get("/vqpack/job", { id });

/** One of the pack's workflows, as the host offers it under templates. */
export const template = (name) => get(`/workflow_templates/${PACK}/${name}.json`);

/** Look at the checkpoint's own layers at a rate, so that estimates know them; a second or two the first time. */
export const sample = (query) => get("/vqpack/sample", query);

/** Built-in lists of prompts: [{name, prompts}]. */
export const promptSets = async () => (await get("/vqpack/prompts")).sets;

/** Where a VQ file's report stands. */
export const reportUrl = (file, download = false) =>
  api.apiURL(`/vqpack/report?${new URLSearchParams({ file, ...(download ? { download: "1" } : {}) })}`);

/** Options of a node's combo input, as the server has them now. */
export async function options(node, input) {
  const found = (await get(`/object_info/${node}`))[node]?.input ?? {};
  const spec = found.required?.[input] ?? found.optional?.[input] ?? [[]];
  return Array.isArray(spec[0]) ? spec[0] : spec[1]?.options ?? [];
}

/** Queue a prompt of its own -> its id; throws what the server says against it. The graph is not touched. */
export async function queue(prompt, workflow) {
  let answer;
  try {
    answer = await api.queuePrompt(0, { output: prompt, workflow });
  } catch (error) {
    answer = error.response ?? { error };
  }
  const refused = Object.values(answer?.node_errors ?? {})[0]?.errors?.[0] ?? answer?.error;
  if (answer?.prompt_id && !refused) return answer.prompt_id;
  const said = [refused?.message, refused?.details].filter(Boolean).join(": ");
  throw new Error(said ? shortened(said) : "the server refused the job");
}

const shortened = (text) => (text.length > LONGEST ? `${text.slice(0, LONGEST)}…` : text);

/** Take a prompt out of the queue, or stop it where it runs. */
export const cancel = (id, running) => (running ? api.interrupt(id) : api.deleteItem("queue", id));

/** act() whenever a run that this page has queued ended well, until the signal. */
export const onSuccess = (act, signal) => api.addEventListener("execution_success", () => act(), { signal });
