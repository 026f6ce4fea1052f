"""Draws the thumbnails of the example workflows from a running ComfyUI: usage thumbnails.py URL BASE [CHROMIUM].

BASE: the server's base folder; files that the workflows name are put there, with nothing in them but a header, so that
no widget complains. Needs playwright and Pillow. Writes example_workflows/*.jpg.
"""
from __future__ import annotations

import io
import json
import struct
import sys
from pathlib import Path

from page import Page
from PIL import Image
from playwright.sync_api import sync_playwright

EXAMPLES = Path(__file__).resolve().parents[2] / "example_workflows"
WIDGETS = {"VQCheckpointLoader": "vq_checkpoints", "VQPersonalize": "vq_checkpoints",
           "CheckpointLoaderSimple": "checkpoints", "VQQuantizeCheckpoint": "checkpoints", "LoraLoader": "loras",
           "ControlNetLoader": "controlnet"}
SIZE, QUALITY = (640, 360), 82
WINDOW = {"width": 3000, "height": 1700}              # so wide that the host draws text into nodes that are fitted in
EDGES = """() => {
  const at = (x, y) => app.canvas.ds.convertOffsetToCanvas([x, y]), box = app.canvas.canvas.getBoundingClientRect();
  const all = app.graph.nodes.flatMap(n => [at(n.pos[0] - 20, n.pos[1] - 50),
                                            at(n.pos[0] + n.size[0] + 20, n.pos[1] + n.size[1] + 20)]);
  const [x, y] = [0, 1].map(i => all.map(point => point[i]));
  return [Math.min(...x) + box.left, Math.min(...y) + box.top, Math.max(...x) + box.left, Math.max(...y) + box.top]
    .map(value => Math.max(0, Math.round(value)));
}"""


def prepare(base: Path) -> None:
    """Every file a workflow names, where ComfyUI looks for it."""
    header = json.dumps({"__metadata__": {"vqpack.version": "1"}}).encode()
    for path in EXAMPLES.glob("*.json"):
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            if node["type"] in WIDGETS and not node["widgets_values"][0].startswith("("):
                file = base / "models" / WIDGETS[node["type"]] / node["widgets_values"][0]
                file.parent.mkdir(parents=True, exist_ok=True)
                plain = header if file.parent.name == "vq_checkpoints" else b"{}"
                if not file.exists():
                    file.write_bytes(struct.pack("<Q", len(plain)) + plain)
    Image.new("RGB", SIZE, (110, 140, 170)).save(base / "input" / "example.png")


def draw(page: Page, path: Path) -> None:
    """One workflow, fitted into the page, cut to its nodes."""
    page.open_workflow(path)
    page.page.mouse.click(WINDOW["width"] // 2, WINDOW["height"] - 40)
    page.page.keyboard.press(".")                      # fit the view
    page.rest(2500)
    shot = Image.open(io.BytesIO(page.page.screenshot())).convert("RGB")
    box = shot.crop(page.page.evaluate(EDGES))
    scale = min(SIZE[0] / box.width, SIZE[1] / box.height)
    box = box.resize((round(box.width * scale), round(box.height * scale)), Image.LANCZOS)
    out = Image.new("RGB", SIZE, shot.getpixel((WINDOW["width"] // 2, WINDOW["height"] - 40)))
    out.paste(box, ((SIZE[0] - box.width) // 2, (SIZE[1] - box.height) // 2))
    out.save(path.with_suffix(".jpg"), quality=QUALITY, optimize=True)


def main() -> None:
    url, base = sys.argv[1], Path(sys.argv[2])
    prepare(base)
    with sync_playwright() as playwright:
        page = Page(playwright, url, False, Path("."), *(sys.argv[3:] or ["/usr/bin/chromium"]))
        page.page.request.post(f"{url}/api/settings", data={"Comfy.Minimap.Visible": False})
        page.page.set_viewport_size(WINDOW)
        page.open()
        for path in sorted(EXAMPLES.glob("*.json")):
            draw(page, path)
        page.close()


if __name__ == "__main__":
    main()
