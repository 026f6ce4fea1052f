// An element of ours in a node, in both renderers: never saved, never sent, gone with the node.

const WATCH = 500; // ms

/**
 * Put an element into a node below its widgets. watch(): called twice a second while the node lives, for the host has
 * no event for a value that a subgraph's widget, a link or an undo writes. close(): called when the node goes.
 */
export function addElement(node, { name, type, element, height, width, watch, close }) {
  if (typeof node.addDOMWidget !== "function") return; // an old front end: plain widgets do
  const widget = node.addDOMWidget(name, type, element, {
    serialize: false, hideOnZoom: false, getMinHeight: () => height, getMaxHeight: () => height,
    getValue: () => "", setValue: () => {},
  });
  widget.serialize = false; // the option keeps it out of the prompt, this out of the workflow
  element.dataset.vqWidget = name;
  const timer = setInterval(() => { mount(node, element); watch(); }, WATCH);
  const removed = node.onRemoved;
  node.onRemoved = function (...args) {
    clearInterval(timer);
    element.dataset.vqGone = "";
    close();
    return removed?.apply(this, args);
  };
  const [least, high] = node.computeSize();
  node.setSize([Math.max(node.size[0], least, width), Math.max(node.size[1], high)]);
}

/**
 * Nodes 2.0 (frontend 1.49, WidgetDOM) mounts a widget's element once for a node's id. After an undo that makes the
 * node again it still shows the element of the node that is gone: ours takes its place.
 */
function mount(node, element) {
  if (element.isConnected) return;
  const id = CSS.escape(String(node.id)), name = element.dataset.vqWidget;
  document.querySelector(`[data-node-id="${id}"] [data-vq-widget="${name}"][data-vq-gone]`)?.replaceWith(element);
}
