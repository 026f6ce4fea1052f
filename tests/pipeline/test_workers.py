"""Layers coded side by side: nothing waits for a slow one, nothing is lost, errors stop the rest."""
from __future__ import annotations

import threading

import pytest
import torch
from vqpack.vq_core.errors import Interrupted
from vqpack.vq_core.progress import Progress
from vqpack.vq_core.workers import Stoppable, as_done


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_every_item_comes_back_once_with_its_result(workers, count):
    done = dict(as_done(lambda item: item * item, range(count), workers, Stoppable(Progress())))
    assert done == {item: item * item for item in range(count)}


def test_a_slow_item_holds_up_no_other():
    others_done = threading.Event()

    def work(item):
        assert item or others_done.wait(20), "the others wait for the slow item"
        return item

    seen = []
    for item, _ in as_done(work, range(9), 2, Stoppable(Progress())):
        seen.append(item)
        if len(seen) == 8:
            others_done.set()
    assert seen[-1] == 0 and sorted(seen) == list(range(9))


def test_an_error_stops_the_other_workers():
    stoppable, started, stopped = Stoppable(Progress()), threading.Event(), threading.Event()

    def work(item):
        if item == 0:
            started.wait(20)
            raise ValueError("layer 0")
        started.set()
        for _ in range(2000):
            try:
                stoppable.check()
            except Interrupted:
                stopped.set()
                raise
            threading.Event().wait(0.01)

    with pytest.raises(ValueError, match="layer 0"):
        list(as_done(work, range(2), 2, stoppable))
    assert stopped.is_set()


def test_each_worker_computes_alone_and_the_number_of_threads_comes_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert [n for _, n in as_done(lambda _: torch.get_num_threads(), range(4), 2, Stoppable(Progress()))] == [1] * 4
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
