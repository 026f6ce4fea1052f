"""Somebody's first visit: an empty ComfyUI with one checkpoint and one LoRA, to a picture from a small file with the
LoRA. Usage as person.py. Every click is counted, and a key that stands for one.
"""
from __future__ import annotations

import sys

from page import Page, tell

RENDERER = sys.argv[6]
SMALL = {"EmptyLatentImage": [128, 128], "KSampler": [None, None, 2]}      # so that a CPU draws in seconds
SET = """small => { for (const node of app.graph.nodes) (small[node.type] ?? []).forEach((value, place) => {
  if (value !== null) node.widgets[place].value = value; }); }"""


class Visitor:
    """Counts what is done."""

    def __init__(self, page: Page):
        self.page, self.done = page, []

    def click(self, name: str, locator) -> None:
        """One interaction."""
        locator.click()
        self.done.append(name)


def visit(page: Page) -> dict:
    visitor = Visitor(page)
    page.rest(1500)
    page.shot("first-1-empty")
    if page.page.get_by_role("dialog").count():   # the host greets newcomers with its templates
        page.page.keyboard.press("Escape")
        visitor.done.append("close the greeting")
        page.rest(800)
    page.command()
    visitor.done += ["main menu", "Quantize (VQ)…"]
    page.page.wait_for_function("document.querySelector('.vq-dialog dd').textContent.includes('MB')")
    page.page.wait_for_function("document.querySelector('.vq-dialog dl').textContent.includes('of its own layers')")
    page.shot("first-2-dialog")
    visitor.click("Quantize", page.page.get_by_role("button", name="Quantize", exact=True).last)
    page.page.wait_for_selector(".vq-job .vq-picture:not([hidden])")
    page.shot("first-3-coding")
    page.page.wait_for_selector(".vq-job[data-state=done]")
    page.shot("first-4-ready")
    visitor.click("New workflow", page.page.get_by_role("button", name="New workflow", exact=True))
    page.page.wait_for_function("app.graph.nodes.some(node => node.type === 'VQCheckpointLoader')")
    page.rest(1500)
    page.page.evaluate(SET, SMALL)
    page.shot("first-5-workflow")
    end = page.run()
    visitor.done.append("Run")
    page.rest(1500)
    page.shot("first-6-picture")
    sent = [node for node in page.prompt().values()]
    return {"interactions": visitor.done, "end": end,
            "pictures": page.page.evaluate("Object.values(app.nodeOutputs).flatMap(out => out.images ?? []).length"),
            "loras": [node["inputs"]["lora_name"] for node in sent if node["class_type"] == "LoraLoader"],
            "files": [node["inputs"]["file"] for node in sent if node["class_type"] == "VQCheckpointLoader"],
            "tabs": page.page.locator(".workflow-tab, [data-testid=workflow-tab]").all_inner_texts()}


if __name__ == "__main__":
    tell(visit, RENDERER == "nodes2", settings={})
