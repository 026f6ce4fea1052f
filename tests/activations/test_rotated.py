"""The rotated domain equals the weight's own rotation; ranges of concatenated sources have their own scales (T10)."""
from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from vqpack.kernels import reference
from vqpack.kernels.parts import Scales
from vqpack.vq_core.activations.points import Point
from vqpack.vq_core.activations.quantizers import TokenQuantizer, input_ranges
from vqpack.vq_core.activations.ranges import Seen
from vqpack.vq_core.activations.rotated import CodedRange, coded_range
from vqpack.vq_core.activations.specs import StaticSpec, TokenSpec
from vqpack.vq_core.activations.tables import static_table
from vqpack.vq_core.encode import encode_weight
from vqpack.vq_core.layers import VQConv2d, VQLinear
from vqpack.vq_core.spec import TrellisSpec


def coded(shape, rotation=16, splits=()):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    return encode_weight(weight, TrellisSpec(2, 8, rotation), splits=splits).weight


def point_of(weight, **changes):
    taps = weight[0, 0].numel() if isinstance(weight, torch.Tensor) else torch.Size(weight.shape[2:]).numel()
    return Point(**{"key": "a.weight", "module": "a", "side": "input", "channels": weight.shape[1], "taps": taps,
                    "convolution": len(weight.shape) == 4, **changes})


@pytest.mark.parametrize("columns", [False, True])
def test_codes_times_turned_input_is_the_layers_product(columns):
    """W x = C into(x): the integers times the input in the rotated domain, everything decoded by the slow reference."""
    weight = coded((9, 48))
    part = weight.parts[0][3]
    g = torch.Generator().manual_seed(0)
    if columns:
        col = (torch.rand(48, generator=g) + 0.5).half()
        part = type(part)(**{**vars(part), "scales": Scales(part.scales.gain, part.scales.row, col=col)})
    x = torch.randn(5, 48, generator=g)
    integers = torch.from_numpy(reference.decode_integers(part)).float()
    own = coded_range(0, 48, part)
    got = own.into(x) @ integers.t() * part.scales.row.float() * part.scales.gain * part.rotation**0.5
    assert torch.allclose(got, x @ reference.decode_part(part).t(), rtol=1e-4, atol=1e-4)
    assert torch.allclose(own.back(own.into(x)), x, atol=1e-5)


def test_scales_are_found_in_the_rotated_domain():
    """A token with one large value: turned, its energy is spread and every value is close."""
    weight = coded((8, 64), rotation=64)
    x = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(1))
    x[..., 11] = 60.0
    layer = VQLinear(weight)
    errors = {}
    for rotated in (True, False):
        made = TokenQuantizer(point_of(weight), TokenSpec(6, rotated), input_ranges(point_of(weight), layer, rotated))
        errors[rotated] = float((made(x) - x)[..., :11].square().mean())
    assert errors[True] < errors[False] / 10


def test_convolutions_turn_channels_at_each_pixel():
    weight = coded((6, 32, 3, 3))
    x = torch.randn(2, 32, 5, 7, generator=torch.Generator().manual_seed(1))
    own = input_ranges(point_of(weight), VQConv2d(weight, padding=1), True)[0]
    maps = x.permute(0, 2, 3, 1)
    assert torch.allclose(own.back(own.into(maps)), maps, atol=1e-5)
    got = TokenQuantizer(point_of(weight), TokenSpec(8), [own])(x)
    assert got.shape == x.shape and 0 < float((got - x).abs().max()) < 0.1
    loud = x.clone()
    loud[1] *= 100                         # a scale a picture: the other one does not notice
    assert torch.equal(TokenQuantizer(point_of(weight), TokenSpec(8), [own])(loud)[0], got[0])


def test_1x1_convolutions_have_a_scale_a_pixel():
    x = torch.randn(1, 8, 3, 3, generator=torch.Generator().manual_seed(1))
    loud = x.clone()
    loud[..., 0, 0] *= 1000
    for taps, same in ((1, True), (9, False)):
        made = TokenQuantizer(point_of(torch.zeros(4, 8, 1, 1), taps=taps), TokenSpec(8), [CodedRange(0, 8)])
        assert torch.equal(made(x)[..., 1:], made(loud)[..., 1:]) == same


@pytest.mark.parametrize("how", ["static", "token"])
def test_split_sources_of_ten_times_the_range(how):
    """T10: activations are small where weights are large (Q-Diffusion's skip connections)."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 50, 48, generator=g)
    x[..., 32:] *= 10
    weight = torch.randn(20, 48, generator=g)
    weight[:, :32] *= 10
    sources, bits = [(0, 32), (32, 48)], 8
    if how == "token":
        results = [TokenQuantizer(point_of(weight), TokenSpec(bits), [CodedRange(a, b) for a, b in chosen])(x)
                   for chosen in (sources, [(0, 48)])]
    else:
        seen = Seen(48)
        seen.widen(x, 0)
        seen.sample(x, 0, 10, g)
        results = [static_table(seen.ranges(), StaticSpec(bits), chosen).quantize(x, torch.zeros(1).long(), "x")
                   for chosen in (sources, [(0, 48)])]
    split, joint = ((one - x) for one in results)
    assert (joint[..., :32].square().mean() / split[..., :32].square().mean()) >= 60
    assert (joint @ weight.t()).square().mean() / (split @ weight.t()).square().mean() >= 10
    assert torch.allclose(joint[..., 32:].square().mean(), split[..., 32:].square().mean(), rtol=0.2)


def test_coded_layers_name_their_own_ranges():
    layer = VQLinear(coded((8, 48), 16, (32, 16)))
    ranges = input_ranges(point_of(layer.coded), layer, True)
    assert [(part.start, part.stop, part.block) for part in ranges] == [(0, 32, 16), (32, 48, 16)]
    assert [part.block for part in input_ranges(point_of(layer.coded), layer, False)] == [0, 0]
    dense = nn.Linear(48, 8)
    assert [(part.start, part.stop) for part in input_ranges(point_of(dense.weight), dense, True)] == [(0, 48)]
    x = torch.randn(3, 7, 48, generator=torch.Generator().manual_seed(2))
    got = TokenQuantizer(point_of(layer.coded), TokenSpec(8), ranges)(x)
    assert float((F.linear(got - x, layer.weight)).abs().max()) < 0.5 and got.shape == x.shape
