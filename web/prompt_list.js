// The prompt list's tools in Calibrate (VQ) and Tune (VQ): count, no repeats, a dropped file, built-in sets.
import { addElement } from "./dom_widget.js";
import { button, keepKeys, make } from "./elements.js";
import { asOneChange, widgetOf, write } from "./graph.js";
import { columnOf, linesOf, withoutRepeats } from "./prompts.js";
import * as server from "./server.js";

const MOST = 64 << 20; // bytes of a dropped file, as `vqpack calibrate --prompts` takes

/** Add them below a node's widget "prompts", which stays what is saved and sent. */
export function addPromptTools(node) {
  const prompts = widgetOf(node, "prompts");
  if (!prompts) return;
  const count = make("output", { class: "vq-count", "aria-live": "polite" });
  const file = make("input", { type: "file", accept: ".txt,.csv,.tsv", hidden: true, "aria-label": "Prompt file" });
  const sets = make("select", { "aria-label": "Add a built-in set" }, make("option", { value: "" }, "add a set …"));
  const said = make("span", { class: "vq-said", role: "status" });
  const element = make("div", { class: "vqpack vq-prompts", role: "group", "aria-label": "Prompt list" },
    make("div", { class: "vq-buttons" }, count, button("Open file", () => file.click()),
      button("Remove repeats", () => set(linesOf(prompts.value))), sets), said, file);
  keepKeys(element);

  const set = (lines) => asOneChange(() => write(node, "prompts", withoutRepeats(lines).join("\n")));
  const add = (lines) => set([...linesOf(prompts.value), ...lines]);
  async function read(given) {
    if (!given) return;
    if (given.size > MOST) { said.textContent = `${given.name} is too large: at most 64 MB.`; return; }
    const found = columnOf(await given.text(), given.name), before = withoutRepeats(linesOf(prompts.value)).length;
    if (found.error) { said.textContent = found.error; return; }
    add(found.prompts);
    said.textContent = `${given.name}: ${withoutRepeats(linesOf(prompts.value)).length - before} new prompts.`;
  }

  file.addEventListener("change", () => { read(file.files[0]); file.value = ""; });
  for (const event of ["dragover", "drop"]) element.addEventListener(event, (happened) => {
    happened.preventDefault();
    happened.stopPropagation(); // the host would take the file for a workflow
    if (event === "drop") read(happened.dataTransfer.files[0]);
  });
  let known = [];
  server.promptSets().then((found) => {
    known = found;
    sets.append(...found.map((one, index) => make("option", { value: index }, `${one.name} (${one.prompts.length})`)));
  }).catch(() => sets.remove());
  sets.addEventListener("change", () => {
    if (sets.value !== "") add(known[Number(sets.value)].prompts);
    sets.value = "";
  });

  const watch = () => {
    const lines = linesOf(prompts.value), repeats = lines.length - withoutRepeats(lines).length;
    const text = `${lines.length} prompt${lines.length === 1 ? "" : "s"}${repeats ? `, ${repeats} repeated` : ""}`;
    if (count.textContent !== text) count.textContent = text;
  };
  watch();
  addElement(node, {
    name: "vqpack_prompts", type: "VQPACK_PROMPTS", element, height: 76, width: 380, watch, close: () => {},
  });
}
