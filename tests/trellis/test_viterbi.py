"""Trellis encoders: every backend against the reference, the reference against enumeration of all code sequences."""
import itertools

import numpy as np
import pytest
import torch
from vqpack.kernels import viterbi, viterbi_reference

SHAPES = [(1, 1), (2, 1), (3, 1), (4, 1), (3, 2), (5, 2), (7, 2)]     # (bits, weights) of a step
BACKENDS = ["torch", pytest.param("numba", marks=pytest.mark.skipif(
    viterbi.report("cpu")["numba"] is not None, reason="numba is not installed"))]


def problem(window, vector, sequences, steps, seed=0):
    """Random table and targets in eighths of a table step, some far outside the table."""
    g = torch.Generator().manual_seed(seed)
    table = (torch.randn(1 << window, vector, generator=g) * 40).round().clamp(-128, 127).to(torch.int8)
    spread = torch.where(torch.rand(sequences, steps, vector, generator=g) < 0.05, 20.0, 1.0)
    x = torch.randn(sequences, steps, vector, generator=g) * 40 * spread
    return table, viterbi.fixed_point(x)


def total_cost(targets, values, mask):
    """Sum of squared distances in eighths of a step, over the weights that count."""
    x = targets.clip(-viterbi.TARGET_LIMIT, viterbi.TARGET_LIMIT).astype(np.int64)
    return int((((8 * values.astype(np.int64) - x) ** 2) * mask).sum())


@pytest.mark.parametrize("step_bits, vector, steps", [(1, 1, 9), (2, 1, 6), (3, 1, 4), (1, 2, 8), (2, 2, 5)])
def test_no_code_sequence_is_cheaper_than_the_references(step_bits, vector, steps):
    for seed in range(4):
        table, targets = problem(3, vector, 1, steps, seed)
        mask = np.random.default_rng(seed).random((steps, vector)) < 0.8
        x, entries = targets[0].numpy(), table.numpy()
        every = [total_cost(x, viterbi_reference.replay(codes, entries, step_bits), mask)
                 for codes in itertools.product(range(1 << step_bits), repeat=steps)]
        chosen = viterbi_reference.viterbi(x, entries, step_bits, mask)
        assert total_cost(x, viterbi_reference.replay(chosen, entries, step_bits), mask) == min(every)


def test_ties_go_to_the_lowest_state_and_predecessor():
    table = torch.zeros(16, 1, dtype=torch.int8)
    for backend in ("reference", *[getattr(b, "values", [b])[0] for b in BACKENDS]):
        if viterbi.report("cpu")[backend] is None:
            assert not viterbi.encode(torch.zeros(2, 7, 1, dtype=torch.int32), table, 2, backend=backend).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("step_bits, vector", SHAPES)
