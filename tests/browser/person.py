"""A person's way through the interface, in both renderers: usage person.py URL BASE SHOTS CHROMIUM
SERVER_PID RENDERER; prints one line `FOUND {json}`. Not imported by pytest: it needs playwright.
"""
from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from page import Page
from playwright.sync_api import sync_playwright

URL, BASE, SHOTS, CHROMIUM, SERVER, RENDERER = sys.argv[1], *map(Path, sys.argv[2:4]), *sys.argv[4:7]
HERE = Path(__file__).resolve().parent
FOLDER = BASE / "models" / "vq_checkpoints"
SLIDER = "input[type=range]"
LOGO = (30, 66)                            # where the main menu opens
LOADER, QUANTIZER = 1, 7


def to_a_picture(page: Page) -> dict:
    """From a workflow of the stock loader to a picture from a VQ file; every click and key group is counted."""
    page.open_workflow(HERE / "sample.json")
    page.menu(LOADER, "Quantize (VQ)…")                                                # 1, 2: right click, item
    page.page.wait_for_selector(".vq-dialog[open]")
    page.page.wait_for_function("document.querySelector('.vq-dialog dd').textContent.includes('MB')")
    found = {"first": page.text(".vq-dialog dl"), "focused": page.page.evaluate("document.activeElement.textContent")}
    page.shot("dialog")
    page.page.locator(f".vq-dialog {SLIDER}").focus()
    page.page.keyboard.press("End")                                                    # 3: 8 bits
    page.rest(900)
    found["at_8"] = page.text(".vq-dialog dl")
    found["said"] = page.page.locator(f".vq-dialog {SLIDER}").get_attribute("aria-valuetext")
    page.press("Quantize")                                                             # 4
    found["seconds"] = page.seconds_until(".vq-job[data-state=done]")
    found["bytes"] = sum(path.stat().st_size for path in FOLDER.glob("tiny*.safetensors"))
    page.shot("ready")
    page.press("Report")
    page.page.frame_locator(".vq-report iframe").locator("h2").first.wait_for()
    page.rest(800)
    page.shot("report")
    found["report"] = page.page.frame_locator(".vq-report iframe").locator("body").inner_text()[:3000]
    with page.page.expect_download() as download:
        page.page.get_by_text("Download", exact=True).click()
    found["download"] = [download.value.suggested_filename, download.value.path().stat().st_size]
    page.press("Close")
    page.press("Use it in the graph")                                                  # 5
    page.rest(800)
    found["loaders"] = page.nodes("VQCheckpointLoader")
    found["model_from"] = page.prompt()["4"]["inputs"]["model"]
    found["end"] = page.run()                                                          # 6
    found["pictures"] = page.page.evaluate("Object.values(app.nodeOutputs).flatMap(out => out.images ?? []).length")
    found["corner"] = page.page.locator("#vqpack-corner .vq-job").count()
    page.shot("sampled")
    return found


