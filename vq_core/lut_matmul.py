"""Products with additive codes that never decode a weight: each group's products with all book entries are looked up.

y_o = s_o sum_{j,m} T[j, m, code_{o,j,m}], T[j, m, k] = <x_j, C_m[k]> (AQ thesis, arXiv 2506.05960). Sums are float32.
Fewer operations than a dense product where operations.py says so; whether less time, a machine has to say.
"""
from __future__ import annotations

import torch
from torch.nn import functional as F

from ..kernels.packing import unpack_codes
from ..kernels.parts import AdditivePart
from .activations.rotated import coded_range
from .errors import UnsupportedError
from .layers import VQConv2d, VQLinear
from .weight import CodedWeight

TABLE_BYTES = 64 << 20                     # of the tables of one chunk of input vectors


def lut_linear(x: torch.Tensor, weight: CodedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., in_features] times a coded linear weight -> [..., out_features] in x's dtype."""
    found = _product(x.reshape(-1, x.shape[-1]).float(), weight)
    found = found if bias is None else found + bias.float()
    return found.view(*x.shape[:-1], -1).to(x.dtype)


def lut_conv2d(x: torch.Tensor, layer: VQConv2d) -> torch.Tensor:
    """A coded convolution through im2col: x [n, in, h, w] -> [n, out, h', w'] in x's dtype."""
    if layer.groups != 1:
        raise UnsupportedError(f"look-up products know no grouped convolutions, this one has {layer.groups} groups")
    kernel = layer.coded.shape[2:]
    columns = F.unfold(x.float(), kernel, layer.dilation, layer.padding, layer.stride)   # [n, in * taps, pixels]
    n, _, pixels = columns.shape
    columns = columns.view(n, x.shape[1], -1, pixels).permute(0, 3, 2, 1)           # [n, pixels, taps, in]
    found = _product(columns.reshape(n * pixels, -1), layer.coded)                  # [n * pixels, out]
    found = found if layer.bias is None else found + layer.bias.float()
    height = _positions(x.shape[2], kernel[0], layer, 0)
    return found.view(n, height, -1, found.shape[1]).permute(0, 3, 1, 2).to(x.dtype)


def lut_layer(layer: VQLinear | VQConv2d, x: torch.Tensor) -> torch.Tensor:
    """What layer(x) gives, from look-up tables. UnsupportedError for codes that are not additive."""
    return lut_conv2d(x, layer) if isinstance(layer, VQConv2d) else lut_linear(x, layer.coded, layer.bias)


def _product(x: torch.Tensor, weight: CodedWeight) -> torch.Tensor:
    """float32 [rows, taps * in] -> [rows, out]; ranges of input channels one after the other."""
    maps = x.view(len(x), weight.layout.taps, weight.shape[1])                      # [rows, taps, in]
    total = torch.zeros(len(x), weight.shape[0], device=x.device)
    for start, stop, kind, part in weight.parts:
        if not isinstance(part, AdditivePart):
            raise UnsupportedError(f"look-up products need additive codes, a part of this weight of shape "
                                   f"{list(weight.shape)} is coded as {kind}: decode it instead")
        own = coded_range(start, stop, part).into(maps[..., start:stop])            # [rows, taps, channels]
        total += _part_product(own, part)
    if weight.branch is not None:
        down, up = weight.branch
        total += x @ down.float().t() @ up.float().t()
    return total


def _part_product(x: torch.Tensor, part: AdditivePart) -> torch.Tensor:
    """float32 [rows, taps, channels], rotated -> [rows, out_features]"""
    blocks, books, size, group = part.codebooks.shape
    columns = (x.transpose(1, 2) if part.order == 1 else x).flatten(1)              # [rows, cols]
    groups = -(-columns.shape[1] // group)
    columns = F.pad(columns, (0, groups * group - columns.shape[1])).view(-1, groups, group)
    block_of = torch.arange(groups, device=x.device) * blocks // groups
    codes = unpack_codes(part.codes, part.bits, groups * books).long()              # [out, groups * books]
    index = codes + torch.arange(groups * books, device=x.device) * size            # rows of the tables
    entries = part.codebooks.float()[block_of].flatten(1, 2)                        # [groups, books * size, group]
    scale = part.scales.row.float() * part.scales.gain * max(1, part.rotation) ** 0.5
    found = []
    for some in columns.split(max(1, TABLE_BYTES // (4 * groups * books * size))):
        table = torch.bmm(entries, some.permute(1, 2, 0)).flatten(0, 1)             # [groups * books * size, rows]
        found.append(F.embedding_bag(index, table, mode="sum").t() * scale)         # [rows, out]
    return torch.cat(found)


def _positions(side: int, kernel: int, layer: VQConv2d, axis: int) -> int:
    """Output pixels along one axis."""
    stride, padding, dilation = (value[axis] if isinstance(value, tuple | list) else value
                                 for value in (layer.stride, layer.padding, layer.dilation))
    return (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