@pytest.mark.parametrize("window", [8, 12])
def test_backend_gives_the_references_codes(backend, window, step_bits, vector):
    table, targets = problem(window, vector, sequences=3, steps=37, seed=window)
    mask = torch.rand(37, vector, generator=torch.Generator().manual_seed(1)) < 0.85
    for weights_mask in (None, mask, mask[:, 0]):
        expected = viterbi.encode(targets, table, step_bits, weights_mask, backend="reference")
        assert torch.equal(viterbi.encode(targets, table, step_bits, weights_mask, backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window, step_bits, vector", [(16, 7, 2), (12, 1, 1), (2, 1, 1), (3, 3, 1)])
def test_largest_costs_do_not_overflow(backend, window, step_bits, vector):
    table = torch.full((1 << window, vector), -128, dtype=torch.int8)
    table[1::2] = 127
    signs = 1 - 2 * torch.randint(0, 2, (2, 53, vector), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    targets = signs * 100000
    expected = viterbi.encode(targets, table, step_bits, backend="reference")
    assert torch.equal(viterbi.encode(targets, table, step_bits, backend=backend), expected)
    decoded = viterbi.replay(expected, table, step_bits)
    assert torch.equal(decoded > 0, (signs > 0).expand_as(decoded)) or vector == 2


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@pytest.mark.parametrize("step_bits, vector", SHAPES)
def test_representable_data_is_coded_without_error(backend, step_bits, vector):
    table, _ = problem(8, vector, 1, 1)
    codes = torch.randint(0, 1 << step_bits, (3, 41), generator=torch.Generator().manual_seed(2))
    values = viterbi.replay(codes, table, step_bits)
    found = viterbi.encode(values.int() * viterbi.FRACTION, table, step_bits, backend=backend)
    assert torch.equal(viterbi.replay(found, table, step_bits), values)


def test_replay_is_the_references():
    table, _ = problem(7, 2, 1, 1)
    codes = torch.randint(0, 8, (2, 33), generator=torch.Generator().manual_seed(3))
    for row, values in zip(codes, viterbi.replay(codes, table, 3), strict=True):
        assert np.array_equal(viterbi_reference.replay(row.numpy(), table.numpy(), 3), values.numpy())


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_steps_cost_nothing(backend):
    table, targets = problem(8, 1, 2, 40)
    mask = torch.ones(40, dtype=torch.bool)
    mask[11:20] = False
    other = targets.clone()
    other[:, ~mask] = 777
    for weights_mask, same in ((mask, True), (None, False)):
        codes = [viterbi.encode(x, table, 3, weights_mask, backend) for x in (targets, other)]
        assert torch.equal(*codes) == same


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_is_coded_alike_alone_in_a_batch_and_with_threads(backend):
    table, targets = problem(8, 1, 7, 65)
    together = viterbi.encode(targets, table, 3, backend=backend)
    alone = torch.cat([viterbi.encode(row[None], table, 3, backend=backend) for row in targets])
    assert torch.equal(together, alone)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        assert torch.equal(viterbi.encode(targets, table, 3, backend=backend), together)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window, step_bits, vector", [(8, 3, 1), (12, 2, 1), (8, 5, 2), (5, 1, 1)])
def test_a_sequence_cut_in_two_goes_on_from_its_state(backend, window, step_bits, vector):
    table, targets = problem(window, vector, 3, 41)
    starts = torch.tensor([0, 1, (1 << window) - 1])
    codes = viterbi.encode(targets, table, step_bits, backend=backend, states=starts)
    wanted = torch.stack([torch.from_numpy(viterbi_reference.viterbi(x.numpy(), table.numpy(), step_bits, None, int(s)))
                          for x, s in zip(targets, starts, strict=True)])
    assert torch.equal(codes.long(), wanted)
    values = viterbi.replay(codes, table, step_bits, starts)
    for row, start, found in zip(codes, starts, values, strict=True):
        wanted = viterbi_reference.replay(row.numpy(), table.numpy(), step_bits, int(start))
        assert np.array_equal(wanted, found.numpy())
    states = viterbi.windows(codes[:, :7], 1 << window, step_bits, starts)[:, -1]
    again = viterbi.encode(targets[:, 7:], table, step_bits, backend=backend, states=states)   # the best path goes on
    assert torch.equal(viterbi.replay(again, table, step_bits, states), values[:, 7:])
    assert not torch.equal(viterbi.encode(targets[1:], table, step_bits, backend=backend), codes[1:])


def test_refusals_say_why():
    table, targets = problem(8, 1, 1, 5)
    with pytest.raises(ValueError, match="unknown trellis encoder 'fpga'"):
        viterbi.encode(targets, table, 3, backend="fpga")
    with pytest.raises(ValueError, match="'triton' cannot run on cpu"):
        viterbi.encode(targets, table, 3, backend="triton")
    with pytest.raises(ValueError, match="integer targets"):
        viterbi.encode(targets.float(), table, 3)
    with pytest.raises(ValueError, match="integer targets"):
        viterbi.encode(targets, table.expand(-1, 2), 3)
    with pytest.raises(ValueError, match="bits a step"):
        viterbi.encode(targets, table, 8)
    with pytest.raises(ValueError, match="int8 table"):
        viterbi.encode(targets, table[:200], 3)
    with pytest.raises(ValueError, match="mask"):
        viterbi.encode(targets, table, 3, torch.ones(4))
    with pytest.raises(ValueError, match="start state from 0 to 255"):
        viterbi.encode(targets, table, 3, states=torch.tensor([256]))
