"""A person's way through the interface, in both renderers: usage person.py URL BASE SHOTS CHROMIUM
SERVER_PID RENDERER; prints one line `FOUND {json}`. Not imported by pytest: it needs playwright.
"""
from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

from page import PATIENCE, Page, tell

URL, BASE, SERVER, RENDERER = sys.argv[1], Path(sys.argv[2]), *sys.argv[5:7]
HERE = Path(__file__).resolve().parent
FOLDER = BASE / "models" / "vq_checkpoints"
SLIDER = "input[type=range]"
LOADER, QUANTIZER, COMPARE = 1, 7, 5


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
    page.command()
    page.page.locator(".vq-dialog select").first.select_option("tiny.safetensors")
    page.page.locator(f".vq-dialog {SLIDER}").focus()
    page.page.keyboard.press("Home")                                                   # 1 bit: the slowest
    page.page.get_by_label("File name", exact=True).fill("never")
    page.press("Quantize")
    page.page.wait_for_function("document.querySelector('.vq-text')?.textContent.startsWith('coding')")
    page.press("Hide")
    page.rest(300)
    page.page.wait_for_selector("#vqpack-corner .vq-picture:not([hidden])")
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


def closed(page: Page) -> dict:
    """The window closed in the middle of a job: another one shows it, and what came of it."""
    page.command()
    page.page.get_by_label("Checkpoint", exact=True).select_option("tiny.safetensors")
    page.page.get_by_label("File name", exact=True).fill("closed")
    page.press("Quantize")
    page.page.wait_for_function("document.querySelector('.vq-text')?.textContent.startsWith('coding')")
    page.page.close()
    page.window()
    page.page.wait_for_selector("#vqpack-corner .vq-job[data-state=running] .vq-picture:not([hidden])")
    page.shot("found-again")
    page.page.close()
    end = time.monotonic() + PATIENCE / 1000
    while not (FOLDER / "closed.safetensors").exists() and time.monotonic() < end:
        time.sleep(0.5)                                 # nobody looks
    page.window()
    page.page.wait_for_selector("#vqpack-corner .vq-job[data-state=done]")
    found = {"text": page.text("#vqpack-corner .vq-text"),
             "toast": page.page.locator(".p-toast-detail").all_inner_texts()}
    page.shot("ready-after-closing")
    page.press("Dismiss")
    page.open()
    return {**found, "forgotten": page.page.locator("#vqpack-corner .vq-job").count() == 0}


def deleted(page: Page) -> dict:
    """The checkpoint is deleted between choosing and starting; then another is chosen."""
    gone = BASE / "models" / "checkpoints" / "gone.safetensors"
    os.link(gone.with_name("tiny.safetensors"), gone)
    page.open()
    page.command()
    page.page.get_by_label("Checkpoint", exact=True).select_option(gone.name)
    # Nothing is asked about it any more: a request for a file that is gone is an error in the browser's own log.
    page.page.wait_for_function("document.querySelector('.vq-dialog dl').textContent.includes('of its own layers')")
    gone.unlink()
    page.press("Quantize")
    page.page.wait_for_selector(".vq-refused")
    page.shot("deleted")
    found = {"said": page.text(".vq-refused")}
    page.page.get_by_label("Checkpoint", exact=True).select_option("tiny.safetensors")
    found["can_start"] = page.page.get_by_role("button", name="Quantize", exact=True).last.is_enabled()
    page.press("Close")
    return found


def filled(page: Page) -> dict:
    """A disk that fills up in the middle: a small file system in place of the folder, which another program fills."""
    if os.name != "posix" or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "vq", str(FOLDER)], check=False,
                                            capture_output=True).returncode:
        return {}
    try:
        page.command()
        page.page.get_by_label("Checkpoint", exact=True).select_option("tiny.safetensors")
        page.page.get_by_label("File name", exact=True).fill("full")
        page.press("Quantize")
        page.page.wait_for_function("document.querySelector('.vq-text')?.textContent.startsWith('coding')")
        with open(FOLDER / "filler", "wb") as filler, contextlib.suppress(OSError):
            while filler.write(b"x" * 65536):
                filler.flush()
        page.page.wait_for_selector(".vq-job[data-state=failed]")
        page.shot("disk-full")
        found = {"said": page.text(".vq-job .vq-text"), "left": sorted(path.name for path in FOLDER.iterdir())}
        page.press("OK")
        (FOLDER / "filler").unlink()
        page.command()
        page.page.get_by_label("Checkpoint", exact=True).select_option("tiny.safetensors")
        page.page.get_by_label("File name", exact=True).fill("full")
        page.press("Quantize")
        page.page.wait_for_selector(".vq-job[data-state=done]")
        page.press("Dismiss")
        return {**found, "then": sorted(path.name for path in FOLDER.iterdir())}
    finally:
        subprocess.run(["umount", str(FOLDER)], check=True)


def measured(page: Page) -> dict:
    """Compare (VQ) has run: the panel says so, and the report shows both pictures over each other."""
    page.open_workflow(HERE / "compare.json")
    page.page.locator(".vq-bits").first.wait_for()
    found = {"before": page.text(".vq-bits dl"), "end": page.run()}
    page.page.wait_for_function("document.querySelector('.vq-bits dl')?.textContent.includes('Latent PSNR')")
    found["after"] = page.text(".vq-bits dl")
    page.shot("measured")
    page.click_widget(COMPARE, "open report")
    report = page.page.frame_locator(".vq-report iframe")
    report.locator(".pictures button").last.click()
    report.locator("#view[open]").wait_for()
    page.page.keyboard.press("ArrowRight")
    page.shot("slider")
    found["shares"] = report.locator("#view input[type=range]").input_value()
    page.page.keyboard.press("Escape")
    page.press("Close")
    return found


def story(page: Page) -> dict:
    """All of it."""
    found = {"vue": page.page.evaluate("LiteGraph.vueNodesMode === true")}
    for step in (to_a_picture, cancelled, in_a_node, in_a_subgraph, reloaded, measured, closed, deleted, filled):
        found[step.__name__] = step(page)
    return found


if __name__ == "__main__":
    tell(story, RENDERER == "nodes2")
