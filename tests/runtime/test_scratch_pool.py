"""Lent memory: right weights, never one buffer for two, never where something keeps the tensor, given back."""
from __future__ import annotations

import threading

import pytest
import torch
from vqpack.vq_core import scratch_pool
from vqpack.vq_core.layers import VQConv2d, VQLinear
from vqpack.vq_core.scratch_pool import ScratchPool, decoded

CPU = torch.device("cpu")


@pytest.fixture
def pool(monkeypatch):
    fresh = ScratchPool()
    monkeypatch.setattr(scratch_pool, "POOL", fresh)
    monkeypatch.setattr(scratch_pool.decoded.__wrapped__, "__defaults__", (None, False, fresh))
    return fresh


SHAPES = [(70, 48), (33, 16, 1, 1), (40, 32, 3, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("through", [None, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_lent_weight_is_the_decoded_one(weights, pool, shape, through, channels_last):
    for weight in weights(shape):
        wanted = weight.decode(through or torch.float32).float()
        with torch.inference_mode(), decoded(weight, torch.float32, through, channels_last) as lent:
            assert torch.equal(lent, wanted) and lent.shape == wanted.shape
            if channels_last and len(shape) == 4:
                assert lent.is_contiguous(memory_format=torch.channels_last)
            else:
                assert lent.stride() == wanted.stride()    # torch's convolutions answer in their weight's format


def test_memory_is_used_again(weights, pool):
    first, *_, last = weights((70, 48))
    with torch.no_grad():
        with decoded(first, torch.float32) as lent:
            place = lent.data_ptr()
        with decoded(last, torch.float32) as lent:
            assert lent.data_ptr() == place
    assert pool.held_bytes() == 4 * first.numel
    pool.clear()
    assert pool.held_bytes() == 0


def test_what_is_lent_is_not_lent_again(pool):
    with pool.lend(100, torch.float32, CPU) as one, pool.lend(100, torch.float32, CPU) as two:
        one.fill_(1)
        two.fill_(2)
        assert one.eq(1).all() and two.eq(2).all()
    with pool.lend(9, torch.float32, CPU), pool.lend(1000, torch.float32, CPU), pool.lend(1001, torch.float32, CPU):
        pass
    assert pool.held_bytes() == 4000 + 4004                # two are kept, the largest


def test_two_threads_at_once_have_two(pool):
    places = {}

    def work(name):
        with pool.lend(100, torch.float32, CPU) as lent:
            places[name] = lent.data_ptr()
            met.wait(10)

    met = threading.Barrier(2)
    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert places["a"] != places["b"]


def test_one_larger_than_the_bound_is_not_kept():
    pool = ScratchPool(most_bytes=1000)
    with pool.lend(1000, torch.float32, CPU) as lent:
        assert lent.numel() == 1000
    assert pool.held_bytes() == 0


def test_a_buffer_made_in_inference_mode_serves_outside(pool):
    with torch.inference_mode(), pool.lend(10, torch.float32, CPU) as lent:
        lent.fill_(1)
    with torch.no_grad(), pool.lend(10, torch.float32, CPU) as lent:
        assert lent.fill_(2).eq(2).all()


def test_nothing_is_lent_where_autograd_keeps_the_weight(weights, pool):
    one, *_, other = weights((70, 48))
    first, second = VQLinear(one), VQLinear(other)
    x = torch.randn(5, 48, requires_grad=True)
    y = first(x)
    second(torch.randn(5, 48, requires_grad=True))         # would overwrite what backward needs
    y.sum().backward()
    assert pool.held_bytes() == 0
    alone = x.detach().clone().requires_grad_()
    torch.nn.functional.linear(alone, one.decode()).sum().backward()
    assert torch.equal(x.grad, alone.grad)


def test_nothing_is_lent_while_compiling(pool, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with torch.no_grad():
        assert not scratch_pool.may_lend()


def test_layers_give_the_same_as_dense_ones(weights, pool, poisoned_empty):
    with torch.inference_mode():
        for weight in weights((70, 48)):
            x = torch.randn(2, 3, 48)
            assert torch.equal(VQLinear(weight)(x), torch.nn.functional.linear(x, weight.decode()))
        for weight in weights((40, 32, 3, 3)):
            x = torch.randn(2, 32, 6, 5)
            plain = torch.nn.functional.conv2d(x, weight.decode(), padding=1)
            assert torch.equal(VQConv2d(weight, padding=1)(x), plain)
            last = VQConv2d(weight, padding=1)(x.to(memory_format=torch.channels_last))
            assert float((last - plain).norm() / plain.norm()) < 1e-5        # another order of sums
