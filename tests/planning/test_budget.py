"""Bytes told beforehand against bytes written."""
from __future__ import annotations

import pytest
import torch
from vqpack.vq_core.encode import encode_weight
from vqpack.vq_core.planning.budget import blob_bytes
from vqpack.vq_core.spec import make_spec

SHAPES = [((8, 16), ()), ((33, 47), ()), ((70, 96), (64, 32)), ((17, 20, 3, 3), ()), ((40, 24, 3, 3), (16, 8)),
          ((65, 48, 1, 1), (32, 16))]
SPECS = [make_spec("trellis", bits, window=8) for bits in (1, 1.5, 2, 2.5, 3, 3.5, 4)] + [
    make_spec(kind, bits, group_size=group) for kind in ("palette", "uniform") for bits, group in
    ((1, 0), (3, 16), (5, 32), (8, 0))] + [make_spec(kind, bits) for kind in ("additive", "product") for bits in (1, 2)]
SPECS.append(make_spec("additive", 2, conv_group="kernel"))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.kind}-{spec.bits}-{getattr(spec, 'group_size', 0)}")
def test_a_blob_is_as_long_as_told(spec):
    generator = torch.Generator().manual_seed(0)
    for shape, splits in SHAPES if spec.kind not in ("additive", "product") else SHAPES[1:5:2]:
        coded = encode_weight(torch.randn(shape, generator=generator), spec, splits=splits)
        assert blob_bytes(shape, splits, spec) == coded.weight.nbytes, (shape, splits)
