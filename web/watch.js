// A job on the page: bar, text, picture and buttons; in the dialog, else in the page's corner.
import { button, make } from "./elements.js";
import { addLoader, openWith, say } from "./graph.js";
import { follow, forget, remembered } from "./job.js";
import { showReport } from "./report.js";

/**
 * @param job {id, checkpoint}
 * @param origin the loader node it was started from, whose links the result may take; undefined: none
 * @param finished called when the last button was pressed
 * @returns its element
 */
export function watching(job, origin, finished) {
  const bar = make("progress", { max: 1, value: 0, "aria-label": "Progress" });
  const picture = make("img", { class: "vq-picture", alt: "Weight error of each layer coded so far", hidden: true });
  const text = make("pre", { class: "vq-text", role: "status", "aria-live": "polite" });
  const buttons = make("div", { class: "vq-buttons" });
  const element = make("div", { class: "vqpack vq-job" }, make("strong", {}, job.checkpoint), bar, picture, text,
    buttons);
  const leave = () => { forget(job.id); element.remove(); finished(); };
  const stop = button("Cancel", () => {
    stop.disabled = true;
    followed.cancel().catch((error) => { text.textContent = error.message; stop.disabled = false; });
  });
  buttons.append(stop);
  const followed = follow(job.id, ({ state, share, text: said, file, picture: drawn }) => {
    if (share !== undefined) bar.value = share;
    if (drawn) Object.assign(picture, { src: drawn, hidden: false });
    text.textContent = said;
    element.dataset.state = state;
    if (state === "waiting" || state === "running") return;
    if (state === "unknown") return leave(); // the server was started anew: nothing to say
    buttons.replaceChildren(...(state === "done" && file ? ready(file, origin, leave) : [button("OK", leave)]));
    if (element.closest("dialog")) buttons.firstElementChild.focus();
    else if (state === "done") say(`${file} is ready to load`, "success");
  });
  return element;
}

function ready(file, origin, leave) {
  const then = (act) => () => { act().catch((error) => say(error.message, "error")); leave(); };
  const main = { class: "vq-main" }, place = origin?.graph ? origin : undefined;
  const put = origin
    ? [button("Use it in the graph", then(() => addLoader(file, place)), main)]
    : [button("New workflow", then(() => openWith(file)), {
      ...main, title: "A template with this file: load, LoRA, sample" }),
    button("Add to this graph", then(() => addLoader(file)))];
  return [...put, button("Report", () => showReport(file)), button("Dismiss", leave)];
}

/** Show a job in the corner of the page. */
export function toCorner(element) {
  const place = document.getElementById("vqpack-corner") ?? make("div", { id: "vqpack-corner", class: "vqpack" });
  document.body.append(place);
  place.append(element);
}

/** Show what this browser started before the page was closed. */
export function resume() {
  for (const job of remembered()) toCorner(watching(job, undefined, () => {}));
}
