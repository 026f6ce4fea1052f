// "Quantize (VQ)…": choose bits, press one button, watch, put the result into the graph.
import { bitWidth } from "./bit_width.js";
import { button, keepKeys, make, unique } from "./elements.js";
import { start as begin } from "./job.js";
import * as server from "./server.js";
import { toCorner, watching } from "./watch.js";

/** Open it; origin: the loader node it was called from, whose links the result may take. */
export async function openDialog(origin, checkpoint) {
  const names = await server.options(server.QUANTIZE, "checkpoint");
  let begun = ""; // once the job is in the queue: why nothing can be chosen any more
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
    read: () => ({ ...chosen, locked: begun }),
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

  async function run() {
    start.disabled = true;
    const inputs = { checkpoint: source.field.value, bits: chosen.bits, method: chosen.method,
      text_encoder_bits: chosen.encoders, name: name.field.value };
    let job, left = false;
    try {
      job = await begin(inputs);
    } catch (error) { // e.g. the checkpoint was deleted meanwhile: the choice can be changed
      work.replaceChildren(make("p", { class: "vq-refused", role: "alert" }, error.message));
      start.disabled = false;
      return;
    }
    begun = "The job was started with these.";
    for (const { field } of [source, encoders, name]) field.disabled = true;
    panel.refresh();
    start.hidden = true;
    const watch = watching(job, origin, () => { left = true; dialog.close(); });
    work.replaceChildren(watch);
    close.textContent = "Hide";
    if (dialog.open) dialog.addEventListener("close", () => left || toCorner(watch), { once: true });
    else toCorner(watch);
  }
}

function labelled(text, field) {
  const id = unique("field");
  field.id = id;
  return { field, element: make("div", { class: "vq-field" }, make("label", { for: id }, text), field) };
}