def server_seconds() -> float:
    """Processor time of the server: a stop takes effect that late whatever else the machine does; elsewhere a clock."""
    try:
        fields = Path(f"/proc/{SERVER}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cancelled(page: Page) -> dict:
    """From the main menu: start, hide, cancel in the corner."""
    page.page.keyboard.press("Escape")
    page.page.mouse.click(*LOGO)
    page.page.get_by_role("menuitem", name="Extensions").first.hover()
    page.rest(700)
    page.page.get_by_text("Quantize (VQ)…", exact=True).last.click()
    page.page.wait_for_selector(".vq-dialog[open]")
    page.page.locator(".vq-dialog select").first.select_option("tiny.safetensors")
    page.page.locator(f".vq-dialog {SLIDER}").focus()
    page.page.keyboard.press("Home")                                                   # 1 bit: the slowest
    page.page.get_by_label("File name").fill("never")
    page.press("Quantize")
    page.page.wait_for_function("document.querySelector('.vq-text')?.textContent.startsWith('coding')")
    page.press("Hide")
    page.rest(300)
    page.shot("corner")
    answered = page.page.request.get(f"{URL}/vqpack/estimate?checkpoint=tiny.safetensors").ok
    before = server_seconds()
    page.press("Cancel")
    page.seconds_until(".vq-job[data-state=stopped]")
    seconds = server_seconds() - before
    text = page.text("#vqpack-corner .vq-text")
    page.press("OK")
    left = sorted(path.name for path in FOLDER.glob("never*"))
    return {"seconds": seconds, "text": text, "answered": answered,
            "left": [name for name in left if not name.endswith(".spool")]}


def in_a_node(page: Page) -> dict:
    """The panel in the node: keyboard, undo, copy and paste, reload, and what is exported."""
    page.open_workflow(HERE / "saved_before.json")
    found = {"loaded": page.values(QUANTIZER), "prompt": page.prompt()[str(QUANTIZER)]["inputs"]}
    slider = page.page.locator(f".vq-bits {SLIDER}").first
    slider.wait_for()
    page.page.wait_for_function("document.querySelector('.vq-bits dd').textContent.includes('MB')")
    page.shot("node")
    slider.focus()
    page.page.keyboard.press("ArrowRight")
    found["right"] = page.values(QUANTIZER)["bits"]
    page.rest(700)
    page.page.locator(".vq-presets button", has_text="Tiny").first.click()
    found["tiny"] = [page.values(QUANTIZER)[name] for name in ("bits", "text_encoder_bits")]
    page.rest(700)
    page.page.mouse.click(*page.title_of(QUANTIZER))
    page.page.keyboard.press("Control+c")
    page.page.mouse.move(900, 500)
    page.page.keyboard.press("Control+v")
    page.rest(800)
    pasted = [node for node in page.nodes("VQQuantizeCheckpoint") if str(node) != str(QUANTIZER)]
    found["pasted"] = [page.values(pasted[0])[name] for name in ("bits", "text_encoder_bits")] if pasted else None
    found["panels"] = page.page.locator(".vq-bits").count()
    page.page.keyboard.press("Control+z")
    page.rest(900)
    page.page.keyboard.press("Control+z")
    page.rest(900)
    found["undone"] = page.values(QUANTIZER)["bits"]
    found["shown"] = page.text(".vq-rate")
    found["exported"] = sorted(page.prompt()[str(QUANTIZER)]["inputs"])
    return found


def in_a_subgraph(page: Page) -> dict:
    """The node put into a subgraph: what is sent stays the same."""
    page.open_workflow(HERE / "saved_before.json")
    before = page.prompt()[str(QUANTIZER)]["inputs"]
    page.page.mouse.click(*page.title_of(QUANTIZER))
    page.page.keyboard.press("Control+Shift+e")
    page.rest(1500)
    sent = page.prompt()
    return {"before": before, "after": [node["inputs"] for node in sent.values()], "ids": list(sent)}


def reloaded(page: Page) -> dict:
    """A workflow the page keeps by itself is there again after a reload, with the same values."""
    page.page.request.post(f"{URL}/api/settings", data={"Comfy.Workflow.Persist": True})
    page.open()
    page.open_workflow(HERE / "saved_before.json")
    page.page.locator(".vq-presets button", has_text="Faithful").first.click()
    page.rest(2500)
    before = page.values(QUANTIZER)
    page.open()
    page.rest(1500)
    after = page.values(QUANTIZER) if page.nodes("VQQuantizeCheckpoint") else None
    page.page.request.post(f"{URL}/api/settings", data={"Comfy.Workflow.Persist": False})
    return {"before": before, "after": after}


def story(playwright, vue: bool) -> dict:
    page = Page(playwright, URL, vue, SHOTS, CHROMIUM)
    try:
        found = {"vue": page.page.evaluate("LiteGraph.vueNodesMode === true")}
        for step in (to_a_picture, cancelled, in_a_node, in_a_subgraph, reloaded):
            found[step.__name__] = step(page)
        return {**found, "log": page.log}
    except Exception:
        page.shot("failed")
        raise
    finally:
        page.close()


def main() -> None:
    with sync_playwright() as playwright:
        print("FOUND " + json.dumps(story(playwright, RENDERER == "nodes2")))


if __name__ == "__main__":
    main()
