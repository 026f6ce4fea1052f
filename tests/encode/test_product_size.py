"""product at one bit: SDXL's UNet with every book, scale, head and dense tensor is below a 24th of float32 (DPQ)."""
from __future__ import annotations

import math

import torch
from vqpack.benchmarks.correlated import weights
from vqpack.benchmarks.make_checkpoint import read_shapes
from vqpack.vq_core.arch import make_layers
from vqpack.vq_core.encode import encode_weight
from vqpack.vq_core.encode.product import plan_layout
from vqpack.vq_core.layout import align, head_length
from vqpack.vq_core.spec import ProductSpec


def blob_bytes(shape, splits, spec):
    """Of one coded weight, from its shape alone."""
    ranges, taps = splits or (shape[1],), math.prod(shape[2:])
    total = align(head_length(len(ranges), 3 * len(ranges)))
    for channels in ranges:
        layout = plan_layout(shape[0], channels * taps, spec)
        total += align(2 * layout.blocks * layout.codebook_size * layout.group) + align(2 * shape[0])
        total += align(shape[0] * -(-layout.positions // 8) * layout.bits)
    return total


def test_the_formula_is_exact():
    for shape, splits in (((64, 32), ()), ((48, 16, 3, 3), (8, 8)), ((33, 40), (16, 24))):
        weight = weights(shape[0], math.prod(shape[1:])).reshape(shape)
        coded = encode_weight(weight, ProductSpec(1), splits=splits).weight
        assert coded.nbytes == blob_bytes(shape, splits, ProductSpec(1)) and coded.blob.dtype == torch.uint8


def test_sdxl_at_one_bit_is_24_times_smaller():
    total = weights_in_all = 0
    for layer in make_layers(read_shapes("base")):
        if layer.component == "unet":
            numel = math.prod(layer.shape)
            weights_in_all += numel
            total += 2 * numel if layer.dense else blob_bytes(layer.shape, layer.splits, ProductSpec(1))
    assert weights_in_all == 2_567_463_684
    assert total < 0.414e9 and 4 * weights_in_all / total > 24
