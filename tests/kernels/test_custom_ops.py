"""Decoding and coded_linear as operations: same results, right shapes, one graph under torch.compile."""
import dataclasses

import pytest
import torch
from vqpack.kernels import custom_ops, linear
from vqpack.kernels.dispatch import decode_part

PARTS = {
    "palette": lambda make: make.lut(taps=1, col=True),
    "uniform": lambda make: make.lut(taps=1, uniform=True, group=8),
    "additive": lambda make: make.additive(taps=1, blocks=2, order=1),
    "trellis": lambda make: make.trellis(rotation=16, vector=2, step_bits=3),
}


@pytest.mark.parametrize("name", PARTS)
def test_operations_are_well_formed_and_give_the_same(make, name):
    part = PARTS[name](make)
    operand = custom_ops.flatten(part)
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(custom_ops.decode(operand, dtype), decode_part(part, dtype=dtype))
    x, bias = torch.randn(2, 3, 32), torch.randn(part.out_features)
    assert torch.equal(custom_ops.linear(x, operand, bias), linear.coded_linear(x, part, bias))
    torch.library.opcheck(custom_ops._OPERATIONS["decode"], (*operand, torch.float16))
    torch.library.opcheck(custom_ops._OPERATIONS["linear"], (x, None, *operand))


def test_an_operand_is_the_part_over_the_same_memory(make):
    part = make.trellis(taps=3, col=True, group=7, chain=5)
    operand = custom_ops.flatten(part)
    again = custom_ops._part(*operand)
    assert all(getattr(again, field.name) is getattr(part, field.name) or field.name == "scales"
               or getattr(again, field.name) == getattr(part, field.name) for field in dataclasses.fields(part))
    assert again.scales.gain == part.scales.gain and again.scales.group is part.scales.group
    with pytest.raises(ValueError, match="chain must lie"):
        custom_ops.flatten(dataclasses.replace(part, chain=0))


def test_compiled_code_is_one_graph(make):
    operands = [custom_ops.flatten(make.trellis(70, 32)), custom_ops.flatten(make.lut(70, 32, 1))]
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def block(x):
        return custom_ops.linear(x, operands[0]).relu() + x @ custom_ops.decode(operands[1]).t()

    torch._dynamo.reset()
    x = torch.randn(5, 32)
    assert torch.equal(torch.compile(block, backend=count, fullgraph=True)(x), block(x))
    assert len(graphs) == 1
