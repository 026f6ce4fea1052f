"""A coded layer that can be trained: forward and backward decode the codes anew, no decoded weight is kept between."""
from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from ...kernels.parts import Part
from ..encode import to_matrix
from ..layers import VQConv2d, VQLinear
from ..weight import CodedWeight, add_branch, join
from .assigned import Assigned, codes_of, packed
from .masters import Branch, PartMasters, Trained, TrellisTable


class TunedLayer(nn.Module):
    """A linear layer or convolution whose masters and bias are trained; its codes stay, unless they are reassigned."""

    def __init__(self, old: VQLinear | VQConv2d, trained: Trained, tables: dict[int, TrellisTable]):
        super().__init__()
        self.coded: CodedWeight = old.coded
        heads = old.coded.layout.parts
        self.parts = nn.ModuleList(
            PartMasters(part, trained, _table(part, head.table_id, trained, tables))
            for head, (*_, part) in zip(heads, old.coded.parts, strict=True))
        self.ranges = [(start, stop) for start, stop, *_ in old.coded.parts]
        self.branch = Branch(*old.coded.branch) if old.coded.branch is not None else None
        self.bias = old.bias
        self.convolution = None
        if isinstance(old, VQConv2d):
            self.convolution = (_pair(old.stride), _pair(old.padding), _pair(old.dilation), old.groups)

    def now(self) -> list[Part]:
        """The parts as a file would hold them."""
        return [part.now() for part in self.parts]

    def masters(self) -> list[nn.Parameter]:
        """What gets a gradient from the weight, each once."""
        found = [p for part in self.parts for p in (part.rows, part.groups, part.columns, part.book)]
        found += [part.table.change for part in self.parts if part.table is not None]
        found += [part.assigned.trained for part in self.parts if part.assigned is not None]
        found += [] if self.branch is None else [self.branch.down, self.branch.up]
        return list({id(p): p for p in found if p is not None}.values())

    def forward(self, x: torch.Tensor, *args) -> torch.Tensor:
        """[..., in] -> [..., out], or [n, in, h, w] -> [n, out, h', w']; computed in autocast's dtype, else x's."""
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            y = self.product(x)
            if self.bias is None:
                return y
            bias = self.bias.to(y.dtype)
            return y + (bias if self.convolution is None else bias[:, None, None])

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """x times the decoded weight, with a backward pass that decodes it again."""
        return _Multiply.apply(x, self, *self.masters())

    def multiply(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Without the bias."""
        if self.convolution is None:
            return F.linear(x, weight)
        stride, padding, dilation, groups = self.convolution
        return F.conv2d(x, weight, None, stride, padding, dilation, groups)

    def gradients(self, x: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor, wanted: bool,
                  of_weight: bool = True) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Of the output -> of x (None unless wanted) and of the weight (None unless of_weight)."""
        if self.convolution is None:
            flat = gradient.reshape(-1, gradient.shape[-1])
            return (gradient @ weight if wanted else None), (flat.t() @ x.reshape(-1, x.shape[-1]) if of_weight
                                                             else None)
        stride, padding, dilation, groups = self.convolution
        found = torch.ops.aten.convolution_backward(gradient, x, weight, None, stride, padding, dilation, False,
                                                    [0, 0], groups, [wanted, of_weight, False])
        return found[0], found[1]

    def assembled(self, pieces: list[torch.Tensor]) -> torch.Tensor:
        """Matrices of the parts, [out, taps * channels] each -> the weight in its logical shape."""
        shape, matrix = self.coded.shape, join(pieces, self.coded.shape)            # [out, taps * in]
        if self.branch is not None:
            matrix = add_branch(matrix.clone() if matrix is pieces[0] else matrix, *self.branch.now())
        if len(shape) == 2:
            return matrix
        return matrix.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2).contiguous()

    def pull_back(self, gradient: torch.Tensor, pieces: list[torch.Tensor], now: list[Part]
                  ) -> dict[nn.Parameter, torch.Tensor]:
        """Gradient of the weight -> those of the masters. pieces: the parts' matrices, decoded from `now`."""
        found: dict[nn.Parameter, torch.Tensor] = {}
        for masters, (start, stop), piece, part in zip(self.parts, self.ranges, pieces, now, strict=True):
            for parameter, value in masters.pull_back(to_matrix(gradient, start, stop).float(), piece, part).items():
                found[parameter] = found[parameter] + value if parameter in found else value
        if self.branch is not None:
            found.update(self.branch.pull_back(to_matrix(gradient, 0, gradient.shape[1]).float()))
        return found

    def pieces(self, now: list[Part], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
        """Matrices of the parts, decoded; float32 where a branch is to be added."""
        dtype = dtype if self.branch is None else torch.float32
        return [masters.decode(part, dtype) for masters, part in zip(self.parts, now, strict=True)]

    def branches(self) -> list[torch.Tensor | None]:
        """What the low-rank branch adds to the matrix of each part, [out, taps * channels]; None without one."""
        if self.branch is None:
            return [None] * len(self.parts)
        down, up = (x.float() for x in self.branch.now())
        maps = (up @ down).view(len(up), -1, self.coded.shape[1])                   # [out, taps, in]
        return [maps[:, :, start:stop].flatten(1) for start, stop in self.ranges]

    def reassign(self) -> dict[nn.Parameter, torch.Tensor]:
        """Assign the codes anew -> latents and masks [out, groups, 1] of the groups whose codes changed."""
        found = {}
        for masters, branch in zip(self.parts, self.branches(), strict=True):
            if masters.assigned is None:
                continue
            now = masters.now()
            codes = masters.assigned.codes(now, branch)
            changed = (codes != codes_of(now)).any(2)                               # [out, groups]
            if isinstance(masters.assigned, Assigned) and masters.assigned.trained is not None:
                found[masters.assigned.trained] = changed[..., None]
            if bool(changed.any()):
                masters.part = replace(masters.part, codes=packed(now, codes))
        return found


class _Multiply(torch.autograd.Function):
    """x times a decoded weight; saves x alone."""

    @staticmethod
    def forward(ctx, x, layer, *masters):
        ctx.save_for_backward(x)
        ctx.layer, ctx.masters = layer, masters
        weight = layer.assembled(layer.pieces(layer.now(), computed_in(x)))
        return layer.multiply(x, weight.to(x.dtype))

    @staticmethod
    def backward(ctx, gradient):
        (x,), layer, now = ctx.saved_tensors, ctx.layer, ctx.layer.now()
        pieces = layer.pieces(now)
        weight = layer.assembled(pieces).to(x.dtype)
        of_x, of_weight = layer.gradients(x, weight, gradient.to(x.dtype), ctx.needs_input_grad[0])
        found = layer.pull_back(of_weight, pieces, now)
        return of_x, None, *(found.get(master) for master in ctx.masters)


def computed_in(x: torch.Tensor) -> torch.dtype:
    """What a weight for x is decoded to."""
    return x.dtype if x.dtype in (torch.float16, torch.bfloat16) else torch.float32


def _table(part: Part, identity: int, trained: Trained, tables: dict[int, TrellisTable]) -> TrellisTable | None:
    """The trained table a part uses; shared ones are made once and kept in `tables`."""
    if trained.tables == "frozen" or not hasattr(part, "table"):
        return None
    if trained.tables == "layer":
        return TrellisTable(part.table)
    if identity not in tables:
        tables[identity] = TrellisTable(part.table)
    return tables[identity]


def _pair(value) -> list[int]:
    return list(value) if isinstance(value, tuple | list) else [value, value]
