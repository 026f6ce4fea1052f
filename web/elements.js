// Making elements. Text is always text: nothing here takes HTML.

/** make("button", {class: "a", type: "button"}, "text", child, ...) */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== null));
  return element;
}

/** A button that does something. */
export function button(text, action, attributes = {}) {
  const element = make("button", { type: "button", ...attributes }, text);
  element.addEventListener("click", action);
  return element;
}

let count = 0;
/** An id no other element has. */
export const unique = (stem) => `vqpack-${stem}-${(count += 1)}`;

/** Keep keys typed into our elements from the graph's shortcuts (Delete, Ctrl+C, space, arrows). */
export function keepKeys(element) {
  element.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") event.stopPropagation();
  });
}

/** The pack's style sheet, once. */
export function loadStyle() {
  if (document.getElementById("vqpack-style")) return;
  const { href } = new URL("style.css", import.meta.url);
  document.head.append(make("link", { id: "vqpack-style", rel: "stylesheet", href }));
}
