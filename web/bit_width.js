// The bit-width panel: presets, a slider and what they cost. It writes through `target` and owns no value itself.
import { button, keepKeys, make, unique } from "./elements.js";
import { PRESETS, bytes, choose, duration, nearest, percent, stops } from "./rates.js";
import * as server from "./server.js";

const WAIT = 150; // ms of rest before the server is asked
const MEASURE = 1000; // ms of rest before coding speed is measured or layers are sampled, which takes seconds
const ROWS = [["size", "File size"], ["memory", "Memory"], ["error", "Weight error"], ["time", "Time"],
  ["pictures", "Pictures"]];

/**
 * @param target {
 *   read() -> {bits, method, encoders, switched, locked}   locked: a sentence why bits do nothing here, or ""
 *   write({bits, method, encoders, switched})              encoders undefined: leave as they are
 *   query() -> what /vqpack/estimate is asked, or a sentence why nothing can be said
 * }
 * @returns {element, refresh, close}
 */
export function bitWidth(target) {
  const cells = Object.fromEntries(ROWS.map(([key]) => [key, make("dd", { class: `vq-of-${key}` })]));
  const label = unique("bits");
  const shown = make("output", { class: "vq-rate" });
  const slider = make("input", { type: "range", min: 0, step: 1, "aria-labelledby": label });
  const said = make("p", { class: "vq-said", role: "status", "aria-live": "polite" });
  const presets = PRESETS.map((preset) =>
    button(preset.name, () => target.write({ ...preset, method: "trellis", switched: false }), {
      title: `${preset.bits} bits, text encoders ${preset.encoders}: ${preset.what}`,
    }));
  const element = make("div", { class: "vqpack vq-bits", role: "group", "aria-label": "Bit width" },
    make("div", { class: "vq-presets", role: "group", "aria-label": "Presets" }, ...presets),
    make("div", { class: "vq-slider" }, make("span", { id: label }, "Bits per UNet weight"), shown, slider),
    make("dl", {}, ...ROWS.flatMap(([key, name]) => [make("dt", {}, name), cells[key]])), said);
  keepKeys(element);

  let asked = 0, waiting, measuring, list = [], closed = false;
  slider.addEventListener("input", () => {
    const now = target.read();
    target.write(choose(list[Number(slider.value)], now.method, now.switched));
  });

  function refresh() {
    if (closed) return;
    const now = target.read();
    list = stops(now.method, now.switched);
    slider.max = list.length - 1;
    slider.value = nearest(list, now.bits);
    slider.disabled = Boolean(now.locked);
    slider.setAttribute("aria-valuetext", `${now.bits} bits`);
    shown.textContent = String(now.bits);
    presets.forEach((one, index) => {
      const { bits, encoders } = PRESETS[index];
      const chosen = now.bits === bits && now.encoders === encoders && now.method === "trellis";
      one.disabled = Boolean(now.locked);
      one.setAttribute("aria-pressed", String(chosen));
    });
    clearTimeout(waiting);
    clearTimeout(measuring);
    waiting = setTimeout(ask, WAIT);
  }

  async function ask() {
    const turn = (asked += 1), query = target.query();
    if (typeof query === "string") return blank(query);
    try {
      const found = await server.estimate(query);
      if (turn !== asked || closed) return;
      show(found);
      const missing = found.seconds === null ? measure : found.to_sample ? sample : null;
      if (missing) measuring = setTimeout(() => missing(query, turn), MEASURE);
    } catch (error) {
      if (turn === asked && !closed) blank(error.message);
    }
  }

  async function measure(query, turn) {
    cells.time.textContent = "measuring this machine …";
    const found = await server.speed(query).catch(() => ({ busy: true }));
    if (turn !== asked || closed) return;
    if (found.busy || !found.weights_per_second) cells.time.textContent = "not measured: the queue is busy";
    else ask();
  }

  async function sample(query, turn) {
    const found = await server.sample(query).catch((error) => error);
    if (turn !== asked || closed || found.busy) return;
    if (found instanceof Error) said.textContent = found.message;
    else ask();
  }

  function show(found) {
    const { locked } = target.read();
    cells.size.textContent = `${bytes(found.file_bytes)} of ${bytes(found.source_bytes)}`;
    cells.size.title = `at most ${found.file_bytes} bytes; ${found.unet_bits.toFixed(2)} stored bits per UNet weight`;
    cells.memory.textContent = `${bytes(found.memory.peak)} sampling at 1024 px`;
    cells.memory.title = "by formula: the UNet as stored, its largest weight decoded, activations; fp16";
    cells.error.textContent = errorText(found);
    cells.error.title = errorTitle(found);
    cells.time.textContent = found.seconds === null ? "not measured yet" : `${duration(found.seconds)} on this machine`;
    cells.pictures.textContent = found.compared
      ? `measured: ${(found.compared.lines[0] ?? "").trim().replace(/\s+/g, " ")}, ${found.compared.file}`
      : "not measured on this checkpoint";
    cells.pictures.title = found.compared ? [found.compared.file, ...found.compared.lines].join("\n") : "";
    said.textContent = locked;
  }

  function blank(sentence) {
    Object.values(cells).forEach((cell) => { cell.textContent = "–"; });
    said.textContent = sentence;
  }

  const gone = new AbortController();
  server.onSuccess(refresh, gone.signal); // a file was made, or Compare (VQ) drew with one
  refresh();
  const close = () => { closed = true; gone.abort(); clearTimeout(waiting); clearTimeout(measuring); };
  return { element, refresh, close };
}

function errorText(found) {
  const { measured, sampled } = found;
  const noise = sampled && sampled.snr !== null
    ? `, predicted SNR of the noise ${sampled.snr.toFixed(1)} dB` : "";
  const without = found.calibrated ? " without the calibration" : "";
  if (measured) return `${percent(measured.error)} in ${measured.file}${noise}${noise && without}`;
  if (sampled) return `${percent(sampled.error)} in a sample of its own layers${noise}${without}`;
  if (found.error === null) return "not known for this code";
  return `${percent(found.error)} expected${without}`;
}

function errorTitle({ sampled }) {
  const what = "squared error over squared norm, mean over the UNet's coded weights";
  if (!sampled) return what;
  const looked = `${what}; rows of ${sampled.layers} of ${sampled.of} layers say ${percent(sampled.error)} ` +
    `± ${percent(sampled.deviation)}`;
  if (!sampled.sensitivity) return looked;
  return `${looked}, ${percent(sampled.picture)} where layers count by what they do to the picture, ` +
    `SNR ± ${sampled.snr_deviation.toFixed(1)} dB, by ${sampled.sensitivity}`;
}
