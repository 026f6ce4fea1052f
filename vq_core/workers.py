"""Layers coded side by side: one thread a core, each computing alone, results handed back as they come.

Two layers on one thread each finish sooner than two layers one after the other on two threads: nobody waits at the end
of every tensor operation. The results are the same.
"""
from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice

import torch

from .errors import Interrupted
from .progress import Progress

MOST_WORKERS = 8                           # each holds one layer in float32: 118 MB for SDXL's largest


class Stoppable:
    """What a worker sees of the progress: it may ask whether to stop; only the thread that collects counts."""

    def __init__(self, progress: Progress):
        self._progress, self.stopped = progress, threading.Event()

    def check(self) -> None:
        """Raise Interrupted if the user asked to stop or another layer failed."""
        if self.stopped.is_set():
            raise Interrupted("stopped; nothing was left half-written")
        self._progress.check()

    def advance(self, *_) -> None:
        """Ask whether to stop."""
        self.check()


def worker_count(device: str) -> int:
    """Threads that code on this device: torch's own number on the CPU, one on anything else."""
    return min(MOST_WORKERS, torch.get_num_threads()) if torch.device(device).type == "cpu" else 1


def as_done(work: Callable, items: Iterable, workers: int, stoppable: Stoppable) -> Iterator[tuple]:
    """Yield (item, work(item)) as they are done, in any order; at most one finished result waits for each worker.

    In the order of the items a layer of 29 M weights made the other thread wait: SDXL's shape kept 1.5 of 2 cores busy
    (CPU time over wall time), as they are done 1.8.
    An error of any item, or of the caller between two items, stops the others at their next check.
    """
    if workers < 2:
        yield from ((item, work(item)) for item in items)
        return
    threads, running, items = torch.get_num_threads(), {}, iter(items)
    pool = ThreadPoolExecutor(workers, "vqpack", initializer=torch.set_num_threads, initargs=(1,))
    try:
        while True:
            for item in islice(items, 2 * workers - len(running)):
                running[pool.submit(work, item)] = item
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            yield from ((running.pop(future), future.result()) for future in done)
    except BaseException:
        stoppable.stopped.set()
        raise
    finally:
        stoppable.stopped.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)     # the number is the process's own as well as each thread's
