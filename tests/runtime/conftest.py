"""Random coded weights of every family, of one and of two parts, with and without rotation and low-rank branch."""
from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch


def _factory():
    path = Path(__file__).parents[1] / "kernels" / "conftest.py"
    spec = importlib.util.spec_from_file_location("kernels_conftest", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PartFactory(3)


@pytest.fixture
def weights():
    """weights(shape, source dtype) -> coded weights of that shape; their input channels must be a multiple of 16."""
    from vqpack.vq_core.record import build_blob, parse_blob, part_table
    from vqpack.vq_core.table_record import table_id

    def build(shape, dtype, parts, branch=None):
        tables = {table_id(part_table(part)): part.table for *_, part in parts if hasattr(part, "table")}
        return parse_blob(build_blob(shape, dtype, parts, branch), tables, "test")

    def make(shape, dtype=torch.float16):
        factory, rows, cols = _factory(), shape[0], shape[1]
        taps = shape[2] * shape[3] if len(shape) == 4 else 1
        half = cols // 2
        whole = {"palette": factory.lut(rows, cols, taps, 3), "uniform": factory.lut(rows, cols, taps, 4, uniform=True),
                 "additive": factory.additive(rows, cols, taps), "trellis": factory.trellis(rows, cols, taps)}
        out = [build(shape, dtype, [(0, cols, kind, part)]) for kind, part in whole.items()]
        split = [(0, half, "trellis", factory.trellis(rows, half, taps, rotation=8)),
                 (half, cols, "palette", factory.lut(rows, cols - half, taps, 2))]
        out.append(build(shape, dtype, split))
        branch = (torch.randn(2, taps * cols).half(), torch.randn(rows, 2).half())
        return [*out, build(shape, dtype, [(0, cols, "trellis", whole["trellis"])], branch)]

    return make
