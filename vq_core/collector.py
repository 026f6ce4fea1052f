"""Work of a moment during which Python's garbage collector rests.

Many small objects made at once set off its full round, which walks everything that torch and ComfyUI hold and takes
longer than an estimate does (benchmarks/estimate_latency.py). Counting references frees them without it.
"""
from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_inside, _was_on = 0, False                # threads in `resting`, and whether the collector ran before the first


@contextlib.contextmanager
def resting() -> Iterator[None]:
    """Nothing is collected until the last of all threads has left, then all goes on as before."""
    global _inside, _was_on
    with _lock:
        if not _inside:
            _was_on = gc.isenabled()
            gc.disable()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside and _was_on:
                gc.enable()
