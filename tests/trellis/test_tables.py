"""The tables that come with the package: complete, well formed, found by id, as good as their index says."""
import json
import zlib
from pathlib import Path

import pytest
import torch
from vqpack.kernels import viterbi
from vqpack.vq_core import tables
from vqpack.vq_core.errors import FormatError, PlanError
from vqpack.vq_core.table_record import parse_table

SHAPES = [(1, 1), (2, 1), (3, 1), (4, 1), (3, 2), (5, 2), (7, 2)]
ALL = [(window, *shape) for window in (8, 12) for shape in SHAPES]


@pytest.mark.parametrize("window, step_bits, vector", ALL)
def test_table_is_stored_whole_and_found_by_its_id(window, step_bits, vector):
    table, step = tables.get_table(window, step_bits, vector)
    assert table.dtype == torch.int8 and tuple(table.shape) == (1 << window, vector)
    assert 0.02 < step < 0.05
    packed = tables.table_bytes(table)
    record = parse_table(packed, "test")
    assert (record.window, record.step_bits, record.vector) == (window, step_bits, vector)
    assert torch.equal(record.values, table)
    identity = tables.table_id(table)
    assert identity == zlib.crc32(packed.numpy().tobytes()) == tables.table_id(table, step_bits)
    assert torch.equal(tables.table_by_id(identity), table)


def test_ids_differ():
    assert len({tables.table_id(tables.get_table(*shape)[0]) for shape in ALL}) == len(ALL)


def test_tables_nobody_has():
    assert tables.table_by_id(12345) is None
    with pytest.raises(PlanError, match="window 10"):
        tables.get_table(10, 3, 1)
    with pytest.raises(PlanError, match="step_bits"):
        tables.table_bytes(torch.zeros(256, 1, dtype=torch.int8))


def test_damaged_table_is_refused():
    packed = tables.table_bytes(tables.get_table(8, 3, 1)[0])
    for offset, value in ((0, 1), (8, 9), (10, 40), (12, 3), (13, 7), (20, 1)):
        bad = packed.clone()
        bad[offset] = value
        with pytest.raises(FormatError, match="some-key"):
            parse_table(bad, "some-key")
    with pytest.raises(FormatError, match="some-key"):
        parse_table(packed[:-1], "some-key")


@pytest.mark.parametrize("window, step_bits, vector", [(8, *shape) for shape in SHAPES] + [(12, 3, 1), (12, 4, 1)])
def test_gaussian_error_is_what_the_index_says(window, step_bits, vector):
    if viterbi.report("cpu")["numba"] is not None and window > 8:
        pytest.skip("numba is not installed: window 12 would take a minute")
    table, step = tables.get_table(window, step_bits, vector)
    x = torch.randn(48, 1024, vector, generator=torch.Generator().manual_seed(0))      # [sequences, steps, vector]
    codes = viterbi.encode(viterbi.fixed_point(x / step), table, step_bits)
    error = (viterbi.replay(codes, table, step_bits) * step - x).square().mean() / x.square().mean()
    index = json.loads((Path(tables.__file__).parent / "index.json").read_text())
    stated = index[f"trellis_L{window}_B{step_bits}_V{vector}"]["ratio"]
    # 1024 steps begin in state 0, which costs as much as 10 steps: 1 %; the sample's own spread: 1 %
    assert float(error) * 4 ** (step_bits / vector) < 1.02 * stated
