"""What a node shows of itself while it works: a bar, a picture beside it, and text."""
from __future__ import annotations

import html
from collections.abc import Mapping

from . import host


class NodeProgress:
    """Progress of one node in the browser: a bar in thousandths, and one line of text where the host shows it."""

    STEPS = 1000
    latest: NodeProgress | None = None     # of the node that began last; one prompt runs at a time
    # Where each stage begins and ends on the one bar: its share of the time at 3 bits on a CPU, which is nearly all
    # coding (16 minutes for SDXL, of which reading and writing take half a minute each). Other stages have all of it.
    SPANS = {"reading the source": (0.0, 0.03), "reading the model": (0.0, 0.03), "coding": (0.03, 0.97),
             "saving": (0.03, 0.8), "writing the file": (0.97, 1.0)}

    def __init__(self, node_id: str | None, spans: Mapping[str, tuple[float, float]] | None = None):
        self._bar, self._node_id, self._shown = host.ProgressBar(self.STEPS), node_id, 0
        self._spans = self.SPANS if spans is None else spans
        self.prompt, self.text, self.picture = host.running_prompt(), "", None
        NodeProgress.latest = self

    @property
    def share(self) -> float:
        """Of the bar, 0 to 1."""
        return self._shown / self.STEPS

    def preview(self, picture) -> None:
        """Show a picture of `previewer` beside the bar."""
        self.picture = picture[1]
        self._bar.update_absolute(self._shown, self.STEPS, picture)

    def __call__(self, stage: str, done: float, total: float, detail: str, seconds_left: float | None) -> None:
        """The listener of vq_core.progress.Progress."""
        start, stop = self._spans.get(stage, (0.0, 1.0))
        share = start + (stop - start) * (done / total if total else 0.0)
        self._shown = max(self._shown, int(self.STEPS * share))      # never backwards
        self._bar.update_absolute(self._shown, self.STEPS)
        left = "" if seconds_left is None else f", {int(seconds_left) // 60}:{int(seconds_left) % 60:02d} left"
        self.say(f"{stage}{left}\n{detail}".strip())

    def say(self, text: str) -> None:
        """Show text in the node, which the browser takes for HTML; hosts without that service are left alone."""
        self.text, running = text, host.server()
        if running is not None and self._node_id is not None and hasattr(running, "send_progress_text"):
            running.send_progress_text(html.escape(text, quote=False), self._node_id)
