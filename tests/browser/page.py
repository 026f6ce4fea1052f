"""One browser page on a ComfyUI, driven by mouse and keyboard; JavaScript is only used to look. Needs playwright."""
from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from playwright.sync_api import TimeoutError, sync_playwright

READY = ("!!(window.app?.vueAppReady && window.app.graph && "
         "window.LiteGraph?.registered_node_types?.VQQuantizeCheckpoint)")
NODE = "id => app.graph.getNodeById(id) ?? app.graph.getNodeById(String(id))"
SIZE = {"width": 1280, "height": 860}
LOGO = (30, 66)                            # where the main menu opens
PATIENCE = 120_000                         # ms, for what the busy machine may take


class Page:
    """A browser with one page; `log` holds what the pack's scripts said wrong."""

    def __init__(self, playwright, url: str, vue: bool, shots: Path, chromium: str, settings: dict | None = None):
        """settings: of the host, in place of those of somebody who knows it."""
        self.url, self.shots, self.log, self.prefix = url, shots, [], "nodes2" if vue else "classic"
        self._browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        self._context = self._browser.new_context(viewport=SIZE, accept_downloads=True)
        self._context.request.post(f"{url}/api/settings", data={"Comfy.VueNodes.Enabled": vue, **(
            {"Comfy.TutorialCompleted": True, "Comfy.Workflow.Persist": False} if settings is None else settings)})
        self.window()

    def window(self) -> None:
        """A new window of the same browser, on the host's page."""
        self.page = self._context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("pageerror", lambda error: self.log.append(f"page error: {error}"))
        self.page.on("console", self._said)
        self.page.route("**/*", self._local)
        self.open()

    def open(self) -> None:
        """Load the page and wait until it can be used."""
        self.page.goto(self.url)
        self.page.wait_for_function(READY)
        self.rest(1500)

    def _said(self, message) -> None:
        where = message.location.get("url", "") if message.location else ""
        if message.type == "error" and ("vqpack" in message.text + where or "/vq-pack/" in where):
            self.log.append(f"console: {message.text} ({where})")

    def _local(self, route) -> None:
        local = route.request.url.startswith((self.url, "data:", "blob:"))
        route.continue_() if local else route.abort()

    def rest(self, milliseconds: int = 500) -> None:
        """Wait a moment, as a person would."""
        self.page.wait_for_timeout(milliseconds)

    def shot(self, name: str) -> None:
        """Keep a picture of the page."""
        self.page.screenshot(path=str(self.shots / f"{self.prefix}-{name}.png"))

    def open_workflow(self, path: Path) -> None:
        """Ctrl+O and the file; a page that has just been loaded may not listen yet."""
        for attempt in range(4):
            try:
                with self.page.expect_file_chooser(timeout=5000) as chooser:
                    self.page.keyboard.press("Control+o")
                break
            except TimeoutError:
                if attempt == 3:
                    raise
        chooser.value.set_files(str(path))
        self.rest(1500)

    def title_of(self, node: int) -> tuple[float, float]:
        """Where on the page a node's title is."""
        return tuple(self.page.evaluate(
            f"""id => {{ const node = ({NODE})(id), box = app.canvas.canvas.getBoundingClientRect();
                const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + 90, node.pos[1] - 14]);
                return [x + box.left, y + box.top]; }}""", node))

    def values(self, node: int) -> dict:
        """A node's widgets, by name."""
        return self.page.evaluate(f"id => Object.fromEntries(({NODE})(id).widgets.map(w => [w.name, w.value]))", node)

    def prompt(self) -> dict:
        """What "export (API)" would write."""
        return self.page.evaluate("app.graphToPrompt().then(found => found.output)")

    def nodes(self, kind: str) -> list:
        """Ids of the nodes of a kind."""
        return self.page.evaluate("kind => app.graph.nodes.filter(n => n.type === kind).map(n => n.id)", kind)

    def menu(self, node: int, item: str) -> None:
        """Right click on a node, then its menu's item."""
        self.page.mouse.click(*self.title_of(node), button="right")
        self.page.get_by_text(item, exact=True).first.click()

    def command(self) -> None:
        """The main menu, Extensions, "Quantize (VQ)…": two clicks."""
        self.page.mouse.click(*LOGO)
        item = self.page.get_by_text("Quantize (VQ)…", exact=True).last
        for _ in range(5):                 # a slow page may still show the submenu that the mouse has passed
            self.page.get_by_role("menuitem", name="Extensions").first.hover()
            try:
                item.wait_for(timeout=3000)
                break
            except TimeoutError:
                self.page.get_by_role("menuitem", name="File").first.hover()
        item.click()
        self.page.wait_for_selector(".vq-dialog[open]")

    def press(self, name: str) -> None:
        """A button by its name."""
        self.page.get_by_role("button", name=name, exact=True).last.click()

    def click_widget(self, node: int, name: str) -> None:
        """A node's button: an element in Nodes 2.0, drawn on the canvas in the classic renderer."""
        element = self.page.locator(f'[data-node-id="{node}"]').get_by_text(name, exact=True)
        if element.count():
            element.first.click()
            return
        self.page.mouse.click(*self.page.evaluate(
            f"""([id, name]) => {{ const node = ({NODE})(id), box = app.canvas.canvas.getBoundingClientRect();
                const widget = node.widgets.find(w => w.name === name);
                const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + node.size[0] / 2,
                                                                    node.pos[1] + widget.last_y + 10]);
                return [x + box.left, y + box.top]; }}""", [node, name]))

    def run(self) -> str:
        """The Run button -> how the prompt ended."""
        self.page.evaluate("""window.ended = ""; for (const name of ["execution_success", "execution_error",
            "execution_interrupted"]) app.api.addEventListener(name, () => { window.ended ||= name; }, {once: true})""")
        self.page.locator('[data-testid="queue-button"]').click()
        self.page.wait_for_function("window.ended")
        self.rest(1500)
        return self.page.evaluate("window.ended")

    def seconds_until(self, selector: str) -> float:
        """How long something took to appear."""
        started = time.monotonic()
        self.page.wait_for_selector(selector)
        return time.monotonic() - started

    def text(self, selector: str) -> str:
        """What an element says."""
        return self.page.locator(selector).last.inner_text()

    def close(self) -> None:
        self._browser.close()


def tell(visit, vue: bool, settings: dict | None = None) -> None:
    """What visit(page) -> dict found, and the page's log, as the line `FOUND {json}`; arguments as in person.py."""
    url, _, shots, chromium = sys.argv[1:5]
    with sync_playwright() as playwright:
        page = Page(playwright, url, vue, Path(shots), chromium, settings)
        try:
            found = visit(page)
        except Exception:
            page.shot("failed")
            raise
        finally:
            page.close()
    print("FOUND " + json.dumps({**found, "log": page.log}))
