"""A progress line with time left, and small text helpers."""
from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from ..describe import size
from ..errors import PlanError
from ..progress import Progress

__all__ = ["ConsoleProgress", "duration", "output_file", "peak_rss_bytes", "progress", "size", "stopwatch",
           "write_json"]


class ConsoleProgress:
    """Listener of Progress: one line that rewrites itself on a terminal, one line per tenth elsewhere."""

    def __init__(self, stream=None):
        self.stream = stream or sys.stderr
        self._live, self._stage, self._tenth = self.stream.isatty(), "", -1

    def __call__(self, stage: str, done: float, total: float, detail: str, seconds_left: float | None) -> None:
        share = done / total if total else 1.0
        left = "" if seconds_left is None or share >= 1 else f", {duration(seconds_left)} left"
        text = f"{stage}: {share:4.0%}{left}"
        if self._live:
            end = "\n" if share >= 1 else ""
            self.stream.write(f"\r\x1b[K{text}  {detail[-70:]}{end}")
            self.stream.flush()
            return
        tenth = int(share * 10)
        if stage != self._stage or tenth != self._tenth:
            self._stage, self._tenth = stage, tenth
            self.stream.write(text + "\n")
            self.stream.flush()


def progress() -> Progress:
    """A Progress that draws on standard error."""
    return Progress(ConsoleProgress())


def duration(seconds: float) -> str:
    """4 s, 3 min 20 s, 1 h 5 min"""
    seconds = int(round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def write_json(path: str, data: dict) -> None:
    """Write a result file; the folder must exist."""
    Path(path).write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def output_file(path: str) -> Path:
    """Where a result goes; refused before any work where it cannot be written."""
    found = Path(path)
    if found.is_dir() or not found.absolute().parent.is_dir():
        what = "is a folder" if found.is_dir() else "lies in a folder that does not exist"
        raise PlanError(f"'{path}' {what}: give a file name in a folder that exists")
    return found


def peak_rss_bytes() -> int:
    """Largest resident size of this process so far; 0 where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def stopwatch():
    """-> a function giving the seconds since this call"""
    started = time.monotonic()
    return lambda: time.monotonic() - started
