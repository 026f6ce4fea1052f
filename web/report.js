// A VQ file's report: the server's one HTML file, shown in a frame that can reach nothing, and a link that saves it.
import { button, keepKeys, make, unique } from "./elements.js";
import { say } from "./graph.js";
import { reportUrl } from "./server.js";

/** Show it over the page. */
export function showReport(file) {
  const title = unique("title");
  const dialog = make("dialog", { class: "vqpack vq-dialog vq-report", "aria-labelledby": title },
    make("div", { class: "vq-buttons" }, make("h2", { id: title }, "Report"),
      make("a", { href: reportUrl(file, true), download: "", class: "vq-button" }, "Download"),
      button("Close", () => dialog.close(), { autofocus: true })),
    make("iframe", { src: reportUrl(file), sandbox: "allow-scripts", title: "Report of the VQ file" }));
  keepKeys(dialog);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

/**
 * A button in a node that opens a file's report; fileOf(node, what the node showed last) -> its name or "";
 * none: what is said then.
 */
export function addReportButton(node, fileOf, none = "There is no VQ file yet: run the node first.") {
  let shown;
  const executed = node.onExecuted;
  node.onExecuted = function (output, ...rest) {
    shown = output;
    return executed?.call(this, output, ...rest);
  };
  const widget = node.addWidget?.("button", "open report", null, () => {
    const file = fileOf(node, shown);
    if (file) showReport(file);
    else say(none);
  }, { serialize: false });
  if (widget) widget.serialize = false;
}
