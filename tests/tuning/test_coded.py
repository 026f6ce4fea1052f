"""Gradients of coded layers: against autograd through a plain formula, for every family of codes."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from vqpack.kernels.dispatch import decode_part
from vqpack.kernels.gradients import entry_sums, trellis_states, unrotated_gradient
from vqpack.kernels.parts import Scales
from vqpack.vq_core.encode import encode_weight
from vqpack.vq_core.layers import VQConv2d, VQLinear
from vqpack.vq_core.spec import make_spec
from vqpack.vq_core.tuning.coded import TunedLayer
from vqpack.vq_core.tuning.masters import Trained

SPECS = [("trellis", 2, {"window": 8, "rotation": 16}), ("trellis", 1.5, {"window": 8, "rotation": 0}),
         ("palette", 3, {}), ("palette", 2, {"group_size": 20}), ("uniform", 3, {}), ("uniform", 4, {"group_size": 16}),
         ("additive", 1, {}), ("product", 2, {})]
EVERYTHING = Trained(columns=True)


def coded(shape, kind="trellis", bits=2, splits=(), **options):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 0.1
    return encode_weight(weight, make_spec(kind, bits, **options), splits=splits).weight


def layer_of(weight, trained=EVERYTHING, bias=True):
    bias = nn.Parameter(torch.randn(weight.shape[0], generator=torch.Generator().manual_seed(4))) if bias else None
    old = VQLinear(weight, bias) if len(weight.shape) == 2 else VQConv2d(weight, bias, stride=2, padding=1)
    return TunedLayer(old, trained, {})


@pytest.mark.parametrize(("kind", "bits", "options"), SPECS)
def test_entries_get_the_sum_of_what_they_made(kind, bits, options):
    part = coded((40, 48), kind, bits, **options).parts[0][3]
    integers = decode_part(replace(part, scales=Scales(1.0, group_size=part.scales.group_size)))
    gradient = torch.randn(integers.shape, generator=torch.Generator().manual_seed(1))
    book = getattr(part, "table", None) if kind == "trellis" else getattr(part, "values", None)
    book = part.codebooks if kind in ("additive", "product") else book
    before = unrotated_gradient(gradient, part)
    if kind == "uniform":
        with pytest.raises(ValueError, match="no entries"):
            entry_sums(before, part)
        return
    # decoding is linear in the entries: <gradient, decoded> = <entry gradients, entries>
    sums = entry_sums(before, part)
    assert sums.shape == book.shape
    assert float((sums * book).sum()) == pytest.approx(float((gradient * integers).sum()), rel=1e-3)
    if kind == "trellis":
        states = trellis_states(part, 0, part.codes.shape[0])[:40 // part.vector]
        plain = part.table[states].permute(0, 2, 1).reshape(40, 48).float()
        torch.testing.assert_close(plain, decode_part(replace(part, rotation=0, scales=Scales(gain=1.0))))


@pytest.mark.parametrize(("kind", "bits", "options"), SPECS)
@pytest.mark.parametrize("shape", [(40, 48), (24, 32, 3, 3)])
def test_gradients_are_those_of_the_formula(kind, bits, options, shape):
    layer = layer_of(coded(shape, kind, bits, splits=(16, shape[1] - 16), **options))
    x = torch.randn((3, 5, 48) if len(shape) == 2 else (2, 32, 7, 6), generator=torch.Generator().manual_seed(5))
    x.requires_grad_(True)
    out = layer(x)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(6))
    (out * direction).sum().backward()
    # the same through the dense weight
    weight = layer.assembled([decode_part(part) for part in layer.now()]).requires_grad_(True)
    y = x.detach().clone().requires_grad_(True)
    dense = F.linear(y, weight, layer.bias) if len(shape) == 2 else F.conv2d(y, weight, layer.bias, 2, 1)
    torch.testing.assert_close(out, dense)
    (dense * direction).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-4)
    base = weight.detach()
    for name, parameter in layer.parts.named_parameters():     # a large step: the weight is linear in each master
        step = torch.zeros_like(parameter)
        step.view(-1)[::3] = 0.5
        parameter.data += step
        change = layer.assembled([decode_part(part) for part in layer.now()]) - base
        parameter.data -= step
        allowed = 2e-3 * float((change.abs() * weight.grad.abs()).sum())
        predicted = float((parameter.grad * step).sum())
        assert float((change * weight.grad).sum()) == pytest.approx(predicted, abs=allowed), name


def test_only_what_was_asked_for_is_trained():
    weight = coded((40, 48), rotation=16, window=8)
    assert [n for n, _ in layer_of(weight, Trained()).parts[0].named_parameters()] == ["rows", "table.change"]
    assert [n for n, _ in layer_of(weight, Trained(tables="frozen")).parts[0].named_parameters()] == ["rows"]
    assert not layer_of(weight, Trained(scales=False, tables="frozen")).masters()


def test_parts_share_a_table_or_have_their_own():
    weight = coded((40, 48), splits=(16, 32), rotation=16, window=8)
    assert len(layer_of(weight, Trained()).masters()) == 3         # two rows, one table
    assert len(layer_of(weight, Trained(tables="layer")).masters()) == 4


def test_nothing_decoded_is_kept_for_the_backward_pass():
    kept = []
    layer = layer_of(coded((64, 48), rotation=16, window=8))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        layer(torch.randn(2, 48, requires_grad=True)).square().sum()
    assert (64, 48) not in kept and (48, 64) not in kept and (2, 48) in kept


def test_at_the_start_it_is_the_stored_layer():
    for kind, bits, options in SPECS:
        weight = coded((40, 48), kind, bits, **options)
        layer = layer_of(weight)
        assert torch.equal(layer.assembled([decode_part(part) for part in layer.now()]), weight.decode())


def test_autocast_computes_in_its_dtype():
    layer = layer_of(coded((40, 48), rotation=16, window=8))
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(torch.randn(3, 48))
    out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16 and layer.parts[0].rows.grad.dtype == torch.float32


def test_masters_stay_where_files_can_hold_them():
    masters = layer_of(coded((40, 48), rotation=16, window=8)).parts[0]
    for parameter in masters.parameters():
        parameter.data.fill_(-1e9)
        parameter.data[0] = 1e9
    masters.keep_in_range()
    masters.table.keep_in_range()
    now = masters.now()
    assert torch.isfinite(now.scales.row).all() and (now.scales.row != 0).all() and torch.isfinite(now.scales.col).all()
    assert int(now.table.min()) == -127 and int(now.table.max()) == 127
