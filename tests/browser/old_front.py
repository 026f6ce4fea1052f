"""The pack on an older front end, or on one without a hook it would like: plain widgets do. Usage as person.py."""
from __future__ import annotations

import sys
from pathlib import Path

from page import Page, tell

BASE, NAME = sys.argv[2], sys.argv[6]
HERE = Path(__file__).resolve().parent
QUANTIZER = 7
# As if the front end could not put elements into nodes: the pack's extension is shown nodes without that hook.
TAKE_AWAY = """() => {
  const extension = app.extensions.find(one => one.name === "vqpack"), made = extension.nodeCreated;
  window.hooksTaken = 0;
  extension.nodeCreated = function (node, ...rest) {
    node.addDOMWidget = undefined;
    window.hooksTaken += 1;
    try { return made.call(this, node, ...rest); } finally { delete node.addDOMWidget; }
  };
}"""


def visit(page: Page) -> dict:
    """A saved workflow opened, sent and run."""
    if NAME == "no-dom-widgets":
        page.page.evaluate(TAKE_AWAY)
    page.open_workflow(HERE / "saved_before.json")
    page.rest(1500)
    found = {"values": page.values(QUANTIZER), "sent": page.prompt()[str(QUANTIZER)]["inputs"],
             "panels": page.page.locator(".vq-bits").count(),
             "taken": page.page.evaluate("window.hooksTaken ?? 0")}
    page.shot(f"old-{NAME}")
    done = page.page.evaluate("""async () => {
      const ended = new Promise(resolve => { for (const name of ["execution_success", "execution_error"])
        app.api.addEventListener(name, () => resolve(name), { once: true }); });
      await app.queuePrompt(0, 1);
      return ended; }""")
    page.rest(1000)
    page.shot(f"old-{NAME}-ran")
    return {**found, "end": done, "files": sorted(path.name for path in
                                                  (Path(BASE) / "models" / "vq_checkpoints").glob("*.safetensors"))}


if __name__ == "__main__":
    tell(visit, vue=False)
