"""A coded layer whose scales alone are trained, those of the experts that its samples' noise asks for."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..layers import VQConv2d, VQLinear
from ..tuning.coded import TunedLayer, computed_in
from ..tuning.masters import Trained
from .scaling import CHANNELS_LAST, CHANNELS_SECOND, aligned, spread

FROZEN = Trained(scales=False, books=False, tables="frozen", biases=False, norms=False, dense=False)


class Route:
    """The experts of the samples of the call that runs; one for all layers of a model."""

    def __init__(self):
        self.rows: list[int] = [0]


class ScaledLayer(TunedLayer):
    """A linear layer or convolution with trained logarithms, zeros at first. both: inputs too, not outputs alone."""

    def __init__(self, old: VQLinear | VQConv2d, route: Route, experts: int, both: bool = True):
        super().__init__(old, FROZEN, {})
        self.route, self.channels = route, CHANNELS_LAST if self.convolution is None else CHANNELS_SECOND
        self.out_logs = _zeros(experts, self.coded.shape[0], self.coded.device)
        self.in_logs = _zeros(experts, self.coded.shape[1], self.coded.device) if both else nn.ParameterList()

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """s_out * (W (s_in * x)); experts that no sample asks for get no gradient at all."""
        rows = spread(torch.tensor(self.route.rows), x.shape[0]).tolist()
        used = sorted(set(rows))
        logs = [side[expert] for side in (self.out_logs, self.in_logs) if len(side) for expert in used]
        return _Scale.apply(x, self, tuple(rows), *logs)

    def decoded(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight as it is stored."""
        return self.assembled(self.pieces(self.now(), dtype)).to(dtype)


class _Scale(torch.autograd.Function):
    """Saves x alone. logs: of the experts in use, outputs first [out] each, then inputs [in] where they are trained."""

    @staticmethod
    def forward(ctx, x, layer, rows, *logs):
        ctx.save_for_backward(x)
        ctx.layer, ctx.rows, ctx.logs = layer, rows, logs
        out, into = _scales(layer, rows, logs, x)
        return layer.multiply(x if into is None else x * into, layer.decoded(computed_in(x)).to(x.dtype)) * out

    @staticmethod
    def backward(ctx, gradient):
        """The product is made again: a matrix product more instead of the activations' memory."""
        (x,), layer, rows, logs = ctx.saved_tensors, ctx.layer, ctx.rows, ctx.logs
        weight, (out, into) = layer.decoded(computed_in(x)).to(x.dtype), _scales(layer, rows, logs, x)
        scaled, inner = x if into is None else x * into, gradient.to(x.dtype) * out
        of_out = _sums((inner * layer.multiply(scaled, weight)), rows, layer.channels)
        if into is None and not ctx.needs_input_grad[0]:
            return None, None, None, *of_out
        of_scaled, _ = layer.gradients(scaled, weight, inner, True, of_weight=False)
        of_in = [] if into is None else _sums(of_scaled * scaled, rows, layer.channels)
        return of_scaled if into is None else of_scaled * into, None, None, *of_out, *of_in


def _scales(layer: ScaledLayer, rows, logs, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """-> (s_out, s_in), shaped to multiply outputs and inputs; one line where all samples have one expert"""
    used = sorted(set(rows))
    picked = [used.index(row) for row in rows] if len(used) > 1 else [0]
    sides = [torch.stack(list(logs[first:first + len(used)]))[picked].detach().exp().to(x.dtype)
             for first in range(0, len(logs), len(used))]
    found = [aligned(side, x, layer.channels) for side in sides]
    return found[0], found[1] if len(found) > 1 else None


def _sums(product: torch.Tensor, rows: Sequence[int], channels: int) -> list[torch.Tensor]:
    """Gradients of logarithms: sums over all but the channels, of each expert's samples, in order of experts."""
    each = product.float()
    each = each.sum((2, 3)) if channels == CHANNELS_SECOND else each.reshape(len(each), -1, each.shape[-1]).sum(1)
    return [each[[i for i, row in enumerate(rows) if row == expert]].sum(0) for expert in sorted(set(rows))]


def _zeros(experts: int, channels: int, device) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(torch.zeros(channels, device=device)) for _ in range(experts))
