// "Quantize (VQ)…": choose bits, press one button, watch, put the result into the graph.
import { bitWidth } from "./bit_width.js";
import { button, keepKeys, make, unique } from "./elements.js";
import { addLoader } from "./graph.js";
import { follow } from "./job.js";
import { showReport } from "./report.js";
import * as server from "./server.js";

/** Open it; origin: the loader node it was called from, whose links the result may take. */
export async function openDialog(origin, checkpoint) {
  const names = await server.options(server.QUANTIZE, "checkpoint");
  const chosen = { bits: 3, method: "trellis", encoders: "6", switched: false };
  const title = unique("title");
  const source = labelled("Checkpoint", make("select", {}, ...names.map((one) => make("option", { value: one }, one))));
  const encoders = labelled("Text encoder bits", make("select", {}, ...["8", "6", "4", "16"].map((bits) =>
    make("option", { value: bits }, bits === "16" ? "as they are" : bits))));
  const name = labelled("File name", make("input", {
    type: "text", placeholder: "the checkpoint's name and bits", spellcheck: "false",
  }));
  if (names.includes(checkpoint)) source.field.value = checkpoint;
  encoders.field.value = chosen.encoders;
  const panel = bitWidth({
    read: () => ({ ...chosen, locked: "" }),
    write: ({ bits, method, encoders: wanted, switched }) => {
      Object.assign(chosen, { bits, method, switched }, wanted === undefined ? {} : { encoders: wanted });
      encoders.field.value = chosen.encoders;
      panel.refresh();
    },
    query: () => source.field.value ? { checkpoint: source.field.value, bits: chosen.bits, method: chosen.method,
      text_encoder_bits: chosen.encoders } : "There is no checkpoint yet: put one into models/checkpoints.",
  });
  source.field.addEventListener("change", panel.refresh);
  encoders.field.addEventListener("change", () => { chosen.encoders = encoders.field.value; panel.refresh(); });

  const work = make("div", { class: "vq-work" });
  const start = button("Quantize", () => run(), { class: "vq-main" });
  const close = button("Close", () => dialog.close());
  const form = make("div", { class: "vq-form" }, source.element, panel.element, encoders.element, name.element);
  const dialog = make("dialog", { class: "vqpack vq-dialog", "aria-labelledby": title },
    make("h2", { id: title }, "Quantize (VQ)"), form, work, make("div", { class: "vq-buttons" }, close, start));
  keepKeys(dialog);
  dialog.addEventListener("close", () => { panel.close(); dialog.remove(); });
  document.body.append(dialog);
  dialog.showModal();
  (names.length ? start : close).focus();

  function run() {
    form.querySelectorAll("select, input, button").forEach((field) => { field.disabled = true; });
    start.hidden = true;
    const inputs = { checkpoint: source.field.value, bits: chosen.bits, method: chosen.method,
      text_encoder_bits: chosen.encoders, name: name.field.value };
    let left = false;
    const watch = watching(inputs, origin, () => { left = true; dialog.close(); });
    work.replaceChildren(watch);
    close.textContent = "Hide";
    dialog.addEventListener("close", () => left || corner(watch), { once: true });
    panel.close();
  }
}

/** The job's bar, text and buttons; in the dialog, and in the page's corner after it was hidden. */
function watching(inputs, origin, finished) {
  const bar = make("progress", { max: 1, value: 0, "aria-label": "Progress" });
  const text = make("pre", { class: "vq-text", role: "status", "aria-live": "polite" });
  const buttons = make("div", { class: "vq-buttons" });
  const element = make("div", { class: "vqpack vq-job" }, make("strong", {}, inputs.checkpoint), bar, text, buttons);
  const stop = button("Cancel", () => { stop.disabled = true; job.cancel(); });
  buttons.append(stop);
  const job = follow(inputs, ({ state, share, text: said, file }) => {
    bar.value = share;
    text.textContent = said;
    element.dataset.state = state;
    if (state === "waiting" || state === "running") return;
    const leave = () => { element.remove(); finished(); };
    buttons.replaceChildren(...(state === "done" && file ? ready(file, origin, leave) : [button("OK", leave)]));
    if (state === "done") text.textContent = `${file} is ready`;
    buttons.firstElementChild.focus();
  });
  return element;
}

function ready(file, origin, leave) {
  const put = button(origin ? "Use it in the graph" : "Add Load Checkpoint (VQ)", () => {
    addLoader(file, origin?.graph ? origin : undefined);
    leave();
  }, { class: "vq-main" });
  return [put, button("Report", () => showReport(file)), button("Dismiss", leave)];
}

function corner(element) {
  const place = document.getElementById("vqpack-corner") ?? make("div", { id: "vqpack-corner", class: "vqpack" });
  document.body.append(place);
  place.append(element);
}

function labelled(text, field) {
  const id = unique("field");
  field.id = id;
  return { field, element: make("div", { class: "vq-field" }, make("label", { for: id }, text), field) };
}
